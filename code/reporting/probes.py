"""Figures of where student and teacher differ, and of what the objective made of it: from probe.jsonl.

Shapes: N response tokens of all rows of an epoch, E entries of the models' most probable tokens at all of them.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from reporting.figures import Figure, Heat, Series
from reporting.run import Group, ProbeRow, Run

POSITIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)  # first ones of the bins; doubling, as answers differ in length
ENTROPY_BINS = 8
FEWEST = 5  # tokens of a bin that is drawn
MOST_POINTS = 400  # of a scatter plot
WIDEST = 10.0  # log p - log q; the axis ends there
CONFIDENT = 1.96  # standard errors of a 95 % interval


def gap_figures(groups: Sequence[Group]) -> list[Figure]:
    by_position, by_entropy, by_rank = [], [], []
    edges = _entropy_edges(groups)
    for label, color, dash, rows in _stages(groups):
        kl_N = pooled(rows, "forward_kl")
        by_position.append(_binned(label, color, dash, positions(rows), kl_N, np.array(POSITIONS), named=True))
        by_entropy.append(_binned(label, color, dash, pooled(rows, "teacher_entropy"), kl_N, edges, named=False))
        by_rank += _by_rank(label, color, dash, rows)
    if by_rank:
        by_rank.insert(0, _by_rank("teacher", None, False, _stages(groups)[-1][3], of_teacher=True)[0])
    dotted = "Dashed: before training." if any(dash for _, _, dash, _ in _stages(groups)) else ""
    intervals = f"Mean forward KL with 95 % interval, last epoch. {dotted}"
    return _drawn(
        Figure("gap_position", "Gap by position", intervals, "position in the answer", "KL(p ‖ q), nats", by_position),
        Figure(
            "gap_entropy",
            "Gap by the teacher's entropy",
            intervals,
            "teacher entropy, nats",
            "KL(p ‖ q), nats",
            by_entropy,
        ),
        Figure(
            "gap_rank",
            "Gap by token rank",
            f"Mean probability of the teacher's k-th choice, under the teacher and under each student. {dotted}",
            "rank under the teacher",
            "probability",
            by_rank,
        ),
    )


def weight_figures(groups: Sequence[Group]) -> list[Figure]:
    """ToDi: which weight an entry gets, and how far the entries are from the middle."""
    points, densities = [], []
    stages = [(*stage, *entries(rows)) for *stage, rows in _stages(groups)]
    far = max((float(np.quantile(abs(ratio_E), 0.99)) for *_, ratio_E, _, _ in stages if len(ratio_E)), default=1.0)
    far = min(WIDEST, max(1.0, math.ceil(far)))
    for label, color, dash, ratio_E, weight_E, mass_E in stages:
        if not len(ratio_E):
            continue
        shares, edges = np.histogram(ratio_E, bins=41, range=(-far, far), weights=mass_E / mass_E.sum())
        densities.append(Series(label, (edges[1:] + edges[:-1]) / 2, shares, color, dash=dash))
        if not dash:
            every = slice(None, None, -(-len(ratio_E) // MOST_POINTS))
            points.append(Series(label, ratio_E[every], weight_E[every], color, mark="points"))
    if not points:
        return []
    x = np.linspace(-far, far, 81)
    curve = Series("sigmoid(log p − log q)", x, 1 / (1 + np.exp(-x)), dash=True)
    words = "log p − log q"
    return [
        Figure(
            "todi_weight",
            "Weight of forward KL",
            "Each point is one token among the five most probable of either model: left, the student is over the "
            "teacher and reverse KL counts; right, it is under and forward KL counts.",
            words,
            "w",
            [*points, curve],
            x_range=(-far, far),
            y_range=(-0.05, 1.05),
        ),
        Figure(
            "todi_ratio",
            "How far the probabilities are apart",
            "Distribution of log p − log q over the same tokens, by probability. Dashed: before training.",
            words,
            "share of probability",
            densities,
            x_range=(-far, far),
        ),
    ]


def adaptive_figures(groups: Sequence[Group]) -> list[Figure]:
    """AdaKD: temperature against difficulty, and which positions it selects in which epoch."""
    points, heats = [], []
    for group in groups:
        rows = last_rows(group.runs)
        difficulty_N, temperature_N = pooled(rows, "difficulty"), pooled(rows, "temperature")
        known_N = np.isfinite(difficulty_N) & np.isfinite(temperature_N)
        if known_N.any():
            difficulty_N, temperature_N = difficulty_N[known_N], temperature_N[known_N]
            every = slice(None, None, -(-len(difficulty_N) // MOST_POINTS))
            points.append(Series(group.label, difficulty_N[every], temperature_N[every], group.color, mark="points"))
        if heat := _selection(group.first):
            heats.append(
                Figure(
                    f"adakd_selection_{group.color}",
                    f"Selected tokens: {group.label}",
                    "Share of the tokens that LATF selects, by position in the answer and epoch.",
                    "position in the answer",
                    "epoch",
                    heat=heat,
                )
            )
    title, caption = "Temperature by difficulty", "Difficult tokens get a low temperature, easy ones a high one (IDTS)."
    return [*_drawn(Figure("adakd_tau_difficulty", title, caption, "difficulty", "τ", points)), *heats]


def last_rows(runs: Iterable[Run]) -> list[ProbeRow]:
    """Of the last epoch of each run."""
    found = []
    for run in runs:
        last = max((row.epoch for row in run.probe), default=None)
        found += [row for row in run.probe if row.epoch == last]
    return found


def pooled(rows: Sequence[ProbeRow], field: str) -> np.ndarray:
    """The field at all tokens; NaN where a row lacks it."""
    parts = [row.values.get(field, np.full(len(row.tokens), np.nan)) for row in rows]
    return np.concatenate(parts) if parts else np.array([])


def positions(rows: Sequence[ProbeRow]) -> np.ndarray:
    return np.concatenate([np.arange(len(row.tokens)) for row in rows]) if rows else np.array([])


def entries(rows: Sequence[ProbeRow]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the entries of both models' top tokens: log p - log q, w, (p + q) / 2."""
    tops = [top for row in rows for top in (row.student_top, row.teacher_top) if top is not None]
    values_E3 = np.concatenate([top.values_NK3.reshape(-1, 3) for top in tops]) if tops else np.zeros((0, 3))
    q_E, p_E, w_E = values_E3[np.isfinite(values_E3).all(axis=1)].T
    positive_E = (q_E > 0) & (p_E > 0)
    q_E, p_E, w_E = q_E[positive_E], p_E[positive_E], w_E[positive_E]
    return np.log(p_E) - np.log(q_E), w_E, (p_E + q_E) / 2


