"""The state from which a run resumes to the bit, in <save_dir>/resume/.

    state.json     the flags and the layout of batches that the run was started with, and the state of each owner that
                   all ranks share (position, best checkpoints), readable; names the folder below
    step<S>/       engine/ (DeepSpeed's checkpoint), rank<R>.pt (the state of each owner that a rank has for itself:
                   random numbers, log accumulators, criterion), common.pt (equal on all ranks, and too large for
                   state.json: the replay buffer; absent without one)

A save writes a new folder, flushes it, and replaces state.json: the rename of that file is the instant at which the
new state takes the place of the old. Whatever state.json does not name is left over from a crash and is removed at
the next start. A run that is finished keeps state.json alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from deepspeed import DeepSpeedEngine
from torch import distributed as dist

from runtime.atomic import as_write_error, flush, put_in_place, remove, remove_unfinished, sync, unfinished, write_text
from runtime.random_state import random_state, set_random_state
from runtime.ranks import all_ranks, is_first_of_node, is_main_process, rank

FORMAT = 2
COMMON = "common.pt"


class HasState(Protocol):
    """Owns a part of the run's state; saved and loaded between two steps."""

    def state_dict(self) -> dict | list:
        """For a per-rank owner, what `torch.load(weights_only=True)` accepts; for a shared one, JSON values."""

    def load_state_dict(self, state) -> None: ...


@dataclass
class Position:
    """Where a run is. `step` and `step_in_epoch` count optimiser steps taken.

    epoch_ends: the epoch's steps are taken; its evaluation and checkpoint may be missing.
    bad_steps: consecutive non-finite steps so far.
    """

    epoch: int = 1
    step_in_epoch: int = 0
    step: int = 0
    epoch_ends: bool = False
    finished: bool = False
    bad_steps: int = 0

    def next_step(self) -> None:
        self.step += 1
        self.step_in_epoch += 1

    def next_epoch(self) -> None:
        self.epoch += 1
        self.step_in_epoch, self.epoch_ends = 0, False

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(vars(Position(**state)))


class RandomNumbers:
    """The random-number generators of this process, as an owner of state."""

    def state_dict(self) -> dict:
        return random_state()

    def load_state_dict(self, state: dict) -> None:
        set_random_state(state)


@dataclass
class Resume:
    """What there is to resume, and where the run's own state goes; `training.resume` makes it.

    settings: what the state is compared with at the next start: flags, ranks, data, layout.
    start, start_folder: the state to resume, as in state.json, and its step<S>/; None for a run that begins.
    notes: what was found and done, for the log.
    lock: keeps other runs out of --save-dir while it lives (rank 0).
    """

    save_dir: Path
    settings: dict
    start: dict | None = None
    start_folder: Path | None = None
    notes: list[str] = field(default_factory=list)
    lock: object = None

    @property
    def folder(self) -> Path:
        return self.save_dir / "resume"

    @property
    def finished(self) -> bool:
        return self.start is not None and self.start["position"]["finished"]

    @property
    def is_own(self) -> bool:
        """Whether the state to resume is that of --save-dir. A finished one is: another's would be refused."""
        return self.start is not None and (self.start_folder is None or self.start_folder.parent == self.folder)


