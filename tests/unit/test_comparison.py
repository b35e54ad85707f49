"""The paired bootstrap and Holm's correction; evaluations on disk that may be compared; `code/compare.py`."""

import json
import re

import numpy as np
import pytest

import compare as entry
from evaluated_runs import write_evaluation
from evaluation.comparison import bootstrap_means, compare, compare_runs, holm


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


def test_pairs_of_runs():
    teacher, low, middle = ({"a": scores(80) + shift, "b": scores(40, seed=1) + shift} for shift in (10, 0, 4))
    high = {"a": scores(80) + 6, "b": scores(40, seed=1) + 1}
    pairs = compare_runs({"high": high, "low": low, "middle": middle}, teacher)
    assert [(pair.run, pair.baseline) for pair in pairs] == [("high", "low"), ("middle", "high"), ("middle", "low")]
    first = pairs[0].results
    assert list(first) == ["average", "a", "b"]
    assert [first[name].gap_closed for name in first] == pytest.approx([35, 60, 10])
    for name in first:
        assert [pair.results[name].p_holm for pair in pairs] == holm([pair.results[name].p for pair in pairs])
    (alone,) = compare_runs({"middle": middle, "teacher": teacher}, low)
    assert alone.run == "teacher" and alone.results["average"].gap_closed is None


# --- evaluations on disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(tmp_path):
    """Writes an evaluation of a run: 40 examples, whose ROUGE-L is `mean` and noise of the seed."""

    def write(run: str, mean: float, name: str = "dolly", **settings):
        return str(write_evaluation(tmp_path / run, name, ["red"] * 40, lambda s: scores(40, mean - 20, s), **settings))

    return write


def run_compare(tmp_path, capsys, *words, code=0) -> str:
    try:
        entry.main([*words, "--save-dir", str(tmp_path / "out")])
    except SystemExit as end:
        assert end.code == code
        return capsys.readouterr().err
    assert code == 0
    return capsys.readouterr().out


def test_runs_are_compared(tmp_path, capsys, evaluated):
    for name in ("dolly", "vicuna"):
        sft, todi, teacher = evaluated("sft", 20, name), evaluated("todi", 25, name), evaluated("teacher", 30, name)
    evaluated("todi", 99, seeds=(10, 20, 30), max_length=99)  # in another way
    evaluated("sft", 0, seeds=(30,))
    out = run_compare(tmp_path, capsys, sft, todi, "--teacher", teacher)
    line = "todi - sft  +5.00 [5.00, 5.00]  p < 0.001  wins 80 ties 0 losses 0  gap closed 50 %"
    assert line in out and len(re.findall("todi - sft", out)) == 3
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    (pair,) = found["pairs"]
    assert (pair["run"], pair["baseline"], pair["results"]["dolly"]["wins"]) == ("todi", "sft", 40)
    assert found["runs"]["todi"]["mean"]["dolly"] == pytest.approx(
        np.mean([scores(40, 5, s) for s in (10, 20)]), abs=1e-4
    )


def test_a_run_against_itself_does_not_differ(tmp_path, capsys, evaluated):
    same = [evaluated(name, 20) for name in ("a", "b")]
    assert "b - a  +0.00 [0.00, 0.00]  p = 1.000  wins 0 ties 40 losses 0" in run_compare(tmp_path, capsys, *same)


def test_seeds_that_are_not_common_are_told(tmp_path, capsys, evaluated):
    runs = evaluated("a", 20, seeds=(10,)), evaluated("b", 20, seeds=(20,))
    assert "dolly: no seed in common, so each run's own seeds count" in run_compare(tmp_path, capsys, *runs)


def test_what_is_not_compared_is_told(tmp_path, capsys, evaluated):
    """Sets of one run only, or evaluated in different ways; and that there is a further common way."""
    runs = [evaluated(name, 20) for name in ("a", "b")]
    for run in ("a", "b"):
        evaluated(run, 20, "vicuna", max_length=len(run) if run == "a" else 512)
        evaluated(run, 21, decoding={"do_sample": False})
    evaluated("a", 20, "sinst")
    out = run_compare(tmp_path, capsys, *runs)
    assert "not compared: vicuna: max_length: 1 for a, 512 for b (--max-length)" in out
    assert "not compared: sinst: b not evaluated on it (--data-dir)" in out
    assert "1 other ways to evaluate are common to all runs; compared is {'do_sample': False}" in out


def test_mistakes_of_a_comparison(tmp_path, capsys, evaluated):
    sft, todi = evaluated("sft", 20), evaluated("todi", 20, decoding={"do_sample": False})
    (tmp_path / "new").mkdir()

    def said(*words):
        return run_compare(tmp_path, capsys, *words, code=2)

    assert "decoding.do_sample: True for sft, False for todi (--do-sample)" in said(sft, todi)
    assert "no evaluation with the same settings is common to all runs" in said(sft, todi)
    assert f"RUN_OR_CKPT {sft}: pass two or more to compare" in said(sft)
    assert "one is named twice" in said(sft, sft)
    assert f"RUN_OR_CKPT {tmp_path}/new: no evaluation of it in " in said(sft, f"{tmp_path}/new")
    assert "--metric bleu: " in said(sft, evaluated("b", 20), "--metric", "bleu")
    evaluated("todi", 20)
    results = tmp_path / "todi/eval/epoch1_step2_loss1.0"
    for settings in results.glob("*/*/settings.json"):
        settings.write_text(settings.read_text().replace('"weights": "todi"', f'"weights": "{settings.parent.name}"'))
    assert f"holds evaluations of several checkpoints; pass the checkpoints, and --results {results}" in said(
        sft, str(results)
    )


def test_results_elsewhere_are_found(tmp_path, capsys, evaluated):
    """Those of several checkpoints in one folder, as --save-dir leaves them, however the paths are written."""
    place = tmp_path / "results"
    sft, todi = (evaluated(run, mean, save_dir=place) for run, mean in (("sft", 20), ("todi", 25)))
    evaluated("sft", 99)  # beside the checkpoint
    out = run_compare(tmp_path, capsys, sft, f"{todi}/epoch1_step2_loss1.0", "--results", str(place))
    assert "todi - sft  +5.00 [5.00, 5.00]" in out
    err = run_compare(tmp_path, capsys, sft, todi, code=2)
    assert "loss1.0: no evaluation of it in" in err and "or name the folder with --results" in err
    err = run_compare(tmp_path, capsys, sft, evaluated("other", 20), "--results", str(place), code=2)
    assert f"loss1.0: no evaluation of it in {place}" in err
