"""Resolves a path to a checkpoint: the path itself, or the best checkpoint of a run.

In: a path as passed to a flag. Out: the folder of one model or LoRA adapter, or the path unchanged if it is not a
folder (a hub id, or a mistake that `models/files.py` reports); also the flags of the run that wrote a checkpoint.
"""

import json
import math
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_FILES = ("config.json", "adapter_config.json")


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
