"""The figures of a report for papers: each as SVG, PNG and PDF, drawn by matplotlib."""

import re
from collections.abc import Sequence
from pathlib import Path

from reporting.figures import Figure, Heat, Series

COLORS = "#2563eb #e8590c #0c8f6b #9c36b5 #c2255c #a07800 #0b8299 #795548".split()
INK = "#555555"
FORMATS = "svg", "png", "pdf"
SIZE = 4.2, 2.8  # inches: half the width of a page
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,  # TrueType, as publishers want
    "text.parse_math": False,  # a label with $ is text
}


def save_figures(figures: Sequence[Figure], folder: Path) -> None:
    """Writes <folder>/<key>.{svg,png,pdf}. Raises ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas  # without pyplot: no display, no state

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for figure in figures:
            canvas = Canvas(figsize=SIZE, layout="constrained")
            axes = canvas.subplots()
            if figure.heat is not None:
                _draw_heat(canvas, axes, figure.heat)
            for series in figure.series:
                _draw(axes, series)
            axes.set(title=figure.title, xlabel=figure.x, ylabel=figure.y)
            if figure.x_range:
                axes.set_xlim(figure.x_range)
            if figure.y_range:
                axes.set_ylim(figure.y_range)
            if figure.series:
                axes.legend(fontsize=7)
            name = re.sub(r"\W+", "_", figure.key)
            for extension in FORMATS:
                canvas.savefig(folder / f"{name}.{extension}", dpi=200)


def _draw(axes, series: Series) -> None:
    color = INK if series.color is None else COLORS[series.color % len(COLORS)]
    label = series.label.lstrip("_")  # matplotlib hides labels that start with one
    if series.mark == "points":
        axes.plot(series.x, series.y, "o", color=color, label=label, markersize=2, alpha=0.5)
        return
    axes.plot(series.x, series.y, color=color, label=label, linestyle="--" if series.dash else "-", linewidth=1.3)
    if series.low is not None:
        axes.fill_between(series.x, series.low, series.high, color=color, alpha=0.15, linewidth=0)


def _draw_heat(canvas, axes, heat: Heat) -> None:
    import numpy as np

    values = np.array(heat.values, dtype=float)
    limits = {"vmin": -heat.far, "vmax": heat.far, "cmap": "RdBu"} if heat.texts else {"vmin": 0, "cmap": "Blues"}
    image = axes.imshow(values, aspect="auto", **limits)
    axes.set_xticks(range(len(heat.columns)), heat.columns)
    axes.set_yticks(range(len(heat.rows)), heat.rows)
    axes.grid(visible=False)
    canvas.colorbar(image)
    for i, row in enumerate(heat.texts or []):
        for j, text in enumerate(row):
            axes.text(j, i, text, ha="center", va="center", fontsize=7)
