"""Curves over training steps, of all groups in one figure: from metrics.jsonl and dev_metrics.jsonl."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from reporting.figures import Figure, Series, thinned
from reporting.run import Group, Run, is_number


class Curve(NamedTuple):
    """A figure of one field per group; `beside`: a field of the same figure that is drawn dashed, with its words."""

    field: str
    title: str
    y: str
    caption: str = ""
    beside: tuple[str, str] | None = None


TRAINING = (
    Curve("nll_loss", "Training NLL", "nats per token", "Cross-entropy of the references on the training batches."),
    Curve(
        "kd_loss", "Distillation loss", "per token", "The value of the objective; not comparable between objectives."
    ),
    Curve(
        "student_entropy",
        "Entropy",
        "nats",
        "Mean entropy of the next-token distributions: the students', and dashed the teacher's.",
        ("teacher_entropy", "teacher"),
    ),
    Curve("overlap", "Overlap with the teacher", "Σ min(p, q)", "The acceptance rate as a draft model of the teacher."),
    Curve("agreement", "Same first choice as the teacher", "share of tokens"),
    Curve("token_accuracy", "Token accuracy", "share of tokens", "The student's first choice is the reference token."),
    Curve("grad_norm", "Gradient norm", "before clipping"),
    Curve("lr", "Learning rate", ""),
)
OBJECTIVE = (
    Curve(
        "todi_forward_share",
        "Forward and reverse share",
        "share of the loss",
        "Absolute mass of ToDi's forward term and, dashed, of its reverse term.",
        ("todi_reverse_share", "reverse"),
    ),
)
ADAPTIVE = (
    Curve("adakd_ratio", "Share of tokens that train, r", "r", "LATF lowers r while the loss falls."),
    Curve("adakd_selected_loss", "Loss of the selected tokens", "per token", beside=("adakd_all_token_loss", "all")),
)
RIBBONS = (
    ("adakd_tau", "Temperature τ", "τ", "Median and 5–95 % of the selected tokens."),
    ("adakd_difficulty", "Difficulty", "difficulty", "Median and 5–95 % of the response tokens."),
)


def dev_figures(groups: Sequence[Group]) -> list[Figure]:
    loss = _over_seeds(groups, lambda run: _points(run.dev, "loss"))
    teacher = next((run.teacher_loss for group in groups for run in group.runs if run.teacher_loss is not None), None)
    steps = [x for series in loss for x in series.x]
    if teacher is not None and steps:
        loss.append(Series("teacher", [min(steps), max(steps)], [teacher, teacher], dash=True))
    caption = "Cross-entropy of the dev references after each evaluation; step 0 is before training."
    rouge = _over_seeds(groups, lambda run: _points(run.dev, "rougel"))
    return _drawn(
        Figure("dev_nll", "Dev NLL", caption, "step", "nats per token", loss),
        Figure("dev_rougel", "Dev ROUGE-L", "Of generated dev answers.", "step", "ROUGE-L", rouge),
    )


def curve_figures(groups: Sequence[Group], curves: Sequence[Curve]) -> list[Figure]:
    return _drawn(
        *(Figure(curve.field, curve.title, curve.caption, "step", curve.y, _series(groups, curve)) for curve in curves)
    )


def average_figure(groups: Sequence[Group]) -> list[Figure]:
    """AdaKD's L_t, and L_ref with the band that L_t must leave to move r."""
    series = []
    for group in groups:
        steps, reference = _points(group.first.steps, "adakd_reference_loss")
        if not len(steps):
            continue
        margin = float(group.first.flags.get("adakd_epsilon") or 0)
        steps, reference = thinned(steps, reference)
        label = f"{group.label} L_ref"
        low, high = reference * (1 - margin), reference * (1 + margin)
        series.append(Series(label, steps, reference, group.color, dash=True, low=low, high=high))
        line = thinned(*_points(group.first.steps, "adakd_average_loss"))
        series.append(Series(f"{group.label} L_t", *line, group.color))
    caption = "r moves when the loss average L_t leaves the band of L_ref · (1 ± ε); L_ref then follows."
    return _drawn(Figure("adakd_average", "What moves r: L_t and L_ref", caption, "step", "loss", series))


def ribbon_figures(groups: Sequence[Group]) -> list[Figure]:
    figures = []
    for prefix, title, y, caption in RIBBONS:
        series = []
        for group in groups:
            names = [f"{prefix}_q{level}" for level in ("05", "50", "95")]
            low, middle, high = (_points(group.first.steps, name) for name in names)
            if len(middle[0]) and len(low[0]) == len(middle[0]) == len(high[0]):
                (_, low), (steps, middle), (_, high) = (thinned(*points) for points in (low, middle, high))
                series.append(Series(group.label, steps, middle, group.color, low=low, high=high))
        figures.append(Figure(prefix, title, caption, "step", y, series))
    return _drawn(*figures)


def _series(groups: Sequence[Group], curve: Curve) -> list[Series]:
    found = _over_seeds(groups, lambda run: thinned(*_points(run.steps, curve.field)))
    if curve.field == "kd_loss":
        found = [series for series in found if any(series.y)]
    if curve.beside is not None:
        field, words = curve.beside
        beside = _over_seeds(groups, lambda run: thinned(*_points(run.steps, field)))
        found += [
            Series(f"{words}, {series.label}", series.x, series.y, series.color, dash=True)
            for series in beside
            if len(series.x)
        ]
    return found


def _over_seeds(groups: Sequence[Group], points: Callable[[Run], tuple[np.ndarray, np.ndarray]]) -> list[Series]:
    """The mean over the runs of a group at the steps that all have; the band is one standard deviation each way."""
    found = []
    for group in groups:
        of_runs = [dict(zip(*map(np.ndarray.tolist, points(run)))) for run in group.runs]
        steps = sorted(set.intersection(*map(set, of_runs)))
        if not steps:
            continue
        values_RS = np.array([[of_run[step] for step in steps] for of_run in of_runs])
        mean, deviation = values_RS.mean(axis=0), values_RS.std(axis=0, ddof=len(of_runs) > 1)
        band = {"low": mean - deviation, "high": mean + deviation} if len(of_runs) > 1 else {}
        found.append(Series(group.label, np.array(steps), mean, group.color, **band))
    return found


def _points(records: Iterable[dict], field: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(record["step"], record[field]) for record in records if is_number(record.get(field))]
    steps, values = zip(*found) if found else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def _drawn(*figures: Figure) -> list[Figure]:
    """Those with something to draw."""
    return [figure for figure in figures if any(len(series.x) for series in figure.series)]
