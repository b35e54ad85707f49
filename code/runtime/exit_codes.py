"""Exit codes of the entry points (listed in docs/reliability.md), and how a process ends with one."""

import atexit
import os
import sys
import traceback
from collections.abc import Callable

from torch import distributed as dist

WRONG_INPUT = 2
DIVERGED = 3
NOT_WRITTEN = 74  # EX_IOERR: a full disk, a quota, lost storage
STOPPED = 75  # EX_TEMPFAIL: the state is saved; the same command resumes the run


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
