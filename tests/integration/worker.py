"""Runs `distillation.main` many times in one process group, so that a launch is paid for once.

    torchrun --nproc_per_node 2 tests/integration/worker.py JOBS.json

JOBS.json: {"out": FOLDER, "jobs": [{"name": ..., "argv": [...]}, ...]}. Rank 0 writes into FOLDER, per job, NAME.pt:
{"gradients": {name: tensor} as the first optimiser step sees them (ZeRO-0 only), "logits": of the trained student on
fixed tokens, "teacher_bodies": how many teachers were loaded, "loaded": elements of the student in this rank's memory
and in all, when it is loaded and before there is an engine}.

A job with "args_json" instead of "argv" repeats the run that wrote that file, with the job's "flags".

A job with "entry" (distillation, evaluate) is expected to end early: NAME.json gets of every rank the exit code (or the
exception), what it wrote to stderr, and the seconds. Its "breaks" ({"rank", "function", "error"}) makes a function, by
module and name, raise on one rank alone.
"""

import builtins
import contextlib
import importlib
import io
import json
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from torch import distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "scripts/lib")]

import run_file  # noqa: E402

import distillation  # noqa: E402
from runtime.ranks import init_distributed  # noqa: E402
from teacher import loading  # noqa: E402
from training import building  # noqa: E402
from training.loop import Trainer  # noqa: E402

TOKENS = torch.arange(5, 45).reshape(2, 20)


def main(jobs_file: str) -> None:
    torch.set_num_threads(1)
    init_distributed()
    spec = json.loads(Path(jobs_file).read_text())
    for job in spec["jobs"]:
        out = Path(spec["out"]) / job["name"]
        if "entry" in job:
            ends: list = [None] * dist.get_world_size()
            dist.all_gather_object(ends, end_of(job))
            if dist.get_rank() == 0:
                out.with_name(f"{out.name}.json").write_text(json.dumps(ends))
            continue
        if "args_json" in job:
            _, job["argv"] = run_file.read_run(Path(job["args_json"]), job["flags"])
        seen = observe(job["argv"])
        if dist.get_rank() == 0:
            torch.save(seen, f"{out}.pt")
        dist.barrier()


def end_of(job: dict) -> dict:
    """How a run that is refused ended on this rank."""
    entry, stderr, started = importlib.import_module(job["entry"]), io.StringIO(), time.perf_counter()
    breaks = job.get("breaks", {})
    broken = contextlib.nullcontext()
    if breaks.get("rank") == dist.get_rank():
        error = getattr(builtins, breaks["error"])("broken on purpose")
        broken = mock.patch(breaks["function"], side_effect=error)
    with broken, contextlib.redirect_stderr(stderr):
        try:
            entry.main(job["argv"])
            code = 0
        except SystemExit as end:
            code = end.code
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
    return {"code": code, "stderr": stderr.getvalue(), "seconds": time.perf_counter() - started}


def observe(argv: list[str]) -> dict:
    """One run of the entry point, watched from outside."""
    seen: dict = {}

    def keep_gradients(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.setdefault("gradients", [p.grad.clone() for p in parameters if p.grad is not None])

    def run_and_look(trainer: Trainer) -> bool:
        finished = original_run(trainer)
        with torch.no_grad():
            seen["logits"] = trainer.distiller.student(input_ids=TOKENS).logits
        return finished

    def build_and_look(distiller, *args):
        parameters = list(distiller.parameters())
        held = sum(p.numel() + (p.ds_tensor.numel() if hasattr(p, "ds_tensor") else 0) for p in parameters)
        seen["loaded"] = held, sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
        return original_build(distiller, *args)

    original_build = building.build_engine
    hook = register_optimizer_step_pre_hook(keep_gradients)
    original_run, Trainer.run = Trainer.run, run_and_look
    try:
        with (
            mock.patch.object(building, "build_engine", build_and_look),
            mock.patch.object(loading, "load_teacher", wraps=loading.load_teacher) as load_teacher,
            mock.patch.object(distillation, "write_own_report"),  # a second per run
        ):
            distillation.main(argv)
        seen["teacher_bodies"] = load_teacher.call_count
    finally:
        hook.remove()
        Trainer.run = original_run
    return seen


if __name__ == "__main__":
    main(sys.argv[1])
    dist.destroy_process_group()
