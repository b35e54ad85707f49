"""The state from which a run continues to the bit, in <save_dir>/resume/.

    state.json     where the run is, the flags and the layout of batches it was started with, its best checkpoints;
                   names the folder below
    step<S>/       engine/ (DeepSpeed's checkpoint), rank<R>.pt (random numbers, log accumulators, criterion)

A save writes a new folder, flushes it, and replaces state.json: the rename of that file is the instant at which the
new state takes the place of the old. Whatever state.json does not name is left over from a crash and is removed at
the next start. A run that is finished keeps state.json alone.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from deepspeed import DeepSpeedEngine
from torch import distributed as dist

from arguments import TrainArguments, TrainConfig
from criterions import Criterion
from data_utils.batches import Layout
from runtime.atomic import as_write_error, flush, put_in_place, remove, remove_unfinished, sync, unfinished, write_text
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.locks import Held, lock
from runtime.random_state import random_state, set_random_state
from runtime.ranks import all_ranks, from_main_process, is_main_process, rank, world_size
from training.checkpoints import BestCheckpoints
from training.metrics import Metrics

FORMAT = 2
LOCK = ".lock"
# What a run writes into its folder, and so what starting over moves aside: the state first, since half a run that has
# it could be continued.
OUTPUTS = tuple("resume epoch*_step* eval bad_steps metrics.jsonl dev_metrics.jsonl train.log args.json".split())
# Flags that may differ from those that the run was started with: what is written when, how the same sums are computed,
# and where the data lie, whose contents are compared.
MAY_CHANGE = frozenset(
    "save_dir resume resume_interval max_bad_steps log_interval save_interval eval_interval keep_best_n_checkpoints "
    "eval_batch_size loss_chunk_mb compile_loss gradient_checkpointing attn_implementation packing data_dir "
    "data_process_workers processed_data_dir force_process deepspeed_config precision global_batch_size teacher_cache "
    "model_type ckpt_name teacher_ckpt_name".split()
)
LENGTH_FLAGS = ("num_epochs", "total_iters")


@dataclass
class Position:
    """Where a run is. `step` and `step_in_epoch` count optimiser steps taken.

    epoch_ends: the epoch's steps are taken; its evaluation and checkpoint may be missing.
    """

    epoch: int = 1
    step_in_epoch: int = 0
    step: int = 0
    epoch_ends: bool = False
    finished: bool = False
    bad_steps: int = 0  # in a row, up to here

    def next_step(self) -> None:
        self.step += 1
        self.step_in_epoch += 1

    def next_epoch(self) -> None:
        self.epoch += 1
        self.step_in_epoch, self.epoch_ends = 0, False


@dataclass
class Resume:
    """What there is to continue, and where the run's own state goes.

    settings: what the state is compared with at the next start: flags, ranks, data, layout.
    start, start_folder: the state to continue from; None for a run that begins.
    notes: what `open_resume` found and did, for the log.
    lock: keeps other runs out of --save-dir while it lives (rank 0).
    """

    save_dir: Path
    settings: dict
    start: dict | None = None
    start_folder: Path | None = None
    notes: list[str] = field(default_factory=list)
    lock: object = None

    def set_layout(self, layout: Layout, args: TrainArguments) -> None:
        """How the models of this run take examples, known once they are loaded.

        Raises ValueError where a token budget makes the steps depend on it and they have been other ones so far.
        """
        self.settings["layout"] = layout
        before = self.start["settings"]["layout"] if self.start is not None else layout
        if args.tokens_per_micro_batch is not None and (before == "padded") != (layout == "padded"):
            raise ValueError(
                f"--save-dir {args.save_dir}: the run has taken its steps in {_kind(before)} batches, and would now "
                f"take {_kind(layout)} ones; --tokens-per-micro-batch {args.tokens_per_micro_batch} then makes other "
                "steps of the rows; start it with --packing and --attn-implementation as before, or start over with "
                "--resume never (what is there moves to previous/), or pass another --save-dir"
            )

    @property
    def folder(self) -> Path:
        return self.save_dir / "resume"

    @property
    def finished(self) -> bool:
        return self.start is not None and self.start["position"]["finished"]


@dataclass
class RunState:
    """All that a run is at one instant: what is saved, and put back."""

    resume: Resume
    engine: DeepSpeedEngine
    criterion: Criterion
    metrics: Metrics
    best: BestCheckpoints
    position: Position = field(default_factory=Position)
    saved: str | None = None  # the folder that state.json names

    def restore(self) -> None:
        """Puts everything back to where it was, if there is a state."""
        start, folder = self.resume.start, self.resume.start_folder
        if start is None:
            return
        engine = self.engine
        loaded, _ = engine.load_checkpoint(str(folder), tag="engine", load_module_strict=not self._frozen_weights)
        assert loaded is not None
        for group, lr in zip(engine.optimizer.param_groups, engine.lr_scheduler.get_last_lr()):
            group["lr"] = lr
        own = torch.load(folder / f"rank{rank()}.pt", weights_only=True)
        self.criterion.load_state_dict(own["criterion"])
        self.metrics.load_state_dict(own["metrics"])
        self.best.restore((score, self.resume.save_dir / name) for score, name in start["best"])
        self.position = Position(**start["position"])
        set_random_state(own["random"])
        if folder.parent == self.resume.folder:
            self.saved = folder.name
        else:
            self.save()  # from here on it is a run of its own

    def save(self) -> None:
        """Replaces the state, between two steps, on every rank. Raises WriteError; the old state is then intact."""
        folder = self.resume.folder / f"step{self.position.step}"
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
        """After what an epoch ends with: the weights are those of the last `save`; the position and the best are new.

        A finished run lets go of the weights and the optimiser, several times the size of its model.
        """
        self._commit(None if self.position.finished else self.saved)

    def _write(self, part: Path) -> None:
        self.engine.save_checkpoint(
            str(part), tag="engine", save_latest=False, exclude_frozen_parameters=self._frozen_weights
        )
        own = {
            "random": random_state(),
            "criterion": self.criterion.state_dict(),
            "metrics": self.metrics.state_dict(),
        }
        torch.save(own, part / f"rank{rank()}.pt")
        dist.barrier()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            flush(part)
        dist.barrier()

    def _commit(self, name: str | None) -> None:
        self.saved = name
        if is_main_process():
            state = {
                "format": FORMAT,
                "folder": name,
                "position": asdict(self.position),
                "best": [(score, folder.name) for score, folder in self.best.kept],
                "criterion_counts_steps": bool(self.criterion.state_dict()),
                "settings": self.resume.settings,
                "files": _sizes(self.resume.folder / name) if name else {},
            }
            write_text(self.resume.folder / "state.json", json.dumps(state, indent=2) + "\n")
            _remove_leftovers(self.resume.folder, name)
        dist.barrier()

    @property
    def _frozen_weights(self) -> bool:
        """Under LoRA the weights below the adapter come from --model-path again, so that the state stays small."""
        return not all(parameter.requires_grad for parameter in self.engine.module.parameters())


def open_resume(config: TrainConfig, deepspeed_settings: DeepSpeedSettings) -> Resume:
    """What there is to continue, in --save-dir or (--resume PATH) elsewhere; makes --save-dir ready to be written to.

    Every rank calls it, before anything is written. Raises ValueError, the same on all ranks, where the state does not
    fit the flags or another run uses --save-dir.
    """
    main = is_main_process()
    with all_ranks():
        locked = lock_folder(Path(config.train.save_dir)) if main else None
    with all_ranks():
        found = _prepare_folder(config, deepspeed_settings) if main else None
    found = from_main_process(found)
    if locked is not None:
        found.lock, note = locked
        found.notes += [note] if note else []
    if found.start_folder is not None and not found.start_folder.is_dir():
        raise ValueError(f"--save-dir {config.train.save_dir}: seen by the first process only; all nodes must share it")
    return found


def lock_folder(save_dir: Path) -> tuple[TextIO, str | None]:
    """One run per --save-dir. Returns as `runtime.locks.lock`; raises ValueError that names the run that holds it."""
    try:
        return lock(save_dir / LOCK)
    except Held as holder:
        raise ValueError(
            f"--save-dir {save_dir}: another run uses it ({holder}); wait until it ends, stop it, or pass another "
            "--save-dir"
        ) from None


def _prepare_folder(config: TrainConfig, deepspeed_settings: DeepSpeedSettings) -> Resume:
    args, save_dir = config.train, Path(config.train.save_dir)
    settings = {
        "world_size": world_size(),
        "data": {name: _hash(Path(config.data.data_dir) / f"{name}.jsonl") for name in ("train", "dev")},
        "flags": config.flags,
        "deepspeed": deepspeed_settings.from_file,
    }
    resume = Resume(save_dir, settings)
    own = read_state(save_dir) if args.resume != "never" else None
    if own is not None:
        resume.start, source = own, save_dir
    elif args.resume not in ("auto", "never"):
        source = Path(args.resume).parent if Path(args.resume).name == "resume" else Path(args.resume)
        resume.start = read_state(source)
        if resume.start is None or resume.start["position"]["finished"]:
            raise ValueError(
                f"--resume {args.resume}: no state of an unfinished run there; pass auto, never or a folder"
            )
    if resume.start is not None:
        changed = check_settings(resume.start, settings, args, source)
        step = resume.start["position"]["step"]
        resume.notes.append(f"continues {source} after step {step}" + "".join(f", {change}" for change in changed))
        if resume.start["folder"] is not None:
            resume.start_folder = source / "resume" / resume.start["folder"]
            _check_files(resume.start_folder, resume.start["files"], args)
    _tidy(resume, own is not None)
    return resume


def _tidy(resume: Resume, own: bool) -> None:
    """Leaves in --save-dir what belongs to the state that is continued, and nothing half-written."""
    save_dir = resume.save_dir
    save_dir.mkdir(parents=True, exist_ok=True)
    remove_unfinished(save_dir)
    if not own:
        # An attempt that was cut off before its first save has nothing to continue and nothing to keep.
        begun = resume.folder.is_dir() and not any(save_dir.glob("epoch*_step*"))
        if not begun or resume.settings["flags"]["resume"] == "never":
            moved = move_aside(save_dir)
            resume.notes += [f"what was in {save_dir} is now in {moved}"] if moved else []
        resume.folder.mkdir(exist_ok=True)
    position = Position(**resume.start["position"]) if own else Position()
    _remove_leftovers(resume.folder, resume.start["folder"] if own else None)
    cut_log(save_dir / "metrics.jsonl", position.step)
    cut_log(save_dir / "dev_metrics.jsonl", position.step - position.epoch_ends)
    if resume.start is not None and not own:
        resume.start["best"] = []  # the other run's checkpoints stay its own


def read_state(save_dir: Path) -> dict | None:
    """What state.json holds; None where there is none. Raises ValueError."""
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
            what = f"of format {state['format']}, not {FORMAT}: continue it with the version that wrote it, or"
        raise ValueError(
            f"--save-dir {save_dir}: {path} is {what} start over with --resume never (what is there moves to previous/)"
        )
    return state


def check_settings(start: dict, new: dict, args: TrainArguments, source: Path) -> list[str]:
    """The changes that do no harm, for the log. Raises ValueError that names the flags of those that would."""
    old, position = start["settings"], start["position"]
    pairs = {name: (value, new["flags"][name]) for name, value in old["flags"].items() if name in new["flags"]}
    changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    allowed = set(MAY_CHANGE)
    depends = args.lr_decay_style not in ("constant", "noam") or args.warmup_ratio or start["criterion_counts_steps"]
    if not depends:
        allowed |= set(LENGTH_FLAGS)  # nothing before the end depends on where the end is
    if position["finished"] and (longer := [name for name in LENGTH_FLAGS if name in changed]):
        raise ValueError(
            f"{_flag(longer[0])} {changed[longer[0]][1]}: the run in {source} is finished after {position['step']} "
            f"steps, and its optimiser state is gone; {extension(start, source)}"
        )
    wrong = [f"{_flag(name)} {now} (it has {was})" for name, (was, now) in changed.items() if name not in allowed]
    if old["deepspeed"] != new["deepspeed"]:
        wrong.append(f"--deepspeed_config {args.deepspeed_config} (the settings in it differ)")
    if old["world_size"] != new["world_size"]:
        wrong.append(f"{new['world_size']} processes (it has {old['world_size']})")
    if args.tokens_per_micro_batch and old["layout"] != "padded" and not new["flags"]["packing"]:
        wrong.append("--packing False (it has packed batches; a token budget makes other steps of padded ones)")
    wrong += [f"--data-dir (another {name}.jsonl)" for name in old["data"] if old["data"][name] != new["data"][name]]
    if not position["finished"] and args.num_epochs < position["epoch"]:
        wrong.append(f"--num-epochs {args.num_epochs} (it is in epoch {position['epoch']})")
    if args.total_iters is not None and args.total_iters < position["step"]:
        wrong.append(f"--total-iters {args.total_iters} (it has taken {position['step']} steps)")
    if wrong:
        raise ValueError(
            f"--save-dir {args.save_dir}: the run in {source} cannot be continued with {', '.join(wrong)}; start it as "
            "before, or start over with --resume never (what is there moves to previous/), or pass another --save-dir"
        )
    quiet = {"save_dir", "resume"}
    return [f"{_flag(name)} {was} -> {now}" for name, (was, now) in changed.items() if name not in quiet]


def extension(start: dict, source: Path) -> str:
    """How the model of a finished run is trained further."""
    lora = start["settings"]["flags"]["peft"] is not None
    flag, variable = ("--peft-path", "PEFT_PATH") if lora else ("--model-path", "CKPT_PATH")
    checkpoint = source / max(start["best"])[1]
    return (
        "to train further, start a new run, with a new optimiser and schedule, from its checkpoint: "
        f"{flag} {checkpoint} and another --save-dir ({variable} and SAVE_DIR in the scripts)"
    )


def move_aside(save_dir: Path) -> Path | None:
    """Moves what an earlier run wrote into the next free previous/<N>. Returns that, or None if there was nothing."""
    there = [path for pattern in OUTPUTS for path in sorted(save_dir.glob(pattern))]
    if not there:
        return None
    before = save_dir / "previous"
    number = 1 + max((int(path.name) for path in before.glob("*") if path.name.isdigit()), default=0)
    target = before / str(number)
    target.mkdir(parents=True)
    for path in there:
        path.rename(target / path.name)
    return target


def cut_log(path: Path, last_step: int) -> None:
    """Drops the records of steps that will be taken again, and a line that a crash left unfinished."""
    if not path.is_file():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= last_step]
    if kept != lines:
        write_text(path, "".join(kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else float("inf")
    except (ValueError, TypeError, KeyError):
        return float("inf")


def _remove_leftovers(folder: Path, keep: str | None) -> None:
    remove_unfinished(folder)
    for path in folder.glob("step*"):
        if path.name != keep:
            remove(path)
    sync(folder)


def _check_files(folder: Path, files: dict[str, int], args: TrainArguments) -> None:
    there = _sizes(folder)
    damaged = [name for name, size in files.items() if there.get(name) != size]
    if damaged:
        raise ValueError(
            f"--save-dir {args.save_dir}: the resume state {folder} is damaged ({damaged[0]} is missing or cut short); "
            "start over with --resume never (what is there moves to previous/)"
        )


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _hash(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kind(layout: Layout) -> str:
    return "padded" if layout == "padded" else "packed"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
