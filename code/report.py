"""One page about runs, finished or not: scores, curves, tokens, comparisons, cost. docs/report.md explains it.

    python code/report.py outputs/gpt2/gpt2-base/todi [RUN ...] [--out report.html]

In: run folders, or checkpoints in them. Out: one HTML file that needs no network, and beside it a folder
<out>_figures/ with every figure as SVG, PNG and PDF. Exit code 2: the input is wrong; 74: a file could not be written.
"""

from arguments import ReportArguments, parse_report_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take a while
    answer_early(parse_report_arguments)

import sys
from collections.abc import Sequence
from pathlib import Path

from flags import show_error
from models.folders import ROOT, short_names, tables_folder
from reporting.page import write_report
from reporting.paper import save_figures
from reporting.run import run_folder
from runtime.atomic import WriteError, as_write_error

WRONG_INPUT, NOT_WRITTEN = 2, 74  # as in runtime.exit_codes, which imports torch


def main(argv: Sequence[str]) -> None:
    args = parse_report_arguments(argv)
    out = output(args)
    with as_write_error(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    report = write_report(args.run, out)
    print(out)
    if args.paper and report.figures:
        folder = out.with_name(f"{out.stem}_figures")
        with as_write_error(folder):
            save_figures(report.figures, folder)
        print(folder)


def output(args: ReportArguments) -> Path:
    """Raises ValueError."""
    if args.out is None:
        folders = list(dict.fromkeys(map(run_folder, args.run)))
        several = ROOT / tables_folder(None, short_names([str(folder) for folder in folders]))
        return (folders[0] if len(folders) == 1 else several) / "report.html"
    out = Path(args.out)
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: name a file in a folder that exists")
    return out


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        show_error(error)
        sys.exit(NOT_WRITTEN if isinstance(error, WriteError) else WRONG_INPUT)
