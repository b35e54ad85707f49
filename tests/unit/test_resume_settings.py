"""What may change when a run is resumed, what its owners save, what a log keeps, and what starting over moves aside."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from arguments import TrainConfig, parse_train_arguments
from runtime import locks
from training import state as state_module
from training.resume import cut_log, lock_folder, move_aside, to_move_aside
from training.resume_settings import ADDED_FLAGS, LENGTH_FLAGS, MAY_CHANGE, check_layout, check_settings
from training.state import Position, Resume, RunState, read_state

BASE = ("--model-path", "m", "--data-dir", "d", "--save-dir", "outputs/x")


def settings(*argv: str, **other) -> tuple[TrainConfig, dict]:
    config = parse_train_arguments([*BASE, *argv])
    made = {
        "world_size": 2,
        "data": {"train": "a", "dev": None},
        "flags": config.flags,
        "deepspeed": {"zero_optimization": {"stage": 1}},
        "layout": "packed",
    }
    return config, made | other


def continued(before: tuple, after: tuple, tmp_path, counts_steps: bool = False, **position) -> list[str]:
    old, (config, new) = before[1], after
    at = asdict(Position(epoch=3, step_in_epoch=2, step=22)) | position
    start = {"settings": json.loads(json.dumps(old)), "position": at, "criterion_counts_steps": counts_steps}
    start["best"] = [[-2.0, "epoch1_step9"], [-1.0, "epoch2_step18"]]
    return check_settings(start, new, config.train, tmp_path)


REFUSED = {
    "flag": (["--kd-objective", "todi"], {}, "--kd-objective todi (it has None)"),
    "generation ranks the checkpoints": (["--eval-gen"], {}, "--eval-gen True (it has False)"),
    "rows": ([], {"data": {"train": "b", "dev": None}}, "--data-dir (another train.jsonl)"),
    "stage": ([], {"deepspeed": {}}, "--deepspeed_config None (the settings in it differ)"),
    "end of a cosine": (["--num-epochs", "20"], {}, "--num-epochs 20 (it has 10)"),
    "before its step": (["--total-iters", "21"], {}, "--total-iters 21 (it has"),
    "before its epoch": (["--num-epochs", "2"], {}, "--num-epochs 2 (it has"),
    "all at once": (["--lr", "0.1"], {"world_size": 1}, "--lr 0.1 (it has 0.0005), 1 processes (it has 2)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_run_is_refused_by_name(case, tmp_path):
    argv, other, message = REFUSED[case]
    with pytest.raises(ValueError) as refusal:
        continued(settings(), settings(*argv, **other), tmp_path)
    assert message in str(refusal.value)
    assert "--resume never" in str(refusal.value) and "another --save-dir" in str(refusal.value)


def test_a_state_from_before_a_flag_has_its_value(tmp_path):
    config, before = settings()
    before["flags"] = {name: value for name, value in before["flags"].items() if name != "prompt_template"}
    assert continued((config, before), settings(), tmp_path) == []
    with pytest.raises(ValueError, match=r"--prompt-template none \(it has alpaca\)"):
        continued((config, before), settings("--prompt-template", "none"), tmp_path)


def test_a_state_from_before_sampled_rows_had_none(tmp_path):
    config, before = settings()
    before["flags"] = {name: value for name, value in before["flags"].items() if "gen" not in name}
    assert continued((config, before), settings(), tmp_path) == []
    with pytest.raises(ValueError, match=r"--student-gen True \(it has False\)"):
        continued((config, before), settings("--student-gen"), tmp_path)


@pytest.mark.parametrize(
    ("schedule", "argv", "refused"),
    [
        ("mixed", ["--eval-interval", "2"], False),
        ("adaptive", ["--eval-interval", "2"], True),
        ("adaptive", ["--save-interval", "2"], True),
        ("mixed", ["--total-iters", "90"], False),
        ("adaptive", ["--total-iters", "90"], True),
        ("adaptive", ["--total-iters", "90", "--replay-ratio", "constant"], False),
    ],
)
def test_what_moves_the_share_of_sampled_steps_stays(schedule, argv, refused, tmp_path):
    rows = ["--student-gen", "--gen-schedule", schedule, "--lr-decay-style", "constant", *argv[2:]]
    with pytest.raises(ValueError, match=f"{argv[0]} {argv[1]} .it has ") if refused else nullcontext():
        continued(settings(*rows), settings(*rows, *argv[:2]), tmp_path)


def test_what_is_written_and_how_it_is_computed_may_change(tmp_path):
    argv = ["--log-interval", "3", "--loss-chunk-mb", "8", "--keep-best-n-checkpoints", "4", "--data-dir", "e"]
    notes = sorted(continued(settings(), settings(*argv), tmp_path))
    assert notes[:2] == ["--data-dir d -> e", "--keep-best-n-checkpoints 1 -> 4"]
    assert notes[2:] == ["--log-interval 10 -> 3", "--loss-chunk-mb None -> 8"]
    assert continued(settings(), settings("--save-dir", "outputs/moved"), tmp_path) == []


CONSTANT = ("--lr-decay-style", "constant", "--warmup-iters", "5")


def test_the_end_may_move_where_nothing_before_it_depends_on_it(tmp_path):
    before, after = settings(*CONSTANT), settings(*CONSTANT, "--num-epochs", "20", "--total-iters", "99")
    assert len(continued(before, after, tmp_path)) == 2
    with pytest.raises(ValueError, match="--num-epochs 20"):
        continued(before, after, tmp_path, counts_steps=True)


@pytest.mark.parametrize(("argv", "flag"), [(CONSTANT, "--model-path"), (("--peft", "lora"), "--peft-path")])
def test_a_finished_run_says_how_to_train_further(tmp_path, argv, flag):
    with pytest.raises(ValueError) as refusal:
        continued(settings(*argv), settings(*argv, "--num-epochs", "20"), tmp_path, finished=True)
    message = str(refusal.value)
    assert message.startswith(f"--num-epochs 20: the run in {tmp_path} is finished after 22 steps")
    assert f"{flag} {tmp_path}/epoch2_step18 and another --save-dir" in message


BUDGET = ("--tokens-per-micro-batch", "600")


@pytest.mark.parametrize(
    ("before", "now", "budget", "refused"),
    [
        ("packed", "padded", BUDGET, True),
        ("padded", "packed into one row", BUDGET, True),
        ("packed", "packed into one row", BUDGET, False),
        ("packed", "padded", (), False),
    ],
)
def test_a_layout_that_makes_other_steps_is_refused(tmp_path, before, now, budget, refused):
    config, new = settings(*budget)
    resume = Resume(tmp_path, new, {"settings": new | {"layout": before}})
    with pytest.raises(ValueError, match="600 then makes other steps") if refused else nullcontext():
        check_layout(resume, now, config.train)
    assert resume.settings["layout"] == now


def test_padding_instead_of_packing_is_refused_before_the_models_are_loaded(tmp_path):
    off = ("--packing", "False")
    with pytest.raises(ValueError, match=r"--packing False \(it has packed batches"):
        continued(settings(*BUDGET), settings(*BUDGET, *off), tmp_path)
    assert continued(settings(*BUDGET, layout="padded"), settings(*BUDGET, *off), tmp_path)
    assert continued(settings(), settings(*off), tmp_path)


HOLDER = """
import os, sys, time
from pathlib import Path
from runtime.locks import lock
lock = lock(Path(sys.argv[1]) / ".lock")
if not os.fork():
    time.sleep(600)  # as a tokenising process would that outlives its run
