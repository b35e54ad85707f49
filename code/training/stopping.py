"""Ends a run on SIGTERM or SIGINT: after a step, the same one on all ranks, with its state saved."""

import os
import signal
import time
from types import FrameType

import torch
from torch import distributed as dist

# A terminal signals every process; the launcher then forwards the same signal once more.
ECHO_SECONDS = 2.0


class StopSignals:
    """Receives the signals inside its `with` block; the ranks agree on the step after which they stop.

    A signal may reach one rank only, or each rank in another step. After every step the ranks sum their flags on the
    device and read the sum of the step before: all stop after the same step, one step later. A second signal ends the
    process at once.
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
        """Whether all ranks stop after this step. Every rank calls it after every step."""
        if dist.get_world_size() == 1:
            return self.received is not None
        # The host has read this step's gradient norm since the copy was started, so the copy is complete.
        agreed = bool(self._sum.item())
        self._sum.copy_(self._reduced(), non_blocking=True)
        return agreed

    def now(self) -> bool:
        """The same for the signals up to now, where the ranks wait for each other anyway."""
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
