"""Where the records of a run go: metrics.jsonl and dev_metrics.jsonl, and the trackers of --report-to.

A record is one JSON object per logged step or dev evaluation. A further destination is a further class with `write`;
a further tracker is one with an entry in TRACKERS. Trackers are set up by their own environment variables
(WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...). A resumed run continues the run that it
has there: its id is in <save_dir>/resume/trackers.json.
"""

import importlib
import importlib.util
import json
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from runtime.atomic import as_write_error, write_text
from runtime.ranks import is_main_process

Record = dict[str, float | str | None]
DIGITS = 4  # significant ones, of what is written per position
PREFIXES = {"metrics": "train", "dev_metrics": "dev"}  # of the names in a tracker, by file


class MetricWriter(Protocol):
    """A destination of records."""

    def write(self, record: Record) -> None:
        """Called between two steps, on rank 0. Raises WriteError."""


class Tracker(Protocol):
    """A program that shows curves. id: of the run in it; None if the tracker made none."""

    id: str | None

    def log(self, values: dict[str, float], step: int) -> None:
        """Called between two steps, on rank 0."""


class JsonlWriter:
    """Appends each record to a file, as one line of JSON in which a non-finite number is null."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, record: Record) -> None:
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with as_write_error(self.path), self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


class TrackerWriter:
    """Sends the finite numbers of each record to a tracker, as `prefix`/name."""

    def __init__(self, tracker: Tracker, prefix: str):
        self.tracker, self.prefix = tracker, prefix

    def write(self, record: Record) -> None:
        numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        step = int(finite.pop("step"))
        self.tracker.log({f"{self.prefix}/{name}": value for name, value in finite.items()}, step)


class TensorBoard:
    """Event files in <save_dir>/tensorboard; the folder is the run. Steps that are taken again replace the old ones."""

    id = None

    def __init__(self, save_dir: Path, id: str | None, flags: dict[str, object], step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(save_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run would lose two minutes, which its resumption does not repeat


class WeightsAndBiases:
    """One run of wandb; it ends with the process."""

    def __init__(self, save_dir: Path, id: str | None, flags: dict[str, object], step: int):
        wandb = importlib.import_module("wandb")
        self.id = id or uuid.uuid4().hex[:8]
        self._run = wandb.init(id=self.id, resume="allow", name=save_dir.name, dir=str(save_dir), config=flags)

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)


class MLflow:
    """One run of mlflow; it ends with the process. Values are sent in the background."""

    LONGEST_PARAMETER = 500  # characters, of a tracking server

    def __init__(self, save_dir: Path, id: str | None, flags: dict[str, object], step: int):
        self._mlflow = importlib.import_module("mlflow")
        run = self._mlflow.start_run(run_id=id, run_name=None if id else save_dir.name)
        self.id = run.info.run_id
        if id is None:  # a parameter cannot be changed later
            self._mlflow.log_params({name: str(value)[: self.LONGEST_PARAMETER] for name, value in flags.items()})

    def log(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step, synchronous=False)


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--report-to {name}: the package is not installed; pip install {name}, or drop it")


def open_trackers(names: Sequence[str], save_dir: Path, flags: dict[str, object], step: int) -> list[Tracker]:
    """The trackers, each with the run that this run has in it already; none except on rank 0. Raises WriteError.

    step: after which the run continues; 0 for one that begins.
    """
    if not is_main_process() or not names:
        return []
    path = save_dir / "resume" / "trackers.json"
    ids = json.loads(path.read_text()) if path.is_file() else {}
    trackers = {name: TRACKERS[name](save_dir, ids.get(name), flags, step) for name in dict.fromkeys(names)}
    ids |= {name: tracker.id for name, tracker in trackers.items() if tracker.id is not None}
    if ids:
        write_text(path, json.dumps(ids) + "\n")
    return list(trackers.values())


def record_writers(save_dir: Path, name: str, trackers: Sequence[Tracker] = ()) -> list[MetricWriter]:
    """The writers of one kind of record (`metrics`, `dev_metrics`); none except on rank 0."""
    if not is_main_process():
        return []
    return [JsonlWriter(save_dir / f"{name}.jsonl"), *(TrackerWriter(t, PREFIXES[name]) for t in trackers)]


def rounded(value: list | float | bool) -> list | float | bool | None:
    """Numbers to DIGITS significant digits; a non-finite one is null."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, bool):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
