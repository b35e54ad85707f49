"""A figure as plain data, which report.js draws in the page (`page.py`) and matplotlib for papers (`paper.py`)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

MOST_POINTS = 300  # of a line; more are averaged


@dataclass(frozen=True)
class Series:
    """color: index of a run, None for what belongs to no run (the teacher, a guide). low, high: edges of a band."""

    label: str
    x: Sequence[float] | Sequence[str]
    y: Sequence[float]
    color: int | None = None
    mark: Literal["line", "points"] = "line"
    dash: bool = False
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Heat:
    """A matrix in colours. texts: of its cells; it is then a table in the page, and 0 the middle of its colours."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    texts: Sequence[Sequence[str]] | None = None

    @property
    def far(self) -> float:
        """The largest value without its sign, where the full colour is."""
        return max((abs(value) for row in self.values for value in row if value is not None), default=0) or 1.0


@dataclass(frozen=True)
class Figure:
    """key: names the files for papers. Exactly one of `series` and `heat` has content."""

    key: str
    title: str
    caption: str
    x: str
    y: str
    series: list[Series] = field(default_factory=list)
    heat: Heat | None = None
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None

    @property
    def plain(self) -> dict:
        return asdict(self)


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbours until at most MOST_POINTS are left."""
    size = max(1, math.ceil(len(x) / MOST_POINTS))
    cuts = np.arange(0, len(x), size)
    counts = np.diff([*cuts, len(x)])
    return np.add.reduceat(np.asarray(x, float), cuts) / counts, np.add.reduceat(np.asarray(y, float), cuts) / counts


def as_json(value):
    """The value with what JSON lacks replaced: arrays by lists, NaN and infinity by None; four significant digits."""
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
