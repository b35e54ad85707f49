"""The table of several checkpoints: numbers, notes and files."""

import csv
import json

import numpy as np
import pytest

from evaluation.tables import Cell, Matrix

SCORES = {
    "sft": {"dolly": [20.0, 21.0, 23.5], "vicuna": [10.0, 14.0, 11.0]},
    "todi": {"dolly": [25.0, 24.0, 26.0], "vicuna": [12.0, 12.5, 15.0]},
}


def cell(values, seeds=(10, 20, 30), **settings) -> Cell:
    by_seed = dict(zip(seeds, values))
    of_metrics = {"rougeL": by_seed, "bleu": {seed: value / 2 for seed, value in by_seed.items()}}
    return Cell("0123", {"weights": str(values), "max_length": 512, **settings}, of_metrics)


def matrix() -> Matrix:
    return Matrix({run: {name: cell(values) for name, values in sets.items()} for run, sets in SCORES.items()})


def test_means_and_deviations_are_those_of_numpy():
    table = matrix()
    for run, sets in SCORES.items():
        per_seed = np.mean(list(sets.values()), axis=0)
        for name, values in {**sets, "average": per_seed}.items():
            found = table.summary(run, name, "rougeL")
            assert (found["mean"], found["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    header, rows = table.main_table()
    assert header == ["checkpoint", "dolly", "vicuna", "average"]
    assert rows[0] == ["sft", "21.50 ± 1.80", "11.67 ± 2.08", "16.58 ± 1.38"]
    assert table.notes() == []


def test_the_files_have_all_numbers(tmp_path):
    matrix().write(tmp_path / "out")
    records = json.loads((tmp_path / "out/scores.json").read_text())["scores"]
    assert len(records) == 2 * 3 * 2  # checkpoints, sets and average, metrics
    assert records[0] == {
        **{"checkpoint": "sft", "set": "dolly", "metric": "rougeL", "mean": 21.5, "std": pytest.approx(1.802776)},
        **{"seeds": {"10": 20.0, "20": 21.0, "30": 23.5}, "fingerprint": "0123"},
    }
    with (tmp_path / "out/scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean"]) for row in rows] == [record["mean"] for record in records]
    assert rows[0]["seeds"] == "10 20 30"
    text = (tmp_path / "out/scores.md").read_text()
    assert "| checkpoint | dolly | vicuna | average |\n| --- | ---: | ---: | ---: |\n| sft | 21.50 ± 1.80 |" in text
    assert "| checkpoint | bleu |\n" in text


def test_what_differs_is_said():
    """Settings, sets, seeds; and a metric that a checkpoint lacks leaves its place empty."""
    one = Cell("0123", {"weights": "a", "max_length": 192, "draws": None}, {"rougeL": {10: 1.0}})
    other = cell([1.0, 2.0], (10, 20), draws={"device": "cpu"})
    table = Matrix({"sft": {"dolly": one, "vicuna": cell([3.0], (20,))}, "todi": {"dolly": other}})
    assert table.notes() == [
        "not the same settings on dolly: max_length: 192 for sft, 512 for todi (--max-length)",
        "not the same settings on dolly: draws.device: None for sft, cpu for todi",
        "todi was not evaluated on vicuna: its average is over other sets",
    ]
    assert table.main_table()[1] == [["sft", "1.00", "3.00", "2.00"], ["todi", "1.50 ± 0.71", "", "1.50 ± 0.71"]]
    assert table.metrics_table()[1] == [["sft", ""], ["todi", "0.75 ± 0.35"]]
    assert table.text().startswith(table.notes()[0])
