"""Steps whose loss or gradient is not finite: never applied, named, kept for replay, and not too many in a row.

A loss that is not finite makes its gradient so (`poisoned`); then the optimiser, which looks at the gradient's norm
over all ranks before every update, leaves the step out on all of them. Nothing here asks the device about a good step.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor
from torch import distributed as dist

from data_utils.batches import Example, ExampleTable
from data_utils.epoch_plan import Step
from runtime.atomic import write_text
from runtime.log import logger


class Diverged(RuntimeError):
    """--max-bad-steps in a row were not finite."""


def poisoned(loss: Tensor) -> Tensor:
    """The same number; if that is not finite, so is every gradient of it (a loss of inf may have a finite one)."""
    return loss * (1 + 0 * loss.detach())


@dataclass
class StepGuard:
    """Looks at every step after it was taken, or not. `bad_steps`: in a row, up to now."""

    engine: DeepSpeedEngine
    data: ExampleTable
    save_dir: Path
    max_bad_steps: int
    bad_steps: int = 0

    def inspect(self, step: int, planned: Step, losses: Tensor) -> bool:
        """Whether step `step` changed the parameters.

        losses: of this rank's micro-batches. Raises Diverged.
        """
        if self.engine.was_step_applied():
            self.bad_steps = 0
            return True
        finite = [torch.zeros_like(losses) for _ in range(dist.get_world_size())]
        dist.all_gather(finite, losses.isfinite().to(losses.dtype))
        finite_ranks = [bool(of_rank.all()) for of_rank in finite]
        if all(finite_ranks) and self.engine.fp16_enabled() and self.engine.dynamic_loss_scale():
            scale = self.engine.optimizer.cur_scale
            logger.info("step %d skipped: fp16 gradients overflowed; loss scale now %g", step, scale)
            return False
        self.bad_steps += 1
        self._report(step, planned, losses, finite_ranks)
        return False

    def _report(self, step: int, planned: Step, losses: Tensor, finite_ranks: Sequence[bool]) -> None:
        what = "gradient" if all(finite_ranks) else "loss"
        ranks = [rank for rank, finite in enumerate(finite_ranks) if not finite or what == "gradient"]
        folder = self.save_dir / "bad_steps"
        if dist.get_rank() == 0:
            folder.mkdir(exist_ok=True)
        dist.barrier()
        if dist.get_rank() in ranks:
            self._keep(folder / f"step{step}_rank{dist.get_rank()}.json", step, planned, losses)
        indices = [i for micro_step in planned.examples for rank in ranks for i in micro_step[rank]]
        hashes = [_hash(self.data[i]) for i in indices]
        message = (
            f"step {step}: the {what} is not finite on rank {', '.join(map(str, ranks))}; the step was not applied "
            f"({self.bad_steps} in a row, --max-bad-steps {self.max_bad_steps}); examples {' '.join(hashes)}, "
            f"kept in {folder}"
        )
        logger.warning(message)
        if self.bad_steps >= self.max_bad_steps:
            raise Diverged(f"{message}. Lower --lr, clip with --clip-grad, or train in bf16 or fp32; see the examples")

    def _keep(self, path: Path, step: int, planned: Step, losses: Tensor) -> None:
        rank = dist.get_rank()
        micro_steps = [
            {
                "loss": repr(loss),
                "examples": [_record(index, self.data[index]) for index in of_ranks[rank]],
            }
            for of_ranks, loss in zip(planned.examples, losses.tolist())
        ]
        write_text(path, json.dumps({"step": step, "rank": rank, "micro_steps": micro_steps}, indent=1) + "\n")


def _hash(example: Example) -> str:
    return example.key.hex()[:16]


def _record(index: int, example: Example) -> dict:
    prompt_ids, response_ids = (list(map(int, ids)) for ids in (example.prompt_ids, example.response_ids))
    return {"index": index, "hash": _hash(example), "prompt_ids": prompt_ids, "response_ids": response_ids}
