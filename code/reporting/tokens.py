"""Data of the token view: answers as tokens, with every measure and both models' first choices, over epochs.

Written as small integers (report.js divides by SCALE and PROBABILITY), as many rows as fit BUDGET, since a probe of a
long run would make a page that no browser opens quickly.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reporting.probes import pooled
from reporting.run import Group, ProbeRow, Run
from reporting.titles import titles

BUDGET = 2_200_000  # characters of JSON, of all runs together
MOST_EPOCHS, MOST_ROWS = 8, 24  # of a run
SCALE, PROBABILITY, WEIGHT = 1_000, 10_000, 100
FULL = 0.98  # quantile of a measure that gets the full colour


class Measure(NamedTuple):
    """kind: how it is coloured: from nothing to full, around a middle, or yes and no."""

    field: str
    label: str
    kind: str
    middle: float = 0.0


MEASURES = (
    Measure("forward_kl", "KL(p ‖ q)", "amount"),
    Measure("reverse_kl", "KL(q ‖ p)", "amount"),
    Measure("todi_weight", "ToDi weight", "around", 0.5),
    Measure("student_entropy", "student entropy", "amount"),
    Measure("teacher_entropy", "teacher entropy", "amount"),
    Measure("nll", "NLL", "amount"),
    Measure("agreement", "same first choice", "yes"),
    Measure("selected", "AdaKD selection", "yes"),
    Measure("temperature", "AdaKD temperature", "around", 1.0),
    Measure("difficulty", "AdaKD difficulty", "amount"),
)


def token_view(groups: Sequence[Group]) -> dict | None:
    """None if no run was probed."""
    probed = [group for group in groups if group.first.probe]
    if not probed:
        return None
    vocabulary: dict[str, int] = {}
    runs = [
        {"label": group.label, "color": group.color, "rows": _rows(group.first, vocabulary, BUDGET // len(probed))}
        for group in probed
    ]
    rows = [row for group in probed for row in group.first.probe]
    return {
        "measures": [found for measure in MEASURES if (found := _range(measure, rows))],
        "runs": runs,
        "vocabulary": list(vocabulary),
        "scale": SCALE,
        "probability": PROBABILITY,
        "weight": WEIGHT,
    }


def _range(measure: Measure, rows: Sequence[ProbeRow]) -> dict | None:
    """The measure with the values of its colours' ends, the same in all runs; None if no row has it."""
    trained = [row for row in rows if row.epoch > 0]  # an untrained student would pale all the others
    values_N = pooled(trained or rows, measure.field)
    values_N = values_N[np.isfinite(values_N)]
    if not len(values_N):
        return None
    far = float(np.quantile(abs(values_N - measure.middle), FULL)) or 1.0
    if measure.field == "todi_weight":
        far = measure.middle  # a share: 0 to 1
    low = measure.middle - far if measure.kind == "around" else 0.0
    high = 1.0 if measure.kind == "yes" else measure.middle + far
    return {**measure._asdict(), "low": low, "high": high}


def _rows(run: Run, vocabulary: dict[str, int], budget: int) -> list[dict]:
    by_row: dict[int, list[ProbeRow]] = {}
    for row in run.probe:
        by_row.setdefault(row.row, []).append(row)
    shown, used = [], 0
    names = titles([of_row[0].prompt for of_row in by_row.values()])
    for title, of_row in list(zip(names, by_row.values()))[:MOST_ROWS]:
        of_row.sort(key=lambda row: row.epoch)
        indices = np.unique(np.linspace(0, len(of_row) - 1, MOST_EPOCHS).round().astype(int))
        first = of_row[0]
        row = {
            "title": title,
            "place": first.place,
            "prompt": first.prompt,
            "tokens": [_number(token, vocabulary) for token in first.tokens],
            "epochs": [_epoch(of_row[i], vocabulary) for i in indices],
        }
        used += len(json.dumps(row, separators=(",", ":")))
        if shown and used > budget:
            break
        shown.append(row)
    return shown


def _epoch(row: ProbeRow, vocabulary: dict[str, int]) -> dict:
    values = {
        measure.field: _whole(row.values[measure.field], SCALE) for measure in MEASURES if measure.field in row.values
    }
    tops = [_top(row, n, vocabulary) for n in range(len(row.tokens))]
    return {"epoch": row.epoch, "step": row.step, "values": values, "tops": tops}


def _top(row: ProbeRow, n: int, vocabulary: dict[str, int]) -> list[int | None]:
    """token, q, p, w of each entry, in a row. Both models' first choices are those with the largest q and p."""
    found: dict[str, list] = {}
    for top in (row.student_top, row.teacher_top):
        if top is not None:
            found |= dict(zip(top.tokens[n], top.values_NK3[n]))
    flat: list[int | None] = []
    for token, (q, p, w) in found.items():
        flat += [_number(token, vocabulary), *_whole([q, p], PROBABILITY), *_whole([w], WEIGHT)]
    return flat


def _number(token: str, vocabulary: dict[str, int]) -> int:
    return vocabulary.setdefault(token, len(vocabulary))


def _whole(values: Sequence[float] | np.ndarray, scale: int) -> list[int | None]:
    return [round(float(value) * scale) if np.isfinite(value) else None for value in values]
