"""One page about finished or running runs: scores, curves, tokens, comparisons, cost. docs/report.md explains it.

    python code/report.py outputs/gpt2/gpt2-base/todi [RUN ...] [--out report.html]

In: run folders, or checkpoints in them. Out: one HTML file that needs no network, and beside it a folder
<name>_figures/ with every figure as SVG, PNG and PDF. Exit code 2: the input is wrong; 74: a file could not be written.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flags import Group, answer_early, option, parse


@dataclass(frozen=True)
class ReportArguments(Group):
    """What is written, and where."""

    out: str | None = option(None, "The page; default: report.html in the run's folder, of several runs in outputs/.")
    paper: bool = option(True, "Also every figure as SVG, PNG and PDF, beside the page.")


class ReportConfig(NamedTuple):
    runs: list[str]
    report: ReportArguments
    ignored_flags: tuple[str, ...]


def parse_report_arguments(argv: Sequence[str]) -> ReportConfig:
    """The runs come before the flags. Raises ValueError with the flag, its value and the remedy."""
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    arguments, ignored = parse(argv[count:], (ReportArguments,), "code/report.py RUN [RUN ...]")
    if not count:
        raise ValueError("RUN: pass at least one run folder, before the flags")
    return ReportConfig(list(argv[:count]), arguments, ignored)


if __name__ == "__main__":  # before the imports that take a while
    answer_early(parse_report_arguments)

from pathlib import Path

from flags import show_error
from reporting.page import write_report
from reporting.paper import save_figures
from reporting.run import run_folder
from runtime.atomic import WriteError, as_write_error

WRONG_INPUT, NOT_WRITTEN = 2, 74  # runtime.exit_codes, which imports torch


def main(argv: Sequence[str]) -> None:
    config = parse_report_arguments(argv)
    out = output(config)
    report = write_report(config.runs, out)
    print(out)
    if config.report.paper and report.figures:
        folder = out.with_name(f"{out.stem}_figures")
        with as_write_error(folder):
            save_figures(report.figures, folder)
        print(folder)


def output(config: ReportConfig) -> Path:
    """Raises ValueError."""
    if config.report.out is None:
        folders = list(dict.fromkeys(map(run_folder, config.runs)))
        return folders[0] / "report.html" if len(folders) == 1 else Path("outputs/report.html").absolute()
    out = Path(config.report.out)
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: name a file in a folder that exists")
    return out


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        show_error(error)
        sys.exit(NOT_WRITTEN if isinstance(error, WriteError) else WRONG_INPUT)
