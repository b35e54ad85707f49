"""The table of an evaluation: checkpoints against data sets, mean and standard deviation over seeds.

In: the scores of each checkpoint on each set (`Cell`). Out: scores.md, scores.json and scores.csv, and the text of the
terminal. A seed's average is the mean over the sets; the average's deviation is that of the seeds' averages.
"""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.differences import differences
from evaluation.metrics import MAIN_METRIC
from evaluation.results import Results, format_table, summarise
from runtime.atomic import write_text

AVERAGE = "average"


@dataclass(frozen=True)
class Cell:
    """A checkpoint on a data set. scores: of each metric, by seed."""

    fingerprint: str
    settings: Mapping
    scores: Mapping[str, Mapping[int, float]]

    @classmethod
    def of(cls, results: Results, complete: Mapping[int, Mapping], metrics: Iterable[str]) -> "Cell":
        """complete: metrics.json by seed. A metric that a seed lacks is left out."""
        by_metric = {name: {seed: of_seed.get(name) for seed, of_seed in complete.items()} for name in metrics}
        scores = {name: by_seed for name, by_seed in by_metric.items() if None not in by_seed.values()}
        return cls(results.folder.name, results.settings, scores)


@dataclass(frozen=True)
class Matrix:
    """cells: by the checkpoint's name, then by data set."""

    cells: Mapping[str, Mapping[str, Cell]]

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(name for of_checkpoint in self.cells.values() for name in of_checkpoint))

    @property
    def metrics(self) -> list[str]:
        """The main one first."""
        found = {name for of_one in self.cells.values() for cell in of_one.values() for name in cell.scores}
        return sorted(found, key=lambda name: (name != MAIN_METRIC, name))

    def summary(self, checkpoint: str, data_set: str, metric: str) -> dict | None:
        """`summarise` of a cell, or of the average over the checkpoint's sets; None where the metric is missing."""
        cells = self.cells[checkpoint]
        if data_set == AVERAGE:
            return average([cell.scores.get(metric, {}) for cell in cells.values()])
        return average([cells[data_set].scores.get(metric, {})]) if data_set in cells else None

    def notes(self) -> list[str]:
        """What a reader must know before comparing the rows of the table."""
        found = []
        for data_set in self.sets:
            settings = {name: cells[data_set].settings for name, cells in self.cells.items() if data_set in cells}
            found += [(line, data_set) for line in differences(settings)]
        lines = {line: [name for other, name in found if other == line] for line, _ in found}
        notes = [f"not the same settings on {', '.join(names)}: {line}" for line, names in lines.items()]
        for checkpoint, cells in self.cells.items():
            if lacking := [name for name in self.sets if name not in cells]:
                notes.append(f"{checkpoint} was not evaluated on {', '.join(lacking)}: its average is over other sets")
        return notes

    def main_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: the main metric on each set and on average."""
        columns = [*self.sets, AVERAGE] if len(self.sets) > 1 else self.sets
        rows = [[name, *(shown(self.summary(name, column, MAIN_METRIC)) for column in columns)] for name in self.cells]
        return ["checkpoint", *columns], rows

    def metrics_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: each other metric, on average over the sets."""
        columns = self.metrics[1:]
        rows = [[name, *(shown(self.summary(name, AVERAGE, column)) for column in columns)] for name in self.cells]
        return ["checkpoint", *columns], rows

    def text(self) -> str:
        """For the terminal."""
        notes = "".join(f"{note}\n" for note in self.notes())
        return f"{notes}ROUGE-L, mean ± standard deviation over seeds\n\n{format_table(*self.main_table())}"

    def write(self, folder: Path) -> None:
        """Writes scores.md, scores.json and scores.csv. Raises WriteError."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "scores.md", self._markdown())
        write_text(
            folder / "scores.json", json.dumps({"notes": self.notes(), "scores": self._records()}, indent=2) + "\n"
        )
        text = io.StringIO()
        rows = [{**record, "seeds": " ".join(map(str, record["seeds"]))} for record in self._records()]
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / "scores.csv", text.getvalue())

    def _markdown(self) -> str:
        notes = "".join(f"- {note}\n" for note in self.notes())
        return (
            f"ROUGE-L, mean ± standard deviation over seeds.\n\n{markdown(*self.main_table())}\n"
            f"The other metrics, averages over the sets.\n\n{markdown(*self.metrics_table())}\n{notes}"
        )

    def _records(self) -> list[dict]:
        """One per checkpoint, set (or average) and metric."""
        return [
            {
                "checkpoint": checkpoint,
                "set": data_set,
                "metric": metric,
                **summary,
                "fingerprint": cells[data_set].fingerprint if data_set in cells else None,
            }
            for checkpoint, cells in self.cells.items()
            for data_set in [*cells, AVERAGE]
            for metric in self.metrics
            if (summary := self.summary(checkpoint, data_set, metric)) is not None
        ]


def average(of_sets: Sequence[Mapping[int, float]]) -> dict | None:
    """`summarise` of each seed's mean over the sets; None if a set has no scores.

    The deviation is None if the sets have different seeds: then there is no average per seed.
    """
    if not all(of_sets):
        return None
    if any(of_set.keys() != of_sets[0].keys() for of_set in of_sets):
        return {
            "mean": statistics.fmean(statistics.fmean(of_set.values()) for of_set in of_sets),
            "std": None,
            "seeds": {},
        }
    return summarise({seed: statistics.fmean(of_set[seed] for of_set in of_sets) for seed in of_sets[0]})


def shown(summary: Mapping | None) -> str:
    if summary is None:
        return ""
    deviation = f" ± {summary['std']:.2f}" if len(summary["seeds"]) > 1 else ""
    return f"{summary['mean']:.2f}{deviation}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
