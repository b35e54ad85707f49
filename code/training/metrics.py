"""Logs of a run: `train.log` for people, `metrics.jsonl` for programs.

Sums stay on the device between log intervals; one reduction over the ranks and one copy to the host a logged step.
"""

import json
import logging
import resource
import sys
import time
from pathlib import Path

import torch
from torch import distributed as dist

from criterions.fused import LossSums
from data_utils.batches import Batch


def build_logger(save_dir: Path, main: bool) -> logging.Logger:
    """Rank 0 writes to the terminal and to train.log; the others stay silent."""
    logger = logging.getLogger("distillation")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers.clear()
    if not main:
        logger.addHandler(logging.NullHandler())
        return logger
    for handler in (logging.StreamHandler(sys.stdout), logging.FileHandler(save_dir / "train.log")):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    return logger


class Metrics:
    """Means since the last logged step, over all ranks."""

    def __init__(self, path: Path, device: torch.device, main: bool):
        self.path = path
        self.device = device
        self.main = main
        self._reset()

    def add(self, sums: LossSums, batch: Batch) -> None:
        """One micro-batch."""
        self._sums += torch.stack([sums.loss.detach(), sums.ce, sums.kd]).double()
        self._tokens += batch.tokens
        self._response_tokens += len(batch.labels_N)
        self._padded_tokens += batch.input_ids_RT.numel()

    def log(self, step: int, epoch: int, lr: float, steps: int, extras: dict[str, float]) -> dict:
        """Writes and returns one object; means over the `steps` optimiser steps since the last."""
        counts = torch.tensor([self._tokens, self._response_tokens, self._padded_tokens], dtype=torch.float64)
        totals = torch.cat([self._sums, counts.to(self.device)])
        dist.all_reduce(totals)
        loss, ce, kd, tokens, response_tokens, padded_tokens = totals.tolist()
        self.stop_clock()
        seconds = self._seconds
        record = {
            "step": step,
            "epoch": epoch,
            "loss": loss / response_tokens,
            "nll_loss": ce / response_tokens,
            "kd_loss": kd / response_tokens,
            "lr": lr,
            "tokens": int(tokens),
            "response_tokens": int(response_tokens),
            "padding": round(1 - tokens / padded_tokens, 4),
            "step_time": seconds / steps,
            "tokens_per_s": tokens / seconds,
            "peak_memory_mb": peak_memory_mb(self.device),
            **extras,
        }
        self.write(record)
        self._reset()
        return record

    def write(self, record: dict) -> None:
        if self.main:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def stop_clock(self) -> None:
        """Time spent elsewhere (evaluation, saving) is no training time."""
        self._seconds += time.perf_counter() - self._started

    def start_clock(self) -> None:
        self._started = time.perf_counter()

    def _reset(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._tokens = self._response_tokens = self._padded_tokens = 0
        self._seconds = 0.0
        self.start_clock()


def peak_memory_mb(device: torch.device) -> float:
    """Highest so far: of the device's allocator, or of this process on a CPU."""
    if device.type == "cpu":
        scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes on Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    return torch.get_device_module(device).max_memory_allocated(device) / 2**20
