"""Paired bootstrap of two models on the same examples, and Holm's correction over several pairs.

In: one score per example and model (mean over its seeds), per data set. Out: `Comparison`s; of several models `Pair`s.

An evaluation of several sets counts every set alike: the difference is the mean of the sets' means, and every resample
draws the examples of each set anew, with replacement, the same ones for both models.

Shapes: N examples of a set, B resamples at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

Scores = Mapping[str, Sequence[float]]  # per example, by data set
AVERAGE = "average"  # over the sets

RESAMPLES, LEVEL = 10_000, 0.95
DRAWS_AT_ONCE = 2**22  # indices; bounds the memory


@dataclass(frozen=True)
class Comparison:
    """Second model minus first.

    low, high: the 95 % interval. p: two-sided; p_holm: corrected for all pairs that were compared. wins, ties, losses:
    examples of the second model. gap_closed: in per cent of the teacher's lead over the first model, if it leads.
    """

    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int
    p_holm: float | None = None
    gap_closed: float | None = None


@dataclass(frozen=True)
class Pair:
    """`run` minus `baseline`, which is the one with the lower average. results: by data set, and of `AVERAGE`."""

    run: str
    baseline: str
    results: dict[str, Comparison]


def compare_runs(scores: Mapping[str, Scores], teacher: Scores | None = None) -> list[Pair]:
    """All pairs. scores: of each run. Raises ValueError if they were not scored on the same examples.

    Holm's correction counts the pairs: on the average and on each set of their own.
    """
    pairs = [_pair(first, second, scores, teacher) for first, second in combinations(scores, 2)]
    for name in pairs[0].results if pairs else ():
        for pair, p_holm in zip(pairs, holm([pair.results[name].p for pair in pairs])):
            pair.results[name] = replace(pair.results[name], p_holm=p_holm)
    return pairs


def average(scores: Scores) -> float:
    """The mean over the sets of their means."""
    return float(np.mean([np.mean(of_set) for of_set in scores.values()]))


def pair_lines(pairs: Sequence[Pair]) -> str:
    """A line per pair: on the average and, of several sets, on each."""
    width = max(len(f"{pair.run} - {pair.baseline}") for pair in pairs)
    names = list(pairs[0].results)
    blocks = []
    for name in names if len(names) > 2 else [AVERAGE]:
        lines = [f"{f'{pair.run} - {pair.baseline}'.ljust(width)}  {_line(pair.results[name])}" for pair in pairs]
        blocks.append("\n".join([name, *lines]) if len(names) > 2 else "\n".join(lines))
    return "\n\n".join(blocks)


def _pair(first: str, second: str, scores: Mapping[str, Scores], teacher: Scores | None) -> Pair:
    baseline, run = (second, first) if average(scores[first]) > average(scores[second]) else (first, second)
    results = {}
    for name in (AVERAGE, *scores[run]):
        of_baseline, of_run, of_teacher = (
            scores_of if scores_of is None or name == AVERAGE else {name: scores_of[name]}
            for scores_of in (scores[baseline], scores[run], teacher)
        )
        found = compare(of_baseline, of_run)
        lead = 0.0 if of_teacher is None else average(of_teacher) - average(of_baseline)
        results[name] = replace(found, gap_closed=100 * found.difference / lead) if lead > 0 else found
    return Pair(run, baseline, results)


def compare(first: Scores, second: Scores, seed: int = 0) -> Comparison:
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


def _line(found: Comparison) -> str:
    p = f"p = {found.p_holm:.3f}" if found.p_holm >= 0.0005 else "p < 0.001"
    words = f"{found.difference:+.2f} [{found.low:.2f}, {found.high:.2f}]  {p}"
    words += f"  wins {found.wins} ties {found.ties} losses {found.losses}"
    return words if found.gap_closed is None else f"{words}  gap closed {found.gap_closed:.0f} %"
