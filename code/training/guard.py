"""Non-finite steps (a NaN or infinite loss or gradient): never applied, logged, kept for replay, limited in number.

A non-finite loss makes every gradient non-finite (`poisoned`); the optimiser, which checks the norm of the gradient
over all ranks before every update, then skips the step on all of them. A finite step costs nothing here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor
from torch import distributed as dist

from data_utils.batches import Example
from runtime.atomic import write_text
from runtime.log import logger
from runtime.ranks import is_main_process, rank, world_size
from training.sources import LoadedStep
from training.state import Position


class Diverged(RuntimeError):
    """--max-bad-steps consecutive steps were non-finite."""


def poisoned(loss: Tensor) -> Tensor:
    """The same number, whose gradient is non-finite if it is (that of an infinite loss alone may be finite)."""
    return loss * (1 + 0 * loss.detach())


@dataclass
class StepGuard:
    """Checks every step after it was taken or skipped; counts consecutive bad ones in `position`."""

    engine: DeepSpeedEngine
    save_dir: Path
    max_bad_steps: int
    position: Position

    def check(self, loaded: LoadedStep, losses: Tensor) -> bool:
        """Whether the step after `position` changed the parameters.

        losses: of this rank's micro-batches. Raises Diverged.
        """
        step = self.position.step + 1
        if self.engine.was_step_applied():
            self.position.bad_steps = 0
            return True
        finite = [torch.zeros_like(losses) for _ in range(world_size())]
        dist.all_gather(finite, losses.isfinite().to(losses.dtype))
        finite_ranks = [bool(of_rank.all()) for of_rank in finite]
        if all(finite_ranks) and self.engine.fp16_enabled() and self.engine.dynamic_loss_scale():
            scale = self.engine.optimizer.cur_scale
            logger.info("step %d skipped: fp16 gradients overflowed; loss scale now %g", step, scale)
            return False
        self.position.bad_steps += 1
        self._report(step, loaded, losses, finite_ranks)
        return False

    def _report(self, step: int, loaded: LoadedStep, losses: Tensor, finite_ranks: Sequence[bool]) -> None:
        bad_steps = self.position.bad_steps
        what = "gradient" if all(finite_ranks) else "loss"
        ranks = [number for number, finite in enumerate(finite_ranks) if not finite or what == "gradient"]
        folder = self.save_dir / "bad_steps"
        if is_main_process():
            folder.mkdir(exist_ok=True)
        dist.barrier()
        if rank() in ranks:
            self._keep(folder / f"step{step}_rank{rank()}.json", step, loaded, losses)
        indices = [i for micro_step in loaded.step.examples for number in ranks for i in micro_step[number]]
        hashes = [_hash(loaded.rows[i]) for i in indices]
        message = (
            f"step {step}: the {what} is non-finite on rank {', '.join(map(str, ranks))}; the step was not applied "
            f"({bad_steps} in a row, --max-bad-steps {self.max_bad_steps}); examples {' '.join(hashes)}, "
            f"kept in {folder}"
        )
        logger.warning(message)
        if bad_steps >= self.max_bad_steps:
            raise Diverged(f"{message}. Lower --lr, clip with --clip-grad, or train in bf16 or fp32; see the examples")

    def _keep(self, path: Path, step: int, loaded: LoadedStep, losses: Tensor) -> None:
        micro_steps = [
            {
                "loss": repr(loss),
                "rows_kind": kind,
                "examples": [_record(index, loaded.rows[index]) for index in of_ranks[rank()]],
            }
            for of_ranks, kind, loss in zip(loaded.step.examples, loaded.kinds, losses.tolist())
        ]
        record = {"step": step, "rank": rank(), "micro_steps": micro_steps}
        write_text(path, json.dumps(record, indent=1) + "\n")


def _hash(example: Example) -> str:
    return example.key.hex()[:16]


def _record(index: int, example: Example) -> dict:
    ids = {name: list(map(int, getattr(example, name))) for name in ("prompt_ids", "response_ids", "spans")}
    return {"index": index, "hash": _hash(example), **ids}
