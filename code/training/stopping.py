"""How a run ends: its exit code, and the signals that end it before its time with its state saved.

Exit codes of `code/distillation.py`: see docs/reliability.md.
"""

import atexit
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType

import torch
from torch import distributed as dist

STOPPED = 75  # EX_TEMPFAIL: the state is saved, run the same command again
NOT_WRITTEN = 74  # EX_IOERR: a full disk, a quota, lost storage
DIVERGED = 3
# Launchers pass a signal on that the terminal has sent to every process already.
ECHO_SECONDS = 2.0


def run_entry(main: Callable[[list[str]], None]) -> None:
    """Runs an entry point on the words of the command line, and ends the process with its exit code.

    A failure skips Python's finalisation. A thread of the process group that waits for the interpreter there, to free
    what the last collective left, would abort the process (SIGABRT in place of the exit code); and leaving the group
    first, as after a success, waits for ranks that may be in the middle of a collective.
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


class StopSignals:
    """SIGTERM and SIGINT, inside the `with`: the ranks agree on the step after which they stop.

    A signal reaches one rank, or each at another step. After every step the ranks add up their flags on the device and
    look at the sum of the step before, so they stop after the same step, one later. A second signal ends the process.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.received: int | None = None
        self._when = 0.0
        self._sum = torch.zeros((), pin_memory=device.type == "cuda")

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def after_step(self) -> bool:
        """Whether all ranks stop here. Every rank calls it after every step."""
        if dist.get_world_size() == 1:
            return self.received is not None
        # The host has looked at the gradient norm of the step since the copy was started: it has arrived.
        agreed = bool(self._sum.item())
        self._sum.copy_(self._reduced(), non_blocking=True)
        return agreed

    def now(self) -> bool:
        """The same without the step in between: where the ranks wait for each other anyway."""
        return bool(self._reduced().item())

    def _reduced(self) -> torch.Tensor:
        flag = torch.full((), float(self.received is not None), device=self.device)
        dist.all_reduce(flag)
        return flag

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._when = number, time.monotonic()
        elif time.monotonic() - self._when > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
