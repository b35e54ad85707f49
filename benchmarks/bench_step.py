"""A training step of distillation: dense and padded to 512, against packed and chunked, with live and cached teacher.

Models of SmolLM2-135M's sizes (30 layers) and of 10 of its layers, random weights, no download; row lengths of Dolly;
forward, backward and AdamW in fp32 (the last variant: in bf16 with fp32 master weights, as DeepSpeed has it). Each
variant runs in a process of its own, so that peak memory is its own; all see the same examples. The variants take
turns, and the best of the rounds counts for each batch, since a machine's speed varies. "SFT" is the same student
without a teacher. The passes of the teacher alone are timed too: over these batches as an epoch takes them, and
as the cache is made.

    python benchmarks/bench_step.py [--objective todi] [--batches 2] [--batch-size 4] [--rounds 3]

Prints a table and writes benchmarks/results/<date>-bench_step-<objective>.json.
"""

import argparse
import json
import logging
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from transformers import LlamaForCausalLM

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from workload import DOLLY, SMOLLM2, SMOLLM2_10L, in_process, llama, write_result  # noqa: E402

from arguments import DataArguments, KDArguments, TrainArguments  # noqa: E402
from criterions import build_criterion  # noqa: E402
from data_utils.batches import Example, ExampleTable, collate  # noqa: E402
from distiller import Distiller  # noqa: E402
from evaluation.results import format_table  # noqa: E402
from models.heads import SplitModel, find_head  # noqa: E402
from models.probes import batch_layout  # noqa: E402
from reference.dense_step import dense_loss, pad_to_max  # noqa: E402
from runtime.ranks import init_distributed  # noqa: E402
from teacher.cache import TeacherCache  # noqa: E402
from teacher.filling import CacheFiller  # noqa: E402
from teacher.states import CachedTeacher, LiveTeacher  # noqa: E402
from training.optimizer import build_optimizer  # noqa: E402

MAX_LENGTH, VOCABULARY, TEMPERATURE = 512, 49152, 2.0
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}  # as scripts/lib/common.sh sets it; for all variants
STEPS = {
    "dense": "padded to 512, dense logits",
    "live": "packed, chunked loss, live teacher",
    "cached": "packed, chunked loss, cached teacher",
    "cached-compiled": "... with --compile-loss",
    "sft": "packed, chunked loss, SFT",
    "live-bf16": "packed, chunked loss, live teacher, bf16",
}
PASSES = {"teacher": "the teacher alone, batches of an epoch", "fill": "the teacher alone, making the cache"}


def live_teacher(dtype: torch.dtype = torch.float32) -> LiveTeacher:
    model = llama(SMOLLM2, VOCABULARY, seed=2).eval().requires_grad_(False).to(dtype)
    return LiveTeacher(SplitModel(model, find_head(model)))


def make_batches(count: int, size: int) -> list[list[Example]]:
    """One that warms up, and those of the steps."""
    draw = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(VOCABULARY, (length,), generator=draw).tolist()

    examples = [Example(ids(prompt), ids(response)) for prompt, response in DOLLY]
    return [examples[-size:], *(examples[i * size : (i + 1) * size] for i in range(count))]


class MasterWeights:
    """AdamW on fp32 copies of the weights, where these are not fp32 themselves."""

    def __init__(self, model: LlamaForCausalLM):
        self.weights = list(model.parameters())
        masters = llama(SMOLLM2_10L, VOCABULARY, seed=1) if model.dtype != torch.float32 else model
        self.masters = list(masters.parameters())
        self.optimizer = build_optimizer(masters, TrainArguments(lr=1e-4))

    @torch.no_grad()
    def step(self) -> None:
        for weight, master in zip(self.weights, self.masters):
            master.grad = weight.grad.to(master.dtype)
        self.optimizer.step()
        for weight, master in zip(self.weights, self.masters):
            if weight is not master:
                weight.copy_(master)

    def zero_grad(self) -> None:
        for parameter in (*self.weights, *self.masters):
            parameter.grad = None


