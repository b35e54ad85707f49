"""Opens a run: finds the state to resume, locks --save-dir and prepares it to be written to.

    find_resume(config, settings, ranks)     only looks, as code/doctor.py does
    open_resume(config, settings)            on every rank: also locks and tidies up

In: the flags. Out: `Resume`, the same on every rank; or a ValueError where the state does not fit the flags or another
run uses --save-dir.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from arguments import DataArguments, TrainArguments, TrainConfig
from data_utils.manifest import sha256
from data_utils.sources import training_sources
from runtime.atomic import remove_unfinished, write_text
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.locks import Held, lock
from runtime.ranks import all_ranks, from_main_process, is_main_process, world_size
from training.resume_settings import check_settings, extension
from training.state import Position, Resume, file_sizes, read_state, remove_leftovers

LOCK = ".lock"
# What a run writes into its folder, in the order in which starting over moves it aside. The state goes first: without
# it, what a crash in between leaves cannot be resumed.
OUTPUTS = tuple(
    "resume epoch*_step* eval bad_steps metrics.jsonl dev_metrics.jsonl probe.jsonl diagnose.jsonl tensorboard "
    "report.html train.log args.json".split()
)


def open_resume(config: TrainConfig, deepspeed_settings: DeepSpeedSettings) -> Resume:
    """What there is to resume, in --save-dir or (--resume PATH) elsewhere.

    Every rank calls it, before anything is written. Raises ValueError, the same on all ranks.
    """
    save_dir = Path(config.train.save_dir)
    with all_ranks():
        locked = lock_folder(save_dir) if is_main_process() else None
    with all_ranks():
        resume = find_resume(config, deepspeed_settings, world_size()) if is_main_process() else None
        if resume is not None:
            _tidy(resume)
    resume = from_main_process(resume)
    if locked is not None:
        resume.lock, note = locked
        resume.notes += [note] if note else []
    with all_ranks():
        _check_shared(resume)
    return resume


def lock_folder(save_dir: Path) -> tuple[TextIO, str | None]:
    """One run per --save-dir. Returns as `runtime.locks.lock`; raises ValueError that names the run that holds it."""
    try:
        return lock(save_dir / LOCK)
    except Held as holder:
        raise ValueError(
            f"--save-dir {save_dir}: another run uses it ({holder}); wait until it ends, stop it, or pass another "
            "--save-dir"
        ) from None


def find_resume(config: TrainConfig, deepspeed_settings: DeepSpeedSettings, ranks: int) -> Resume:
    """What --save-dir or --resume PATH has for a run on so many ranks, and in `notes` what comes of it.

    Writes nothing. Raises ValueError where training would refuse the state.
    """
    args, save_dir = config.train, Path(config.train.save_dir)
    settings = {
        "world_size": ranks,
        "data": _digests(config.data),
        "flags": config.flags,
        "deepspeed": deepspeed_settings.from_file,
    }
    resume = Resume(save_dir, settings)
    source = _find_state(resume, args)
    if resume.start is None:
        return resume
    changed = check_settings(resume.start, settings, args, source)
    if resume.finished:
        further = extension(resume.start, source)
        resume.notes.append(f"this run is finished: nothing to do; {further}; --resume never starts it over")
        return resume
    step = resume.start["position"]["step"]
    resume.notes.append(f"continues {source} after step {step}" + "".join(f", {change}" for change in changed))
    resume.start_folder = source / "resume" / resume.start["folder"]
    _check_files(resume.start_folder, resume.start["files"], args)
    return resume


def _find_state(resume: Resume, args: TrainArguments) -> Path:
    """Sets `resume.start` if there is a state. Returns the folder of its run: --save-dir, or that of --resume PATH."""
    if args.resume != "never":
        resume.start = read_state(resume.save_dir)
    if resume.start is not None or args.resume in ("auto", "never"):
        return resume.save_dir
    source = Path(args.resume).parent if Path(args.resume).name == "resume" else Path(args.resume)
    resume.start = read_state(source)
    if resume.start is None or resume.finished:
        raise ValueError(f"--resume {args.resume}: no state of an unfinished run there; pass auto, never or a folder")
    return source


def _tidy(resume: Resume) -> None:
    """Leaves in --save-dir what belongs to the state that is resumed, and nothing half-written."""
    save_dir, own = resume.save_dir, resume.is_own
    save_dir.mkdir(parents=True, exist_ok=True)
    remove_unfinished(save_dir)
    if not own:
        if there := to_move_aside(resume):
            moved = move_aside(save_dir, there)
            resume.notes.append(f"what was in {save_dir} is now in {moved}")
        resume.folder.mkdir(exist_ok=True)
    position = Position(**resume.start["position"]) if own else Position()
    remove_leftovers(resume.folder, resume.start["folder"] if own else None)
    # A run that begins looks at step 0 again.
    for name in ("metrics", "diagnose"):
        cut_log(save_dir / f"{name}.jsonl", position.step)
    for name in ("dev_metrics", "probe"):
        cut_log(save_dir / f"{name}.jsonl", position.step - position.epoch_ends if own else -1)
    if resume.start is not None and not own:
        resume.start["best"] = []  # the other run's checkpoints stay its own


def to_move_aside(resume: Resume) -> list[Path]:
    """What an earlier run wrote into --save-dir and this run does not continue."""
    save_dir = resume.save_dir
    # An attempt that ended before its first save has nothing to resume and nothing to keep.
    begun = resume.folder.is_dir() and not any(save_dir.glob("epoch*_step*"))
    if resume.is_own or (begun and resume.settings["flags"]["resume"] != "never"):
        return []
    return [path for pattern in OUTPUTS for path in sorted(save_dir.glob(pattern))]


def move_aside(save_dir: Path, there: Sequence[Path]) -> Path:
    """Moves what `there` names, of --save-dir, into the next free previous/<N>, and returns that."""
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


def _check_files(folder: Path, files: dict[str, int], args: TrainArguments) -> None:
    there = file_sizes(folder)
    damaged = [name for name, size in files.items() if there.get(name) != size]
    if damaged:
        raise ValueError(
            f"--save-dir {args.save_dir}: the resume state {folder} is damaged ({damaged[0]} is missing or cut short); "
            "start over with --resume never (what is there moves to previous/)"
        )


def _check_shared(resume: Resume) -> None:
    if resume.start_folder is not None and not resume.start_folder.is_dir():
        raise ValueError(f"--save-dir {resume.save_dir}: seen by the first process only; all nodes must share it")


def _digests(args: DataArguments) -> dict[str, str | None]:
    """Of the rows, and of the file of --prompt-template if it is one."""
    train, dev = training_sources(args)
    digests = {"train": train.digest(), "dev": None if dev is None else dev.digest()}
    template = Path(args.prompt_template)
    return digests | ({"template": sha256(template)} if template.is_file() else {})
