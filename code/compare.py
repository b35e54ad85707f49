"""Compare evaluated runs with each other: differences with intervals, significance, and the gap to the teacher.

    python code/compare.py outputs/sft outputs/todi outputs/adakd --teacher outputs/teacher

In: runs or checkpoints that `code/evaluate.py` evaluated under the same settings (or folders of such results). Each
example counts with its mean over the seeds. Out: one line per pair on the average over the sets and on each set, by a
paired bootstrap with Holm's correction (evaluation/comparison.py), and comparison.json. Exit codes: 2: nothing can be
compared, and the message says what differs; 74: the file could not be written.
"""

from arguments import CompareArguments, parse_compare_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_compare_arguments)

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from evaluation.comparison import AVERAGE, LEVEL, RESAMPLES, Pair, average, compare_runs, pair_lines
from evaluation.results import format_table
from evaluation.stored import Comparable, named_runs, read_comparable
from models.folders import tables_folder
from runtime.atomic import write_text
from runtime.exit_codes import USER_ERROR_CODES, exit_on, naming_save_dir


def main(argv: list[str]) -> None:
    with exit_on(USER_ERROR_CODES):
        args = parse_compare_arguments(argv)
        runs, teacher = named_runs(args.run_or_ckpt, args.teacher)
        found = read_comparable(runs, args.metric, args.results)
        students = {run: scores for run, scores in found.scores.items() if run != teacher}
        pairs = compare_runs(students, found.scores.get(teacher))
        print("".join(f"{note}\n" for note in found.notes) + means(found, args.metric) + "\n" + pair_lines(pairs))
        folder = tables_folder(args.save_dir, list(students))
        with naming_save_dir(folder, "make room, or pass another folder"):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(
                folder / "comparison.json", json.dumps(record(args, runs, teacher, found, pairs), indent=2) + "\n"
            )
        print(f"\n{folder}/comparison.json")


def means(found: Comparable, metric: str) -> str:
    """A table: the mean of each run on each set and on average."""
    sets = list(next(iter(found.scores.values())))
    rows = [
        [run, *(f"{scores[name].mean():.2f}" for name in sets), f"{average(scores):.2f}"]
        for run, scores in found.scores.items()
    ]
    return format_table([metric, *sets, AVERAGE], rows) + "\n"


def record(
    args: CompareArguments, runs: dict[str, str], teacher: str | None, found: Comparable, pairs: Sequence[Pair]
) -> dict:
    """comparison.json."""
    return {
        "metric": args.metric,
        "resamples": RESAMPLES,
        "level": LEVEL,
        "teacher": teacher,
        "runs": {
            run: {
                "path": path,
                "mean": {name: scores.mean() for name, scores in found.scores[run].items()}
                | {AVERAGE: average(found.scores[run])},
                "evaluations": {name: str(of_set.folder) for name, of_set in found.evaluations[run].items()},
                "seeds": {name: of_set.seeds for name, of_set in found.evaluations[run].items()},
            }
            for run, path in runs.items()
        },
        "pairs": [asdict(pair) for pair in pairs],
        "notes": found.notes,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
