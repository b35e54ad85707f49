"""Paired bootstrap of two models on the same examples, and Holm's correction over several pairs.

In: one score per example and model (mean over its seeds), per data set. Out: `Comparison`.

An evaluation of several sets counts every set alike: the difference is the mean of the sets' means, and every resample
draws the examples of each set anew, with replacement, the same ones for both models.

Shapes: N examples of a set, B resamples at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, LEVEL = 10_000, 0.95
DRAWS_AT_ONCE = 2**22  # indices; bounds the memory


@dataclass(frozen=True)
class Comparison:
    """Second model minus first.

    low, high: the 95 % interval. p: two-sided. wins, ties, losses: examples of the second model.
    """

    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int


def compare(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], seed: int = 0) -> Comparison:
    """Scores per example, by data set; the sets and their examples in the same order for both.

    The interval is the percentile one. p is the share of resamples whose difference lies as far from the observed one
    as that lies from 0 (Efron & Tibshirani 1993, section 16.4), counted with the observed one itself.
    Raises ValueError if the models were not scored on the same examples.
    """
    if first.keys() != second.keys() or any(len(first[name]) != len(second[name]) for name in first):
        raise ValueError("the models were scored on different examples; evaluate both on the same sets")
    differences = [np.subtract(second[name], first[name]) for name in first]
    observed = float(np.mean([of_set.mean() for of_set in differences]))
    resampled = bootstrap_means(differences, seed)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    as_far = np.abs(resampled - observed) >= abs(observed)
    of_all = np.concatenate(differences)
    return Comparison(
        difference=observed,
        low=float(low),
        high=float(high),
        p=(1 + int(as_far.sum())) / (1 + len(resampled)),
        wins=int((of_all > 0).sum()),
        ties=int((of_all == 0).sum()),
        losses=int((of_all < 0).sum()),
    )


def bootstrap_means(sets: Sequence[np.ndarray], seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """The mean over the sets of their means, of each resample."""
    draw = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for values_N in sets:
        size = max(1, DRAWS_AT_ONCE // len(values_N))
        for start in range(0, resamples, size):
            count = min(size, resamples - start)
            indices_BN = draw.integers(0, len(values_N), (count, len(values_N)))
            total[start : start + count] += values_N[indices_BN].mean(axis=1)
    return total / len(sets)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given; Holm 1979. Each may be compared with the level itself."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
