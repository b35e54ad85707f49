"""Results of evaluations on disk, found by what was evaluated and how; and as a table.

<root>/<set>-<split>/<fingerprint>/settings.json            what was evaluated and how
<root>/<set>-<split>/<fingerprint>/seed<S>/answers.jsonl    one JSON object per row: prompt, answer, references, length
                                                            in tokens, whether it ended with EOS, whether the prompt
                                                            was cut, and the score by each metric
<root>/<set>-<split>/<fingerprint>/seed<S>/metrics.json     each metric over all rows; rows, seed, seconds, made
<root>/summary.json                                         all evaluations below <root>, the latest last

The fingerprint is a hash of the settings: evaluations with different settings never overwrite each other, and one with
the same settings finds its results. The metrics are not part of it: they do not change an answer, and results that
lack a metric get it from the answers on disk.
"""

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from evaluation.metrics import ANSWER_FIELDS, MAIN_METRIC, Answer
from evaluation.scoring import Scores
from runtime.atomic import new_folder, remove_unfinished, write_text
from runtime.locks import lock

FINGERPRINT_LENGTH = 12  # hexadecimal digits
NOTES = ("model_path", "peft_path", "data_dir", "data")


@dataclass(frozen=True)
class Results:
    """The results on one data set under one set of settings; each seed has a folder of its own.

    settings: all that decides answers and scores except the seed, as JSON has it.
    notes: stored with the settings for the reader, by NOTES; not part of the fingerprint.
    """

    root: Path
    name: str
    settings: Mapping
    notes: Mapping

    @property
    def folder(self) -> Path:
        text = json.dumps(self.settings, sort_keys=True)
        return self.root / self.name / hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]

    def complete(self) -> dict[int, dict]:
        """metrics.json of each seed whose results are there."""
        if not self.folder.is_dir():
            return {}
        with _locked(self.root):
            remove_unfinished(self.folder)  # by a process that was killed
        return {of_seed["seed"]: of_seed for of_seed in read_metrics(self.folder)}

    def write(self, seed: int, answers: Sequence[Answer], scores: Scores, seconds: float) -> None:
        """Writes the answers and scores of a seed in place of any that it had. Raises WriteError."""
        records = [
            {
                "prompt": answer.prompt,
                "answer": answer.text,
                "references": list(answer.references),
                "tokens": answer.tokens,
                "ended": answer.ended,
                "cut": answer.cut,
            }
            for answer in answers
        ]
        made = datetime.now().isoformat(timespec="milliseconds")
        self._write(records, scores, {"rows": len(answers), "seed": seed, "seconds": round(seconds, 2), "made": made})

    def read_answers(self, seed: int) -> list[Answer] | None:
        """The answers of a complete seed; None if they lack a field that metrics may need."""
        records = read_answers(self.folder, seed)
        if any(name not in record for record in records for name in ANSWER_FIELDS):
            return None
        return [
            Answer(
                record["prompt"],
                record["answer"],
                tuple(record["references"]),
                tokens=record["tokens"],
                ended=record["ended"],
                cut=record["cut"],
            )
            for record in records
        ]

    def add(self, seed: int, scores: Scores) -> None:
        """Adds scores by further metrics to those of a complete seed. Raises WriteError."""
        path = self.folder / f"seed{seed}/metrics.json"
        self._write(read_answers(self.folder, seed), scores, json.loads(path.read_text()))

    def _write(self, records: Sequence[dict], scores: Scores, metrics: dict) -> None:
        """records, metrics: what answers.jsonl and metrics.json have beside `scores`."""
        records = [
            record | {name: round(of_metric[i], 4) for name, of_metric in scores.each.items()}
            for i, record in enumerate(records)
        ]
        with _locked(self.root):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "settings.json", json.dumps({**self.settings, **self.notes}, indent=2) + "\n")
            with new_folder(self.folder / f"seed{metrics['seed']}") as part:
                (part / "answers.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
                (part / "metrics.json").write_text(json.dumps(scores.overall | metrics, indent=2) + "\n")


def write_summary(root: Path) -> None:
    """Writes summary.json, which lists all evaluations below `root`, also of other processes. Raises WriteError."""
    with _locked(root):
        write_text(root / "summary.json", json.dumps({"evaluations": _all_evaluations(root)}, indent=2) + "\n")


def summarise(scores: Mapping[int, float]) -> dict:
    """The score of each seed, their mean and their standard deviation (of the sample; 0 for one seed)."""
    return {
        "mean": statistics.fmean(scores.values()),
        "std": statistics.stdev(scores.values()) if len(scores) > 1 else 0.0,
        "seeds": dict(scores),
    }


def table(scores: Mapping[str, Mapping[int, float]]) -> str:
    """ROUGE-L per data set: one row per set, one column per seed, and of several their mean and standard deviation."""
    seeds = sorted({seed for of_set in scores.values() for seed in of_set})
    several = len(seeds) > 1
    header = ["data set", *(f"seed {seed}" for seed in seeds), *["mean", "std"] * several]
    rows = []
    for name, of_set in scores.items():
        summary = summarise(of_set)
        of_seeds = [f"{of_set[seed]:.2f}" if seed in of_set else "" for seed in seeds]
        rows.append([name, *of_seeds, *[f"{summary['mean']:.2f}", f"{summary['std']:.2f}"] * several])
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
    """All evaluations on disk, the latest last."""
    found = [
        {
            "fingerprint": path.parent.name,
            "made": max(of_seed["made"] for of_seed in metrics),
            MAIN_METRIC: summarise({of_seed["seed"]: of_seed[MAIN_METRIC] for of_seed in metrics}),
            **json.loads(path.read_text()),
        }
        for path in root.glob("*/*/settings.json")
        if (metrics := read_metrics(path.parent))
    ]
    return sorted(found, key=lambda evaluation: (evaluation["made"], evaluation["fingerprint"]))


def read_metrics(folder: Path) -> list[dict]:
    """metrics.json of each seed of an evaluation; a seed's folder appears when it is complete."""
    metrics = [json.loads(path.read_text()) for path in folder.glob("seed*/metrics.json")]
    return sorted(metrics, key=lambda of_seed: of_seed["seed"])


def read_answers(folder: Path, seed: int) -> list[dict]:
    """answers.jsonl of a seed. Raises ValueError if it cannot be read."""
    path = folder / f"seed{seed}/answers.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; delete its folder, and the evaluation makes it again") from None


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Waits until no other process writes below `root`, so that summary.json lists all that is there."""
    # On a file system without locks, a summary that another process writes at the same time could lack an entry.
    file, _ = lock(root / ".summary.lock", wait=True)
    with file:
        yield
