"""Results of evaluations on disk, found by what was evaluated and how; and as a table.

<root>/<set>-<split>/<fingerprint>/settings.json            what was evaluated and how
<root>/<set>-<split>/<fingerprint>/seed<S>/answers.jsonl    one JSON object per row: prompt, answer, references, rougeL
<root>/<set>-<split>/<fingerprint>/seed<S>/metrics.json     rougeL, rows, seed, words_per_answer, seconds, made
<root>/summary.json                                         all evaluations below <root>, the latest last

The fingerprint is a hash of the settings: another evaluation never overwrites this one, and the same one is recognised.
"""

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.atomic import new_folder, write_text
from runtime.locks import lock

FINGERPRINT_LENGTH = 12  # hexadecimal digits


@dataclass(frozen=True)
class Evaluation:
    """One data set under one set of settings; each seed's answers are a folder of their own.

    settings: all that decides answers and scores but the seed, as JSON has it. notes: what a reader may want besides.
    """

    root: Path
    name: str
    settings: Mapping
    notes: Mapping

    @property
    def folder(self) -> Path:
        text = json.dumps(self.settings, sort_keys=True)
        return self.root / self.name / hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]

    def scores(self) -> dict[int, float]:
        """ROUGE-L by seed, of the seeds that are complete."""
        return {metrics["seed"]: metrics["rougeL"] for metrics in _metrics(self.folder)}

    def write(self, seed: int, records: Sequence[Mapping], metrics: Mapping) -> None:
        """The answers and metrics of a seed, in place of what it had. Raises WriteError."""
        with _locked(self.root):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "settings.json", json.dumps({**self.settings, **self.notes}, indent=2) + "\n")
            with new_folder(self.folder / f"seed{seed}") as part:
                (part / "answers.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
                (part / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def write_summary(root: Path) -> None:
    """summary.json of all evaluations below `root`, whoever made them. Raises WriteError."""
    with _locked(root):
        write_text(root / "summary.json", json.dumps({"evaluations": _all_evaluations(root)}, indent=2) + "\n")


def summarise(scores: Mapping[str, Mapping[int, float]]) -> dict[str, dict]:
    """Per data set: the score of each seed, their mean and their standard deviation (of the sample; 0 for one)."""
    return {
        name: {
            "mean": statistics.fmean(of_seeds.values()),
            "std": statistics.stdev(of_seeds.values()) if len(of_seeds) > 1 else 0.0,
            "seeds": dict(of_seeds),
        }
        for name, of_seeds in scores.items()
    }


def table(summary: Mapping[str, Mapping]) -> str:
    """ROUGE-L of each data set: one row per set, one column per seed, then mean and standard deviation."""
    seeds = sorted({seed for row in summary.values() for seed in row["seeds"]})
    header = ["data set", *(f"seed {seed}" for seed in seeds), "mean", "std"]
    rows = [
        [
            name,
            *(f"{row['seeds'][seed]:.2f}" if seed in row["seeds"] else "" for seed in seeds),
            *(f"{row[value]:.2f}" for value in ("mean", "std")),
        ]
        for name, row in summary.items()
    ]
    return format_table(header, rows)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths)))
        for line in lines
    )


def _all_evaluations(root: Path) -> list[dict]:
    """What is on the disk, the latest last."""
    found = []
    for path in root.glob("*/*/settings.json"):
        if metrics := _metrics(path.parent):
            scores = summarise({path.parent.name: {of_seed["seed"]: of_seed["rougeL"] for of_seed in metrics}})
            ((fingerprint, of_seeds),) = scores.items()
            made = max(of_seed["made"] for of_seed in metrics)
            found.append({"fingerprint": fingerprint, "made": made, "rougeL": of_seeds, **json.loads(path.read_text())})
    return sorted(found, key=lambda evaluation: (evaluation["made"], evaluation["fingerprint"]))


def _metrics(folder: Path) -> list[dict]:
    """Of the seeds that are complete: a seed's folder appears when it is."""
    metrics = [json.loads(path.read_text()) for path in folder.glob("seed*/metrics.json")]
    return sorted(metrics, key=lambda of_seed: of_seed["seed"])


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Waits until no other process writes below `root`: summary.json is then of all that is there."""
    # On a file system without locks a summary that is written at the same time could lack a line, no more.
    file, _ = lock(root / ".summary.lock", wait=True)
    with file:
        yield
