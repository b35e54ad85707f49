"""One table of finished runs: parameters, dev loss, ROUGE-L, seconds.

In: run folders with one checkpoint each, evaluated by scripts/tiny/evaluate.sh last. Out: a table on the terminal.
Run: python scripts/tiny/report.py outputs/quickstart/seed10/teacher outputs/quickstart/seed10/student-sft
"""

import json
import math
import sys
from datetime import datetime
from pathlib import Path

from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[2] / "code"))
from evaluation.results import format_table


def parameters(checkpoint: Path) -> int:
    """Elements of all saved tensors (a tied head is saved once)."""
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    return sum(math.prod(shape) for shape in shapes)


def training_seconds(run: Path) -> float:
    """From the first to the last line of train.log that has a time; those of a report within have none."""
    times = [
        datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S")
        for line in (run / "train.log").read_text().splitlines()
        if line[:1].isdigit()
    ]
    return (times[-1] - times[0]).total_seconds()


def row(run: Path) -> list[str]:
    (checkpoint,) = run.glob("epoch*_step*")
    step = int(checkpoint.name.split("_step")[1].split("_")[0])
    dev = [json.loads(line) for line in (run / "dev_metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "eval" / checkpoint.name / "summary.json").read_text())
    return [
        run.name,
        f"{parameters(checkpoint):,}",
        f"{next(d['loss'] for d in dev if d['step'] == step):.3f}",
        f"{summary['evaluations'][-1]['rougeL']['mean']:.2f}",
        f"{training_seconds(run):.0f}",
    ]


if __name__ == "__main__":
    runs = [row(Path(path)) for path in sys.argv[1:]]
    print("\n" + format_table(["run", "parameters", "dev loss", "ROUGE-L", "seconds"], runs))
