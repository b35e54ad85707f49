"""The probe and the telemetry of whole runs: complete, the same however they run, without effect on the training."""

import json
from pathlib import Path

import pytest
import torch

from integration.launch import run_forks
from integration.runs import arguments, zero_config

DEV_ROWS = 5
DIAGNOSE = ("--diagnose-every", "2")
# name -> ranks, ZeRO stage, student, objective, more flags
RUNS = {
    "adakd": (1, 0, "full", "adakd", ("--log-interval", "1", "--report-to", "tensorboard", *DIAGNOSE)),
    "adakd quiet": (1, 0, "full", "adakd", ("--probe-rows", "0", "--no-eval-at-start")),
    "adakd cached": (1, 0, "full", "adakd", ("--teacher-cache", "CACHE")),
    "todi": (1, 0, "full", "todi", ("--num-epochs", "1", "--batch-size", "4")),
    "todi on two ranks": (2, 3, "full", "todi", ("--num-epochs", "1", *DIAGNOSE)),
    "sft": (1, 0, "lora", "sft", ("--num-epochs", "1", "--probe-rows", "2")),
}
TEACHERS = "forward_kl reverse_kl teacher_entropy agreement todi_weight teacher_top".split()
ADAKDS = "difficulty selected temperature".split()


@pytest.fixture(scope="module")
def results(tiny, rows, tmp_path_factory) -> tuple[Path, dict]:
    folder, jobs = tmp_path_factory.mktemp("telemetry"), []
    for name, (ranks, stage, student, objective, flags) in RUNS.items():
        argv = arguments(tiny, rows, folder / name, zero_config(folder, stage), objective, student)
        argv += [str(folder / "cache") if flag == "CACHE" else flag for flag in flags]
        jobs.append({"name": name, "ranks": ranks, "argv": argv, "attempts": [{}]})
    reports = run_forks(folder, jobs)
    assert all(set(attempt["codes"]) == {0} for (attempt,) in reports.values()), reports
    return folder, {name: attempt["finals"] for name, (attempt,) in reports.items()}


def records(results, run: str, name: str) -> list[dict]:
    return [json.loads(line) for line in (results[0] / run / f"{name}.jsonl").read_text().splitlines()]


def test_what_is_looked_at_does_not_change_the_training(results):
    watched, quiet = (results[1][name][0]["state"] for name in ("adakd", "adakd quiet"))
    assert watched == quiet
    assert not (results[0] / "adakd quiet/probe.jsonl").exists()
    assert [record["epoch"] for record in records(results, "adakd quiet", "dev_metrics")] == [1, 2]


def test_the_metrics_have_the_fields(results):
    expected = "student_entropy token_accuracy teacher_entropy agreement overlap todi_forward_share todi_reverse_share"
    for record in records(results, "adakd", "metrics"):
        assert all(record[name] >= 0 for name in expected.split())
        assert 0 < record["adakd_difficulty_q05"] < record["adakd_difficulty_q50"] < record["adakd_difficulty_q95"] < 1


def test_the_first_dev_record_has_the_teacher_and_a_worse_one_is_warned_of(results):
    first, *others = records(results, "adakd", "dev_metrics")
    assert (first["step"], first["epoch"]) == (0, 0) and first["loss"] > others[0]["loss"]
    assert not any("teacher_loss" in record for record in others)
    assert records(results, "adakd cached", "dev_metrics")[0] == pytest.approx(first)
    warned = "the teacher's dev NLL" in (results[0] / "adakd/train.log").read_text()
    assert warned == (first["teacher_loss"] >= first["loss"])


@pytest.mark.parametrize("name", [name for name in RUNS if "quiet" not in name])
def test_a_probe_looks_at_every_response_position(results, name):
    lines = records(results, name, "probe")
    epochs, rows = (2, 2) if name.startswith("adakd") else (1, 2)
    rows = 2 if name == "sft" else DEV_ROWS
    assert [(line["epoch"], line["row"]) for line in lines] == [(e, r) for e in range(epochs + 1) for r in range(rows)]
    for line in lines:
        assert line["place"].endswith(f"dev.jsonl:{line['row'] + 1}") and "### Response:" in line["prompt"]
        assert "".join(line["tokens"][:-1]).strip() and line["tokens"][-1] == "<eos>"
        lists = {key: value for key, value in line.items() if isinstance(value, list)}
        assert {len(value) for value in lists.values()} == {len(line["tokens"])}
        absent = (TEACHERS if name == "sft" else []) + ([] if "adakd" in name else ADAKDS)
        assert {key for key, value in line.items() if value is None} == set(absent)
        for text, q, p, w in (entry for position in line["student_top"] for entry in position):
            assert isinstance(text, str) and 0 <= q <= 1 and (p is None) == (w is None) == (name == "sft")
        nll = [position[0][1] for position in line["student_top"]]
        assert all(nll[i] >= position[-1][1] for i, position in enumerate(line["student_top"]))
    if "adakd" in name:
        share = [sum(map(sum, (line["selected"] for line in lines if line["epoch"] == e))) for e in range(3)]
        assert share[0] == int(0.9 * sum(len(line["tokens"]) for line in lines if line["epoch"] == 0))


@pytest.mark.parametrize("name", ["adakd", "todi on two ranks"])
def test_a_diagnosis_has_thirds_and_histograms(results, name):
    lines = records(results, name, "diagnose")
    assert [line["step"] for line in lines] == ([*range(2, 13, 2)] if name == "adakd" else [2])
    for line in lines:
        assert line["difficulty"]["easy"] < line["difficulty"]["middle"] < line["difficulty"]["hard"]
        assert sum(line["gradient_share"].values()) == pytest.approx(1, abs=1e-3)
        assert (line["temperature"] is None) == (name != "adakd")
        assert sum(line["student_entropy"]["counts"]) == line["positions"]


def numbers(lines: list[dict]) -> torch.Tensor:
    names = "nll forward_kl reverse_kl student_entropy teacher_entropy agreement todi_weight".split()
    return torch.tensor([[line[name][i] for name in names] for line in lines for i in range(len(line["nll"]))])


@pytest.mark.parametrize("runs", [("todi", "todi on two ranks"), ("adakd", "adakd cached")])
def test_ranks_sharding_and_cache_give_the_same_probe(results, runs):
    one, other = (records(results, name, "probe") for name in runs)
    assert [(line["place"], line["tokens"]) for line in one] == [(line["place"], line["tokens"]) for line in other]
    torch.testing.assert_close(numbers(one), numbers(other), rtol=5e-3, atol=5e-4)
