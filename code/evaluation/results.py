"""Results of an evaluation on disk and as a table.

<save_dir>/<data set>/seed<S>/answers.jsonl   one object a row: prompt, answer, references, rougeL
<save_dir>/<data set>/seed<S>/metrics.json    rougeL, rows, seconds, seed, mean answer length in words
<save_dir>/summary.json                       per data set: mean and standard deviation over the seeds
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_utils.atomic import explained, write_text


def write_answers(folder: Path, records: Sequence[Mapping], metrics: Mapping) -> None:
    """answers.jsonl, then metrics.json: a folder with metrics is complete."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "answers.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")


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
    """ROUGE-L of each data set: a row a set, a column a seed, then mean and standard deviation."""
    seeds = sorted({seed for row in summary.values() for seed in row["seeds"]})
    header = ["data set", *(f"seed {seed}" for seed in seeds), "mean", "std"]
    rows = [
        [name, *(f"{row['seeds'][seed]:.2f}" for seed in seeds), f"{row['mean']:.2f}", f"{row['std']:.2f}"]
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