print("held", flush=True)
time.sleep(600)
"""


def test_two_runs_in_one_folder_are_refused_while_the_first_lives(tmp_path, root):
    environment = os.environ | {"PYTHONPATH": str(root / "code")}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=f"--save-dir {tmp_path}: another run uses it .*pid {holder.pid}, since"):
            lock_folder(tmp_path)
        holder.kill()
        holder.wait()
        lock, note = lock_folder(tmp_path)  # although the killed run's child lives
        assert note is None and f"pid {os.getpid()}" in (tmp_path / ".lock").read_text()
        lock.close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


def test_a_folder_that_cannot_be_locked_is_noted(tmp_path, monkeypatch):
    no_locks = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr(locks.fcntl, "lockf", mock.Mock(side_effect=no_locks))
    assert "make sure that no other run uses it" in lock_folder(tmp_path)[1]


def test_the_lists_name_flags_that_exist():
    assert parse_train_arguments(BASE).flags.keys() >= MAY_CHANGE | {*LENGTH_FLAGS, *ADDED_FLAGS}


def test_a_log_loses_the_steps_that_are_taken_again_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in (2, 4, 6)]
    path.write_text("".join(lines) + '{"step": 8, "lo')
    cut_log(path, 4)
    assert path.read_text() == "".join(lines[:2])
    path.write_text("".join(lines)[:-1])
    cut_log(path, 6)
    assert path.read_text() == "".join(lines[:2])


def test_starting_over_moves_what_a_run_wrote_and_nothing_else(tmp_path):
    begins = Resume(tmp_path, {"flags": {"resume": "never"}})
    assert to_move_aside(begins) == []
    wrote = ["epoch1_step2_loss1.0", "eval", "metrics.jsonl", "resume", "train.log"]
    (tmp_path / "notes.txt").touch()
    for attempt in (1, 2):
        for name in wrote:
            (tmp_path / name).mkdir()
        assert move_aside(tmp_path, to_move_aside(begins)) == tmp_path / "previous" / str(attempt)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "previous"]
        assert sorted(path.name for path in (tmp_path / f"previous/{attempt}").iterdir()) == wrote


@pytest.mark.parametrize(("text", "what"), [("", "damaged"), ("{", "damaged"), ('{"format": 1}', "of format 1")])
def test_a_state_of_another_version_is_refused(tmp_path, text, what):
    assert read_state(tmp_path) is None
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume/state.json").write_text(text)
    with pytest.raises(ValueError, match=f"is {what}.*--resume never"):
        read_state(tmp_path)


def test_every_owner_saves_and_loads_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(state_module.dist, "barrier", lambda: None)
    engine = mock.Mock(module=torch.nn.Linear(1, 1), optimizer=SimpleNamespace(param_groups=[]))
    engine.load_checkpoint.return_value, engine.lr_scheduler.get_last_lr.return_value = ("", {}), []

    def run_state(step: int, start: dict | None = None, start_folder: Path | None = None) -> RunState:
        shared = {"position": Position(step=step), "schedule": Position(step=10 * step)}
        per_rank = {"criterion": torch.nn.Linear(1, 1), "buffer": torch.nn.Linear(2, 1)}
        return RunState(Resume(tmp_path, {}, start, start_folder), engine, shared, per_rank)

    saved = run_state(3)
    saved.save()
    loaded = run_state(0, read_state(tmp_path), tmp_path / "resume/step3")
    loaded.restore()
    assert (loaded.shared, loaded.saved) == (saved.shared, "step3")
    for name, owner in loaded.per_rank.items():
        assert torch.equal(owner.weight, saved.per_rank[name].weight)
