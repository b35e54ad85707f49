"""Where the records of a run go: one JSON object per logged step or dev evaluation.

A further destination is a further class with `write`, and its place in the list of `record_writers`.
"""

import json
import math
from pathlib import Path
from typing import Protocol

from runtime.atomic import as_write_error
from runtime.ranks import is_main_process


class MetricWriter(Protocol):
    """A destination of records."""

    def write(self, record: dict[str, float]) -> None:
        """Called between two steps, on rank 0. Raises WriteError."""


class JsonlWriter:
    """Appends each record to a file, as one line of JSON in which a non-finite number is null."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, record: dict[str, float]) -> None:
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with as_write_error(self.path), self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def record_writers(save_dir: Path, name: str) -> list[MetricWriter]:
    """The writers of one kind of record (`metrics`, `dev_metrics`); none except on rank 0."""
    return [JsonlWriter(save_dir / f"{name}.jsonl")] if is_main_process() else []
