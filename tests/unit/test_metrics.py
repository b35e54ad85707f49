"""The records of metrics.jsonl: which steps enter the averages; and what args.json says of the run's origin."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from criterions.fused import LossSums
from runtime.log import duration
from training import metrics, provenance
from training.metrics import Metrics

BATCH = SimpleNamespace(tokens=10, labels_N=torch.zeros(4), input_ids_RT=torch.zeros(1, 12))


@pytest.fixture
def log(tmp_path, monkeypatch) -> Metrics:
    monkeypatch.setattr(metrics.dist, "all_reduce", lambda tensor: tensor.mul_(2))  # two ranks, of equal sums
    monkeypatch.setattr(metrics.dist, "get_world_size", lambda: 2)
    return Metrics(tmp_path / "metrics.jsonl", torch.device("cpu"), main=True)


def step(log: Metrics, loss: float, applied: bool = True, grad_norm: float = 1.0) -> None:
    log.add(LossSums(*(torch.tensor(4 * loss),) * 3), BATCH)
    log.end_step(applied, torch.tensor(grad_norm))


def test_a_step_that_was_not_applied_is_excluded_from_the_averages(log):
    step(log, 2.0, grad_norm=3.0)
    step(log, 7.0, applied=False, grad_norm=float("inf"))  # a finite loss whose gradient is not
    step(log, float("nan"), applied=False, grad_norm=float("nan"))
    step(log, 4.0, grad_norm=5.0)
    record = log.log(4, 1, 0.1, {})
    assert (record["loss"], record["grad_norm"], record["skipped_steps"]) == (3.0, 4.0, 2)
    assert record["tokens"] == 2 * 2 * 10


def test_skipped_steps_are_counted_in_the_next_record(log):
    step(log, 7.0, applied=False)
    assert log.log(1, 1, 0.1, {}) is None
    resumed = Metrics(log.path, log.device, main=True)
    resumed.load_state_dict(log.state_dict())
    step(resumed, 2.0, grad_norm=3.0)
    record = resumed.log(2, 1, 0.1, {})
    assert (record["loss"], record["grad_norm"], record["skipped_steps"]) == (2.0, 3.0, 1)
    assert [json.loads(line)["step"] for line in log.path.open()] == [2]


def test_a_duration_reads_like_a_clock():
    assert [duration(seconds) for seconds in (0.2, 750, 90061)] == ["0:00:00", "0:12:30", "1 day, 1:01:01"]


def test_the_origin_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance.dist, "get_world_size", lambda: 2)
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
