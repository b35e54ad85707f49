"""What metrics.jsonl records beside the averages in a run that samples: losses by kind of rows, and the sampling.

In: the loss sums of each step and its rows. Out: the fields of a record, the same on every rank except `generation_s`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from training.sources import KINDS, LoadedStep, StepKind


@dataclass
class Sampling:
    """Since the last record. seconds: of this rank; the rest counts the answers of all ranks."""

    seconds: float = 0.0
    answers: int = 0
    tokens: int = 0
    cut: int = 0


class KindMetrics:
    """Sums since the last record, by kind of rows; and the steps of the whole run."""

    def __init__(self, device: torch.device):
        self.device = device
        self._earlier_steps = np.zeros(len(KINDS), dtype=np.int64)  # before the last record
        self._reset()

    def add_step(self, loaded: LoadedStep, sums: Sequence[tuple[Tensor, int]]) -> None:
        """sums: [loss, CE, KD] and response positions of each micro-step on this rank; none if it was not applied."""
        self._last = loaded.kind
        for kind in set(loaded.kinds):
            self._steps[KINDS.index(kind)] += bool(sums)
        for kind, (of_micro_step, positions) in zip(loaded.kinds, sums):
            self._sums[KINDS.index(kind)] += of_micro_step[1:]
            self._positions[KINDS.index(kind)] += positions
        if loaded.sampled is not None:
            sampled, total = loaded.sampled, self._sampling
            total.seconds += sampled.seconds
            total.answers += len(sampled.rows)
            total.tokens += sampled.tokens
            total.cut += sampled.cut

    def record(self) -> dict[str, float | str]:
        """The fields since the last record, which start again. Collective."""
        totals = torch.cat([self._sums, torch.from_numpy(self._positions).to(self.device)[:, None]], dim=1)
        dist.all_reduce(totals)
        record: dict[str, float | str] = {"rows_kind": self._last}
        for kind, steps, (ce, kd, count) in zip(KINDS, self._steps.tolist(), totals.tolist()):
            record[f"{kind}_steps"] = steps
            if count:
                record |= {f"{kind}_nll_loss": ce / count, f"{kind}_kd_loss": kd / count}
        sampling = self._sampling
        record |= {"generation_s": sampling.seconds, "generated_tokens": sampling.tokens}
        if sampling.answers:
            record |= {
                "response_mean": sampling.tokens / sampling.answers,
                "cut_share": sampling.cut / sampling.answers,
            }
        self._earlier_steps += self._steps
        self._reset()
        return record

    def summary(self) -> str:
        """Of the whole run. A step with a pair counts for both kinds; one that was not applied, for none."""
        data, student, replay = (self._earlier_steps + self._steps).tolist()
        return f"trained on data in {data} steps, on sampled answers in {student}, on replayed ones in {replay}"

    def state_dict(self) -> dict:
        """Between two steps."""
        return {
            "sums": self._sums.cpu(),
            "positions": torch.from_numpy(self._positions),
            "steps": torch.from_numpy(self._steps),
            "earlier_steps": torch.from_numpy(self._earlier_steps),
            "sampling": asdict(self._sampling),
            "last": self._last,
        }

    def load_state_dict(self, state: dict) -> None:
        self._sums = state["sums"].to(self.device)
        self._positions, self._steps = state["positions"].numpy(), state["steps"].numpy()
        if "earlier_steps" in state:  # a state that was saved without them counts from here on
            self._earlier_steps = state["earlier_steps"].numpy()
        self._sampling, self._last = Sampling(**state["sampling"]), state["last"]

    def _reset(self) -> None:
        self._sums = torch.zeros(len(KINDS), 2, dtype=torch.float64, device=self.device)  # CE, KD
        self._positions, self._steps = np.zeros(len(KINDS)), np.zeros(len(KINDS), dtype=np.int64)
        self._sampling = Sampling()
        self._last: StepKind = "data"
