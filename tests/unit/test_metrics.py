"""The records of metrics.jsonl, how they are written, and what args.json says of the run's origin."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from criterions.fused import LossSums
from runtime.log import duration
from training import metrics, provenance
from training.metrics import Metrics
from training.writers import record_writers

CPU = torch.device("cpu")
BATCH = SimpleNamespace(tokens=10, labels_N=torch.zeros(4), input_ids_RT=torch.zeros(1, 12))


@pytest.fixture(autouse=True)
def two_ranks_of_equal_sums(monkeypatch):
    monkeypatch.setattr(metrics.dist, "all_reduce", lambda tensor: tensor.mul_(2))
    monkeypatch.setattr(metrics.dist, "get_world_size", lambda: 2)


def step(log: Metrics, loss: float, applied: bool = True, grad_norm: float = 1.0) -> None:
    log.add(LossSums(*(torch.tensor(4 * loss),) * 3), BATCH)
    log.end_step(applied, torch.tensor(grad_norm))


def test_steps_that_were_not_applied_are_counted_and_excluded_from_the_averages():
    log = Metrics(CPU)
    step(log, 7.0, applied=False, grad_norm=float("inf"))  # a finite loss whose gradient is not
    assert log.record(1, 1, 0.1, {}) is None
    resumed = Metrics(CPU)
    resumed.load_state_dict(log.state_dict())
    step(resumed, 2.0, grad_norm=3.0)
    step(resumed, float("nan"), applied=False, grad_norm=float("nan"))
    step(resumed, 4.0, grad_norm=5.0)
    record = resumed.record(4, 1, 0.1, {})
    assert (record["loss"], record["grad_norm"], record["skipped_steps"]) == (3.0, 4.0, 2)
    assert record["tokens"] == 2 * 2 * 10


def test_only_time_inside_steps_is_training_time(monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(seconds))
    log = Metrics(CPU)
    for _ in range(2):
        with log.timed():
            step(log, 2.0)
        next(seconds)  # saving
    with log.timed():
        step(log, 2.0)
        assert log.record(3, 1, 0.1, {})["step_time"] == 1


def test_a_writer_appends_lines_in_which_non_finite_numbers_are_null(tmp_path):
    (writer,) = record_writers(tmp_path, "metrics")
    writer.write({"step": 1, "loss": float("nan")})
    writer.write({"step": 2, "loss": 0.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n{"step": 2, "loss": 0.5}\n'


def test_a_duration_reads_like_a_clock():
    assert [duration(seconds) for seconds in (0.2, 750, 90061)] == ["0:00:00", "0:12:30", "1 day, 1:01:01"]


def test_the_origin_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def git() -> dict | None:
        origin = json.loads(json.dumps(provenance.provenance(["--lr", "1"])))
        assert origin["command"] == ["code/distillation.py", "--lr", "1"]
        assert origin["versions"]["torch"] == torch.__version__ and all(origin["versions"].values())
        assert origin["hardware"]["cpu"] and origin["hardware"]["memory_gb"] > 0
        return origin["git"]

    assert git() is None
    words = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for more in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*words, *more], check=True)
    commit = git()
    assert len(commit["commit"]) == 40 and not commit["dirty"]
    (tmp_path / "file").write_text("2")
    assert git() == commit | {"dirty": True}
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "inner")  # unpacked into somebody else's checkout
    (tmp_path / "inner").mkdir()
    assert git() is None