@dataclass
class RunState:
    """Saves and restores the whole run: the engine and every owner of state.

    shared: owners with the same state on every rank, in state.json, which is read before there is an engine.
    per_rank: all others, in rank<R>.pt, restored in this order.
    common: owners with the same state on every rank, in common.pt; they change in steps only.
    """

    resume: Resume
    engine: DeepSpeedEngine
    shared: Mapping[str, HasState]
    per_rank: Mapping[str, HasState]
    common: Mapping[str, HasState] = field(default_factory=dict)
    saved: str | None = None  # the folder that state.json names

    def restore(self) -> None:
        """Loads the state to resume, if there is one."""
        start, folder = self.resume.start, self.resume.start_folder
        if start is None:
            return
        engine = self.engine
        loaded, _ = engine.load_checkpoint(str(folder), tag="engine", load_module_strict=not self._frozen_weights)
        assert loaded is not None
        for group, lr in zip(engine.optimizer.param_groups, engine.lr_scheduler.get_last_lr()):
            group["lr"] = lr
        own = torch.load(folder / f"rank{rank()}.pt", weights_only=True)
        common = torch.load(folder / COMMON, weights_only=True) if self.common else {}
        for states, owners in ((start, self.shared), (own, self.per_rank), (common, self.common)):
            for name, owner in owners.items():
                owner.load_state_dict(states[name])
        if self.resume.is_own:
            self.saved = folder.name
        else:
            self.save()  # from here on it is a run of its own

    def save(self) -> None:
        """Replaces the state, between two steps, on every rank. Raises WriteError; the old state is then intact."""
        folder = self.resume.folder / f"step{self.shared['position'].step}"
        part = unfinished(folder)
        with as_write_error(folder):
            if is_main_process():
                remove(part)
                part.mkdir(parents=True)
            dist.barrier()
            try:
                self._write(part)
            except BaseException:
                remove(part)  # the next attempt may need the room
                raise
            if is_main_process():
                put_in_place(part, folder)
        self._commit(folder.name)

    def update(self) -> None:
        """After evaluation and checkpoint: the shared owners are saved anew; weights stay those of the last `save`.

        A finished run drops weights and optimiser, several times the size of its model.
        """
        self._commit(None if self.shared["position"].finished else self.saved)

    def _write(self, part: Path) -> None:
        self.engine.save_checkpoint(
            str(part), tag="engine", save_latest=False, exclude_frozen_parameters=self._frozen_weights
        )
        own = {name: owner.state_dict() for name, owner in self.per_rank.items()}
        torch.save(own, part / f"rank{rank()}.pt")
        if self.common and is_main_process():
            torch.save({name: owner.state_dict() for name, owner in self.common.items()}, part / COMMON)
        dist.barrier()
        if is_first_of_node():
            flush(part)
        dist.barrier()

    def _commit(self, name: str | None) -> None:
        self.saved = name
        with all_ranks():
            if is_main_process():
                self._point_to(name)

    def _point_to(self, name: str | None) -> None:
        state = {
            "format": FORMAT,
            "folder": name,
            **{name: owner.state_dict() for name, owner in self.shared.items()},
            "criterion_counts_steps": bool(self.per_rank["criterion"].state_dict()),
            "settings": self.resume.settings,
            "files": file_sizes(self.resume.folder / name) if name else {},
        }
        write_text(self.resume.folder / "state.json", json.dumps(state, indent=2) + "\n")
        remove_leftovers(self.resume.folder, name)

    @property
    def _frozen_weights(self) -> bool:
        """Under LoRA the weights below the adapter come from --model-path again, so that the state stays small."""
        return not all(parameter.requires_grad for parameter in self.engine.module.parameters())


def read_state(save_dir: Path) -> dict | None:
    """The content of state.json, or None if there is no such file. Raises ValueError."""
    path = save_dir / "resume" / "state.json"
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text())
    except ValueError:
        state = {}
    if state.get("format") != FORMAT:
        what = "damaged;"
        if "format" in state:
            what = f"of format {state['format']}, not {FORMAT}: resume it with the version that wrote it, or"
        raise ValueError(
            f"--save-dir {save_dir}: {path} is {what} start over with --resume never (what is there moves to previous/)"
        )
    return state


def remove_leftovers(folder: Path, keep: str | None) -> None:
    """Deletes what crashes left in <save_dir>/resume/: all but state.json and the folder that it names."""
    remove_unfinished(folder)
    for path in folder.glob("step*"):
        if path.name != keep:
            remove(path)
    sync(folder)


def file_sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of every file, by its path inside `folder`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}