class Rows(ExampleTable):
    """Examples in memory, the longest first."""

    def __init__(self, examples: list[Example]):
        self.examples = sorted(examples, key=len, reverse=True)
        self.lengths = np.array([len(example) for example in self.examples])
        self.responses = np.array([len(example.response_ids) for example in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def keys(self) -> list[bytes]:
        return [example.key for example in self.examples]


def measure(variant: str, cache: str, args: argparse.Namespace) -> dict:
    """Seconds of each step or pass over the same rows, mean losses, peak memory in MB of one variant."""
    batches = make_batches(args.batches, args.batch_size)
    if variant == "fill":
        found = fill(batches, TeacherCache(cache, {"teacher": "random"}))
    elif variant == "teacher":
        teacher = live_teacher()
        layout = batch_layout([teacher.model.model])
        found = timed(batches, lambda examples: teacher.states(collate(examples, 0, MAX_LENGTH, layout)) and 0.0)
    else:
        found = timed(batches, step_of(variant, cache, args))
    return found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def timed(batches: list[list[Example]], step: Callable[[list[Example]], float]) -> dict:
    seconds, losses = [], []
    for examples in batches:
        started = time.perf_counter()
        losses.append(step(examples))
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[1:], "losses": losses}


def step_of(variant: str, cache: str, args: argparse.Namespace) -> Callable[[list[Example]], float]:
    dtype = torch.bfloat16 if variant.endswith("bf16") else torch.float32
    student = llama(SMOLLM2_10L, VOCABULARY, seed=1).to(dtype)
    kd = KDArguments(kd_objective="cross_entropy" if variant == "sft" else args.objective, kd_temperature=TEMPERATURE)
    if variant == "dense":
        teacher, optimizer = live_teacher().model.model, torch.optim.AdamW(student.parameters(), lr=1e-4)
    else:
        optimizer = MasterWeights(student)
        distiller = Distiller(
            SplitModel(student, find_head(student)),
            build_criterion(kd.objective, kd),
            kd.loss_chunk_mb,
            compile_loss=variant.endswith("compiled"),
        )
        source = {
            "live": live_teacher,
            "live-bf16": lambda: live_teacher(dtype),
            "cached": lambda: CachedTeacher(TeacherCache(cache, {"teacher": "random"}), torch.device("cpu")),
            "sft": lambda: None,
        }[variant.removesuffix("-compiled")]()
        layout = batch_layout([student, *([source.model.model] if isinstance(source, LiveTeacher) else [])])

    def loss_of(examples: list[Example]) -> torch.Tensor:
        if variant == "dense":
            batch = pad_to_max([(e.prompt_ids, e.response_ids) for e in examples], MAX_LENGTH, pad_id=0)
            sums = dense_loss(student, teacher, batch, args.objective, kd.kd_rate, TEMPERATURE)
            return sums.loss_sum / sums.tokens
        batch = collate(examples, 0, MAX_LENGTH, layout)
        return distiller(batch, source.states(batch) if source else None).loss / len(batch.labels_N)

    def step(examples: list[Example]) -> float:
        loss = loss_of(examples)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def fill(batches: list[list[Example]], cache: TeacherCache) -> dict:
    """Seconds for as many rows as a step has, of a pass over all but the first batch's, which warms up."""
    logging.disable()
    device = init_distributed()
    teacher = live_teacher()
    layout = batch_layout([teacher.model.model])
    cache.start(teacher.head, "random weights")

    def compute(examples: list[Example]) -> None:
        rows = Rows(examples)
        missing = [(rows, i) for i in range(len(examples))]
        filler = CacheFiller(cache, [rows], DataArguments("data", max_length=MAX_LENGTH), 0, device)
        filler.compute(teacher.model, missing, layout)

    compute(batches[0])
    started = time.perf_counter()
    compute([example for batch in batches[1:] for example in batch])
    seconds = time.perf_counter() - started
    dist.destroy_process_group()
    return {"seconds": [seconds / len(batches[1:])]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", default="todi")
    parser.add_argument("--batches", type=int, default=2, help="steps timed, after one that warms up")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each variant")
    parser.add_argument("--variant", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.batches + 1) * args.batch_size > len(DOLLY):
        parser.error(f"there are the lengths of {len(DOLLY)} rows; lower --batches or --batch-size")
    if args.variant:
        print(json.dumps(measure(*args.variant, args)))
        return

    found = {variant: [] for variant in (*STEPS, *PASSES)}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for variant in ("dense", "live", "fill", "cached", "cached-compiled", "sft", "teacher", "live-bf16"):
                arguments = [*sys.argv[1:], "--variant", variant, cache]
                found[variant].append(in_process(__file__, arguments, os.environ | HUGE_PAGES))
    results = {variant: best(rounds) for variant, rounds in found.items()}
    print_tables(results)
    settings = {
        "objective": args.objective,
        "batch_size": args.batch_size,
        "batches": args.batches,
        "rounds": args.rounds,
    }
    write_result(f"bench_step-{args.objective}", settings, results=results)


def best(rounds: list[dict]) -> dict:
    """The mean over the batches of the best time for each; the largest peak."""
    fastest = [min(seconds) for seconds in zip(*(found["seconds"] for found in rounds))]
    peak_mb = max(found["peak_mb"] for found in rounds)
    return rounds[0] | {"seconds": sum(fastest) / len(fastest), "peak_mb": peak_mb, "rounds": rounds}


def print_tables(results: dict[str, dict]) -> None:
    dense = results["dense"]
    rows = []
    for variant, name in STEPS.items():
        found = results[variant]
        off = max(abs(a - b) / b for a, b in zip(found["losses"], dense["losses"]))
        rows.append([name, f"{found['seconds']:.2f}", f"{dense['seconds'] / found['seconds']:.1f}x"])
        rows[-1] += [f"{found['peak_mb']:.0f}", f"{found['peak_mb'] / dense['peak_mb']:.2f}x"]
        rows[-1] += ["" if variant == "sft" else f"{off:.1e}"]
    print(format_table(["step", "seconds", "faster", "peak MB", "of dense", "loss off by"], rows))
    print()
    for variant, name in (("cached", ""), ("cached-compiled", " and --compile-loss")):
        print(f"KD with the cache{name} / SFT: {results[variant]['seconds'] / results['sft']['seconds']:.2f}x")
    print()
    rows = [[name, f"{results[variant]['seconds']:.2f}"] for variant, name in PASSES.items()]
    print(format_table(["pass, rows of a step", "seconds"], rows))
    ratio = results["fill"]["seconds"] / results["teacher"]["seconds"]
    print(f"\nmaking the cache / an epoch of the teacher: {ratio:.2f}x")


if __name__ == "__main__":
    main()
