"""Which model a path means: a checkpoint itself, or the best checkpoint of a run.

In: a path as a flag gives it. Out: the folder of one model or LoRA adapter, or the path unchanged if it is no folder (a
hub id, or a mistake that `models/files.py` explains); and the flags that the run behind a checkpoint was started with.
"""

import json
import math
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_FILES = ("config.json", "adapter_config.json")


def locate(path: str) -> Path:
    """`path` from the working directory, else from the repository, if it exists there."""
    return Path(path) if Path(path).exists() or not (ROOT / path).exists() else ROOT / path


def find_checkpoint(flag: str, path: str) -> str:
    """The model or adapter that `path` means. A run folder, or the folder above one run, means its best checkpoint.

    Raises ValueError if there are several runs.
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
    return str(max(checkpoints, key=_rank)) if checkpoints else unresolved


def run_arguments(checkpoint: str) -> dict:
    """The flags in the args.json of the run that wrote `checkpoint`; empty if no run did. Raises ValueError."""
    path = Path(checkpoint).parent / "args.json"
    if not _is_checkpoint(Path(checkpoint)) or not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, not UTF-8
        raise ValueError(f"{path}: not JSON ({error}); restore or delete it") from None


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in CHECKPOINT_FILES)


def _rank(checkpoint: Path) -> tuple[float, ...]:
    """Highest dev ROUGE-L, else lowest dev loss (NaN is the worst), else last."""
    score = dict.fromkeys(("rougel", "loss", "epoch", "step"), math.nan)
    score |= {name: float(value) for name, value in re.findall(r"([a-z]+)(nan|inf|[\d.]+)", checkpoint.name)}
    score["loss"] = -score["loss"]
    return tuple(-math.inf if math.isnan(value) else value for value in score.values())
