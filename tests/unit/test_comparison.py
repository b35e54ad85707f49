"""The paired bootstrap and Holm's correction."""

import numpy as np
import pytest

from evaluation.comparison import bootstrap_means, compare, holm


def scores(count: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(20 + shift, 10, count)


def test_the_bootstrap_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    values = scores(120) - scores(120, seed=1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(3))
    ours = np.quantile(bootstrap_means([values], seed=3), [0.025, 0.975])
    np.testing.assert_allclose(ours, theirs.confidence_interval, rtol=1e-9)


def test_a_difference_and_its_examples():
    first, second = {"a": [1.0, 2.0, 3.0], "b": [5.0]}, {"a": [2.0, 2.0, 2.0], "b": [8.0]}
    found = compare(first, second)
    assert (found.difference, found.wins, found.ties, found.losses) == (1.5, 2, 1, 1)
    assert found.low <= found.difference <= found.high


def test_every_set_counts_alike():
    large, small = scores(1000), scores(10, seed=1)
    found = compare({"large": large, "small": small}, {"large": large, "small": small + 4})
    assert found.difference == pytest.approx(2)
    assert found.p < 0.001


def test_other_examples_are_refused():
    for second in ({"a": [1.0]}, {"b": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="different examples"):
            compare({"a": [1.0, 2.0]}, second)


def test_models_that_do_not_differ_are_found_different_in_5_percent_of_trials():
    significant = sum(
        compare({"a": scores(200, seed=2 * trial)}, {"a": scores(200, seed=2 * trial + 1)}, seed=trial).p < 0.05
        for trial in range(200)
    )
    assert 3 <= significant <= 19  # of 200; outside of it with a probability below 0.01


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
