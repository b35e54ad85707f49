"""SIGTERM and SIGINT end a run after a step, on all ranks the same one, with its state saved."""

import os
import signal
import time
from types import FrameType

import torch
from torch import distributed as dist

# Launchers pass a signal on that the terminal has sent to every process already.
ECHO_SECONDS = 2.0


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
