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

from evaluation.comparison import AVERAGE, LEVEL, RESAMPLES, Comparison, Pair, average, compare_runs
from evaluation.defaults import tables_folder
from evaluation.results import format_table
from evaluation.stored import Comparable, read_comparable
from models.folders import find_checkpoint, short_names
from runtime.atomic import write_text
from runtime.exit_codes import USER_ERROR_CODES, exit_on, naming_save_dir


def main(argv: list[str]) -> None:
    with exit_on(USER_ERROR_CODES):
        args = parse_compare_arguments(argv)
        runs, teacher = named_runs(args)
        found = read_comparable(runs, args.metric)
        students = {run: scores for run, scores in found.scores.items() if run != teacher}
        pairs = compare_runs(students, found.scores.get(teacher))
        print("".join(f"{note}\n" for note in found.notes) + means(found, args.metric) + "\n" + text(pairs))
        folder = tables_folder(args.save_dir, list(students))
        with naming_save_dir(folder, "make room, or pass another folder"):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(
                folder / "comparison.json", json.dumps(record(args, runs, teacher, found, pairs), indent=2) + "\n"
            )
        print(f"\n{folder}/comparison.json")


def named_runs(args: CompareArguments) -> tuple[dict[str, str], str | None]:
    """The paths by short names, the teacher last, and the teacher's name. Raises ValueError."""
    paths = [find_checkpoint("RUN_OR_CKPT", path) for path in args.run_or_ckpt]
    if args.teacher is not None:
        paths.append(find_checkpoint("--teacher", args.teacher))
    names = short_names(paths)
    if len(set(names)) < len(names):
        raise ValueError(f"RUN_OR_CKPT {' '.join(paths)}: one is named twice; name each once, the teacher by --teacher")
    return dict(zip(names, paths)), None if args.teacher is None else names[-1]


def means(found: Comparable, metric: str) -> str:
    """A table: the mean of each run on each set and on average."""
    sets = list(next(iter(found.scores.values())))
    rows = [
        [run, *(f"{scores[name].mean():.2f}" for name in sets), f"{average(scores):.2f}"]
        for run, scores in found.scores.items()
    ]
    return format_table([metric, *sets, AVERAGE], rows) + "\n"


def text(pairs: Sequence[Pair]) -> str:
    """A line per pair: on the average and, of several sets, on each."""
    width = max(len(f"{pair.run} - {pair.baseline}") for pair in pairs)
    names = list(pairs[0].results)
    blocks = []
    for name in names if len(names) > 2 else [AVERAGE]:
        lines = [f"{f'{pair.run} - {pair.baseline}'.ljust(width)}  {line(pair.results[name])}" for pair in pairs]
        blocks.append("\n".join([name, *lines]) if len(names) > 2 else "\n".join(lines))
    return "\n\n".join(blocks)


def line(found: Comparison) -> str:
    p = f"p = {found.p_holm:.3f}" if found.p_holm >= 0.0005 else "p < 0.001"
    words = f"{found.difference:+.2f} [{found.low:.2f}, {found.high:.2f}]  {p}"
    words += f"  wins {found.wins} ties {found.ties} losses {found.losses}"
    return words if found.gap_closed is None else f"{words}  gap closed {found.gap_closed:.0f} %"


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
