"""Averages over the steps since the last record: losses, gradient norm, tokens, time.

In: the loss sums of each micro-batch. Out: one record per log interval, the same on every rank. Sums stay on the device
in between; a record costs one reduction over the ranks and one copy to the host.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from criterions.fused import LossSums, ResponsePositions
from criterions.measures import means, sample_sums
from data_utils.batches import Batch
from training.kind_metrics import KindMetrics
from training.sources import LoadedStep


class Metrics:
    """Averages since the last record, over all ranks. kinds: of a run that samples."""

    def __init__(self, device: torch.device, kinds: KindMetrics | None = None):
        self.device, self.kinds = device, kinds
        self._reset()

    def add(self, sums: LossSums, batch: Batch) -> None:
        """One micro-batch of the current step."""
        counts = np.array([batch.tokens, len(batch.labels_N), batch.input_ids_RT.numel()], dtype=np.float64)
        self._of_step.append((torch.stack([sums.loss.detach(), sums.ce, sums.kd]).double(), counts))

    def observe(self, positions: ResponsePositions) -> None:
        """Measures a sample of a micro-batch; for the step that `record` follows, so that it costs little."""
        sums = sample_sums(positions)
        self._measured = sums if self._measured is None else self._measured + sums

    def losses(self) -> Tensor:
        """The loss of each micro-batch of the current step, on this rank."""
        return torch.stack([sums[0] for sums, _ in self._of_step])

    def end_step(self, applied: bool, grad_norm: float | Tensor = 0.0, loaded: LoadedStep | None = None) -> None:
        """A step that was not applied is excluded from the averages, as from training.

        grad_norm: of the whole gradient of an applied step, before clipping; a tensor is not read here.
        """
        if self.kinds is not None:
            self.kinds.add_step(loaded, [(sums, counts[1]) for sums, counts in self._of_step if applied])
        for sums, counts in self._of_step if applied else []:
            self._sums += sums
            self._counts += counts
        if applied:
            self._grad_norms += grad_norm
        else:
            self._measured = None
        self._of_step = []
        self._steps += 1
        self._skipped += not applied

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time in the block counts as training time; evaluation and saving stay outside."""
        self._started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - self._started

    def record(self, step: int, epoch: int, lr: float, extras: dict[str, float]) -> dict[str, float] | None:
        """The averages since the last record, which start again; every rank calls it, inside `timed`.

        None if no step was applied since then: the next record counts these steps as skipped.
        """
        # Every rank knows the norm of the whole gradient: their mean is that norm.
        grad_norms = self._grad_norms / dist.get_world_size()
        parts = [self._sums, torch.from_numpy(self._counts).to(self.device), grad_norms[None]]
        totals = torch.cat([*parts, *([] if self._measured is None else [self._measured])])
        dist.all_reduce(totals)
        loss, ce, kd, tokens, response_tokens, padded_tokens, grad_norms, *measured = totals.tolist()
        if not response_tokens:
            return None
        # After the copy to the host, which waits for the device.
        seconds = self._seconds + time.perf_counter() - self._started
        record = {
            "step": step,
            "epoch": epoch,
            "loss": loss / response_tokens,
            "nll_loss": ce / response_tokens,
            "kd_loss": kd / response_tokens,
            "lr": lr,
            "grad_norm": grad_norms / (self._steps - self._skipped),
            "tokens": int(tokens),
            "response_tokens": int(response_tokens),
            "padding": round(1 - tokens / padded_tokens, 4),
            "step_time": seconds / self._steps,
            "tokens_per_s": tokens / seconds,
            "peak_memory_mb": peak_memory_mb(self.device),
            "skipped_steps": self._skipped,
            **(means(measured) if measured else {}),
            **(self.kinds.record() if self.kinds is not None else {}),
            **extras,
        }
        self._reset()
        return record

    def state_dict(self) -> dict:
        """Between two steps."""
        sums, counts = self._sums.cpu(), torch.from_numpy(self._counts)
        return {
            "sums": sums,
            "counts": counts,
            "grad_norms": self._grad_norms.cpu(),
            "steps": self._steps,
            "skipped": self._skipped,
            "s": self._seconds,
            **({"kinds": self.kinds.state_dict()} if self.kinds is not None else {}),
        }

    def load_state_dict(self, state: dict) -> None:
        self._sums, self._counts = state["sums"].to(self.device), state["counts"].numpy()
        self._grad_norms = state["grad_norms"].to(self.device)
        self._steps, self._skipped, self._seconds = state["steps"], state["skipped"], state["s"]
        if self.kinds is not None:
            self.kinds.load_state_dict(state["kinds"])

    def _reset(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._counts = np.zeros(3)  # tokens, response tokens, tokens with padding
        self._grad_norms = torch.zeros((), dtype=torch.float64, device=self.device)
        self._of_step: list[tuple[Tensor, np.ndarray]] = []
        self._measured: Tensor | None = None  # of the step that is logged
        self._steps = self._skipped = 0
        self._seconds, self._started = 0.0, time.perf_counter()


def peak_memory_mb(device: torch.device) -> float:
    """Highest so far: of the device's allocator, or of this process on a CPU."""
    if device.type == "cpu":
        scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes on Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    return torch.get_device_module(device).max_memory_allocated(device) / 2**20
