"""Logs of a run: `train.log` for people, `metrics.jsonl` for programs.

Sums stay on the device between log intervals; one reduction over the ranks and one copy to the host a logged step.
"""

import json
import math
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from criterions.fused import LossSums
from data_utils.batches import Batch
from runtime.atomic import as_write_error


class Metrics:
    """Means since the last logged step, over all ranks."""

    def __init__(self, path: Path, device: torch.device, main: bool):
        self.path = path
        self.device = device
        self.main = main
        self._reset()

    def add(self, sums: LossSums, batch: Batch) -> None:
        """One micro-batch of the current step."""
        counts = np.array([batch.tokens, len(batch.labels_N), batch.input_ids_RT.numel()], dtype=np.float64)
        self._of_step.append((torch.stack([sums.loss.detach(), sums.ce, sums.kd]).double(), counts))

    def losses(self) -> Tensor:
        """Of the micro-batches of the current step, on this rank."""
        return torch.stack([sums[0] for sums, _ in self._of_step])

    def end_step(self, applied: bool, grad_norm: float | Tensor = 0.0) -> None:
        """A step that was not applied is excluded from the averages, as from training.

        grad_norm: of the whole gradient of an applied step, before clipping; a tensor is not read here.
        """
        for sums, counts in self._of_step if applied else []:
            self._sums += sums
            self._counts += counts
        if applied:
            self._grad_norms += grad_norm
        self._of_step = []
        self._steps += 1
        self._skipped += not applied

    def log(self, step: int, epoch: int, lr: float, extras: dict[str, float]) -> dict | None:
        """Writes and returns one record of the steps since the last.

        None if none of them was applied: they go into the next record.
        """
        # Every rank knows the norm of the whole gradient: their mean is that norm.
        grad_norms = self._grad_norms / dist.get_world_size()
        totals = torch.cat([self._sums, torch.from_numpy(self._counts).to(self.device), grad_norms[None]])
        dist.all_reduce(totals)
        loss, ce, kd, tokens, response_tokens, padded_tokens, grad_norms = totals.tolist()
        if not response_tokens:
            return None
        self.stop_clock()
        seconds = self._seconds
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
            **extras,
        }
        if self.main:
            append_record(self.path, record)
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
        }

    def load_state_dict(self, state: dict) -> None:
        self._sums, self._counts = state["sums"].to(self.device), state["counts"].numpy()
        self._grad_norms = state["grad_norms"].to(self.device)
        self._steps, self._skipped, self._seconds = state["steps"], state["skipped"], state["s"]

    def stop_clock(self) -> None:
        """Time spent elsewhere (evaluation, saving) is no training time."""
        self._seconds += time.perf_counter() - self._started

    def start_clock(self) -> None:
        self._started = time.perf_counter()

    def _reset(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._counts = np.zeros(3)  # tokens, response tokens, tokens with padding
        self._grad_norms = torch.zeros((), dtype=torch.float64, device=self.device)
        self._of_step: list[tuple[Tensor, np.ndarray]] = []
        self._steps = self._skipped = 0
        self._seconds = 0.0
        self.start_clock()


def append_record(path: Path, record: dict) -> None:
    """One line of JSON, where a number that is not finite is null. Raises WriteError."""
    values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    with as_write_error(path), path.open("a") as file:
        file.write(json.dumps(values) + "\n")


def peak_memory_mb(device: torch.device) -> float:
    """Highest so far: of the device's allocator, or of this process on a CPU."""
    if device.type == "cpu":
        scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes on Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    return torch.get_device_module(device).max_memory_allocated(device) / 2**20
