"""Resolves a path to a checkpoint: the path itself, or the best checkpoint of a run.

In: a path as passed to a flag. Out: the folder of one model or LoRA adapter, or the path unchanged if it is not a
folder (a hub id, or a mistake that `models/files.py` reports); also the flags of the run that wrote a checkpoint.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_FILES = ("config.json", "adapter_config.json")
LONGEST_NAME = 120  # of a folder


def locate(path: str) -> Path:
    """`path` relative to the working directory or, if it exists only there, relative to the repository."""
    return Path(path) if Path(path).exists() or not (ROOT / path).exists() else ROOT / path


def find_checkpoint(flag: str, path: str) -> str:
    """The model or adapter that `path` stands for: of a run folder, or a folder with one run, the best checkpoint.

    Raises ValueError if the folder holds several runs.
    """
    folder = locate(path)
    unresolved = path if folder == Path(path) else str(folder)
    if not folder.is_dir() or _is_checkpoint(folder):
        return unresolved
    checkpoints = [
        found for pattern in ("epoch*", "*/epoch*") for found in folder.glob(pattern) if _is_checkpoint(found)
    ]
    runs = sorted({checkpoint.parent for checkpoint in checkpoints})
    if len(runs) > 1:
        raise ValueError(f"{flag} {path}: holds several runs ({', '.join(run.name for run in runs[:3])}); name one")
    return str(max(checkpoints, key=_score)) if checkpoints else unresolved


def run_arguments(checkpoint: str) -> dict:
    """The args.json of the run that wrote `checkpoint`; empty if no run did. Raises ValueError if it is not JSON."""
    path = Path(checkpoint).parent / "args.json"
    if not _is_checkpoint(Path(checkpoint)) or not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, not UTF-8
        raise ValueError(f"{path}: not JSON ({error}); restore or delete it") from None


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in CHECKPOINT_FILES)


def _score(checkpoint: Path) -> tuple[float, ...]:
    """The larger, the better: highest dev ROUGE-L, else lowest dev loss (NaN is worst), else the latest."""
    values = dict.fromkeys(("rougel", "loss", "epoch", "step"), math.nan)
    values |= {name: float(value) for name, value in re.findall(r"([a-z]+)(nan|inf|[\d.]+)", checkpoint.name)}
    values["loss"] = -values["loss"]
    return tuple(-math.inf if math.isnan(value) else value for value in values.values())


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """A name for each, as short as it can be without being another's.

    That of its run, with as many of the folders above as it takes; of several checkpoints in a run also their own.
    """
    runs = [Path(path).resolve() if Path(path).is_dir() else Path(path) for path in checkpoints]
    runs = [run.parent if run.name.startswith("epoch") else run for run in runs]
    names = {}
    for run in runs:
        others = {other for other in runs if other != run}
        tails = ["/".join(run.parts[-depth:]) for depth in range(1, len(run.parts) + 1)]
        of_others = {"/".join(other.parts[-depth:]) for other in others for depth in range(1, len(other.parts) + 1)}
        names[run] = next((tail for tail in tails if tail not in of_others), tails[-1])
    return [
        names[run] if runs.count(run) == 1 else f"{names[run]}/{Path(path).name}"
        for run, path in zip(runs, checkpoints)
    ]


def tables_folder(save_dir: str | None, names: Sequence[str]) -> Path:
    """Where what compares several checkpoints goes. names: short and unique (`short_names`)."""
    if save_dir is not None:
        return Path(save_dir)
    name = "-".join(names).replace("/", "-")
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Path("outputs/tables") / name
