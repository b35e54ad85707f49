"""How an entry point ends: its exit codes (listed in docs/reliability.md), and which error ends in which of them.

with exit_on(USER_ERROR_CODES):
    trainer = prepare(argv)
"""

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import distributed as dist

from flags import show_error
from runtime.atomic import WriteError

WRONG_INPUT = 2
DIVERGED = 3
NOT_WRITTEN = 74  # EX_IOERR: a full disk, a quota, lost storage
STOPPED = 75  # EX_TEMPFAIL: the state is saved; the same command resumes the run

# For `runtime.ranks.USER_ERRORS`. A WriteError is an OSError too: the first kind that fits decides.
USER_ERROR_CODES = {WriteError: NOT_WRITTEN, ValueError: WRONG_INPUT, OSError: WRONG_INPUT}


@contextmanager
def exit_on(codes: Mapping[type[Exception], int], every_rank: bool = False) -> Iterator[None]:
    """Errors of these kinds end the process with their exit code and a message; all others keep their traceback.

    every_rank: each rank shows its own error; otherwise the ranks share one, and one process per node shows it.
    """
    try:
        yield
    except tuple(codes) as error:
        if every_rank:
            print(f"error: {error}", file=sys.stderr)
        else:
            show_error(error)
        sys.exit(next(code for kind, code in codes.items() if isinstance(error, kind)))


@contextmanager
def naming_save_dir(save_dir: str | Path, remedy: str) -> Iterator[None]:
    """Puts the flag and the remedy around the message of a WriteError."""
    try:
        yield
    except WriteError as error:
        raise WriteError(f"--save-dir {save_dir}: {error}; {remedy}") from error


def run_entry(main: Callable[[list[str]], None]) -> None:
    """Runs an entry point on the words of the command line, and ends the process with its exit code.

    After a failure, Python's finalisation is skipped. During it, a thread of the process group that frees what the last
    collective left would wait for the interpreter and abort the process (SIGABRT instead of the exit code). Leaving the
    group first, as after a success, would wait for ranks that may be in the middle of a collective.
    """
    try:
        main(sys.argv[1:])
    except SystemExit as end:
        code = end.code or 0
    except Exception:
        traceback.print_exc()
        code = 1
    else:
        if dist.is_initialized():
            dist.destroy_process_group()
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
