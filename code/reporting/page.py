"""report.html: sections of figures and tables from the groups of runs, in one file that needs no network.

Every text of a run passes Jinja2's escaping or, as embedded JSON, `embedded`: a row may hold HTML.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from reporting.curves import ADAPTIVE, OBJECTIVE, TRAINING, average_figure, curve_figures, dev_figures, ribbon_figures
from reporting.evaluations import Evaluation, Pair, extremes, pairs, scored
from reporting.figures import Figure, Heat, as_json
from reporting.probes import adaptive_figures, gap_figures, weight_figures
from reporting.run import Group, read_groups
from reporting.summary import cards, costs, headline, models_of, pair_line, warnings
from reporting.tokens import token_view
from runtime.atomic import write_text

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """key: the anchor, and the part of the template that shows `content`."""

    key: str
    title: str
    text: str = ""
    figures: list[Figure] = field(default_factory=list)
    content: object = None


@dataclass(frozen=True)
class Report:
    groups: list[Group]
    head: dict
    sections: list[Section]
    tokens: dict | None

    @property
    def figures(self) -> list[Figure]:
        return [figure for section in self.sections for figure in section.figures]


def write_report(paths: Sequence[str | Path], out: Path) -> Report:
    """Writes the page of these runs to `out`. Raises ValueError for a path without a run, WriteError."""
    report = build_report(read_groups(paths))
    write_text(out, render(report))
    return report


def build_report(groups: Sequence[Group]) -> Report:
    models, of_teacher = models_of(groups)
    teacher = scored(of_teacher)
    compared = pairs(models, teacher)
    found = cards(groups, models, teacher)
    head = {
        "title": ", ".join(group.label for group in groups),
        "headline": headline(found, compared),
        "cards": found,
        "warnings": warnings(groups),
        "commands": [(group.label, group.first.command) for group in groups if group.first.command],
        "made": datetime.now().strftime("%Y-%m-%d %H:%M"),
    }
    tokens = token_view(groups)
    sections = _sections(groups, compared, models, tokens)
    return Report(list(groups), head, sections, tokens)


def render(report: Report) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    plain = {"figures": {figure.key: figure.plain for figure in report.figures}, "tokens": report.tokens}
    return environment.get_template("report.html.j2").render(
        head=report.head,
        sections=report.sections,
        groups=report.groups,
        nonce=secrets.token_hex(16),  # of the scripts that may run: ours, whatever a row holds
        data=Markup(embedded(plain)),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")),
    )


def embedded(value: object) -> str:
    """JSON that may stand in a <script> element: without `<`, no text can end it."""
    text = json.dumps(as_json(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _sections(
    groups: Sequence[Group],
    compared: Sequence[Pair],
    models: Mapping[str, Mapping[str, Evaluation]],
    tokens: dict | None,
) -> list[Section]:
    """Those with data."""
    adaptive = curve_figures(groups, ADAPTIVE)
    if adaptive:
        adaptive[1:1] = average_figure(groups)
        adaptive += [*ribbon_figures(groups), *adaptive_figures(groups)]
    objective = curve_figures(groups, OBJECTIVE)
    bands = " Bands: one standard deviation over seeds." if any(len(group.runs) > 1 for group in groups) else ""
    sections = [
        Section("curves", "Curves", f"All runs over optimiser steps.{bands}", _curves(groups)),
        Section(
            "tokens",
            "Tokens",
            "Dev references as tokens. Choose a colour, move through the epochs, click a token for both models' first "
            "choices: q is the student's probability, p the teacher's, w ToDi's weight of forward KL.",
            content=tokens,
        ),
        Section("gap", "Where the student differs", "On the probed dev rows.", gap_figures(groups)),
        Section(
            "todi", "ToDi", "Which entries pull towards the teacher and which are pushed down.",
            [*weight_figures(groups), *objective],
        ),
        Section("adakd", "AdaKD", "Which tokens train, and at which temperature.", adaptive),
        Section(
            "comparison", "Comparison",
            "ROUGE-L of the second minus the first: paired bootstrap over examples, 95 % intervals, Holm's correction.",
            _matrix(compared, list(models)), [pair_line(pair) for pair in compared],
        ),
        Section("answers", "Largest gains and losses", "", content=_extremes(compared, models)),
        Section("cost", "Cost", "", content=costs(groups)),
    ]  # fmt: skip
    return [section for section in sections if section.figures or section.content]


def _curves(groups: Sequence[Group]) -> list[Figure]:
    return [*dev_figures(groups), *curve_figures(groups, TRAINING)]


def _matrix(compared: Sequence[Pair], labels: Sequence[str]) -> list[Figure]:
    if not compared:
        return []
    values = [[0.0 if row == column else None for column in labels] for row in labels]
    texts = [["" for _ in labels] for _ in labels]
    for pair in compared:
        i, j = labels.index(pair.second), labels.index(pair.first)
        stars = sum(pair.p < level for level in (0.05, 0.01, 0.001)) * "*"
        difference = pair.result.difference
        values[i][j], values[j][i] = difference, -difference
        texts[i][j], texts[j][i] = (f"{d:+.2f}{stars}".replace("-", "−") for d in (difference, -difference))
    caption = "Row minus column. * p < 0.05, ** p < 0.01, *** p < 0.001, after Holm's correction."
    heat = Heat(labels, labels, values, texts)
    return [Figure("significance", "ROUGE-L differences", caption, "", "", heat=heat)]


def _extremes(compared: Sequence[Pair], models: Mapping[str, Mapping[str, Evaluation]]) -> list[dict]:
    """Of every run against the first of the report."""
    first = next(iter(models), None)
    return [
        {"first": pair.first, "second": pair.second, "examples": examples}
        for pair in compared
        if pair.first == first and (examples := extremes(models, pair.first, pair.second))
    ]