def _stages(groups: Sequence[Group]) -> list[tuple[str, int | None, bool, list[ProbeRow]]]:
    """Label, colour, dashed or not, and rows: of epoch 0 of the first group that has it, of each group's last epoch."""
    found = []
    for group in groups:
        start = [row for row in group.first.probe if row.epoch == 0 and row.teacher_top is not None]
        rows = [row for row in last_rows(group.runs) if row.teacher_top is not None]
        if start and not any(dash for _, _, dash, _ in found):
            found.append(("before training", None, True, start))
        if rows and rows[0].epoch > 0:
            found.append((group.label, group.color, False, rows))
    return found


def _entropy_edges(groups: Sequence[Group]) -> np.ndarray:
    """Lower edges of bins with about as many tokens each."""
    entropy_N = np.concatenate(
        [np.array([0.0]), *(pooled(rows, "teacher_entropy") for _, _, _, rows in _stages(groups))]
    )
    return np.unique(np.nanquantile(entropy_N, np.linspace(0, 1, ENTROPY_BINS, endpoint=False)))


def _binned(
    label: str, color: int | None, dash: bool, by_N: np.ndarray, values_N: np.ndarray, edges: np.ndarray, *, named: bool
) -> Series:
    """Mean of the values per bin of `by_N`. named: bins of positions get their names, others their mean."""
    bins_N = np.digitize(by_N, edges) - 1
    known_N = np.isfinite(by_N) & np.isfinite(values_N)
    x, y, errors = [], [], []
    for b in range(len(edges)):
        inside_N = known_N & (bins_N == b)
        if inside_N.sum() >= FEWEST:
            x.append(_position_name(b) if named else float(by_N[inside_N].mean()))
            y.append(float(values_N[inside_N].mean()))
            errors.append(CONFIDENT * float(values_N[inside_N].std(ddof=1)) / np.sqrt(inside_N.sum()))
    middle, error = np.array(y), np.array(errors)
    band = {} if dash else {"low": middle - error, "high": middle + error}
    return Series(label, x, middle, color, dash=dash, **band)


def _position_name(b: int) -> str:
    first, after = POSITIONS[b] + 1, POSITIONS[b + 1] if b + 1 < len(POSITIONS) else None
    return f"{first}+" if after is None else str(first) if after == first else f"{first}–{after}"


def _by_rank(
    label: str, color: int | None, dash: bool, rows: Sequence[ProbeRow], of_teacher: bool = False
) -> list[Series]:
    width = min(row.teacher_top.values_NK3.shape[1] for row in rows)
    values_NK3 = np.concatenate([row.teacher_top.values_NK3[:, :width] for row in rows])
    mean_K = np.nanmean(values_NK3[:, :, 1 if of_teacher else 0], axis=0)
    return [Series(label, [str(rank) for rank in range(1, width + 1)], mean_K, color, dash=dash)]


def _selection(run: Run) -> Heat | None:
    """None unless the probe says which tokens were selected."""
    rows = [row for row in run.probe if "selected" in row.values]
    epochs = sorted({row.epoch for row in rows})
    if not epochs:
        return None
    bins = np.digitize(np.arange(max(len(row.tokens) for row in rows)), POSITIONS) - 1
    count = int(bins.max()) + 1
    values = []
    for epoch in epochs:
        of_epoch = [row for row in rows if row.epoch == epoch]
        bins_N, selected_N = bins[positions(of_epoch)], pooled(of_epoch, "selected")
        values.append([float(selected_N[bins_N == b].mean()) if (bins_N == b).any() else np.nan for b in range(count)])
    return Heat([str(epoch) for epoch in epochs], [_position_name(b) for b in range(count)], values)


def _drawn(*figures: Figure) -> list[Figure]:
    return [figure for figure in figures if any(len(series.x) for series in figure.series)]
