"""Runs `distillation.main` many times in one process group, so that a launch is paid for once.

    torchrun --nproc_per_node 2 tests/integration/worker.py JOBS.json

JOBS.json: {"out": FOLDER, "jobs": [{"name": ..., "argv": [...]}, ...]}. Rank 0 writes into FOLDER, per job, NAME.pt:
{"gradients": {name: tensor} as the first optimiser step sees them (ZeRO-0 only), "logits": of the trained student on
fixed tokens}.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "code")]

import distillation  # noqa: E402
from training.loop import Trainer  # noqa: E402

TOKENS = torch.arange(5, 45).reshape(2, 20)


def main(jobs_file: str) -> None:
    torch.set_num_threads(1)
    spec = json.loads(Path(jobs_file).read_text())
    for job in spec["jobs"]:
        seen = observe(job["argv"])
        if dist.get_rank() == 0:
            torch.save(seen, Path(spec["out"]) / f"{job['name']}.pt")
        dist.barrier()


def observe(argv: list[str]) -> dict:
    """One run of the entry point, watched from outside."""
    seen: dict = {}

    def keep_gradients(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.setdefault("gradients", [p.grad.clone() for p in parameters if p.grad is not None])

    def run_and_look(trainer: Trainer) -> None:
        original_run(trainer)
        with torch.no_grad():
            seen["logits"] = trainer.distiller.student(input_ids=TOKENS).logits

    hook = register_optimizer_step_pre_hook(keep_gradients)
    original_run, Trainer.run = Trainer.run, run_and_look
    try:
        distillation.main(argv)
    finally:
        hook.remove()
        Trainer.run = original_run
    return seen


if __name__ == "__main__":
    main(sys.argv[1])
    dist.destroy_process_group()
