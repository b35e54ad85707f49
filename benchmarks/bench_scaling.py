"""How the cost of training grows: with the length of the rows, the vocabulary, the micro-batch, the ranks, the epochs.

Models with random weights of a named size, ToDi with a live teacher, fp32 on CPU, no download. Length, vocabulary and
micro-batch are measured on the bare step (forward, backward, AdamW), one process per point, so that its peak memory is
its own; ranks and epochs on whole runs of `code/distillation.py`, one thread per rank, with the numbers of its log.

    python benchmarks/bench_scaling.py [--dimensions length vocabulary batch ranks epochs] [--size small] [--steps 4]
    python benchmarks/bench_scaling.py --dimensions ranks --size smollm2

Prints one table per dimension, with ratios to its first row, and writes benchmarks/results/<date>-bench_scaling.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from workload import DOLLY, SMOLLM2, SMOLLM2_10L, in_process, llama, write_result  # noqa: E402

from arguments import KDArguments, TrainArguments  # noqa: E402
from criterions import build_criterion  # noqa: E402
from data_utils.batches import Example, collate  # noqa: E402
from distiller import Distiller  # noqa: E402
from evaluation.results import format_table  # noqa: E402
from models.heads import SplitModel, find_head  # noqa: E402
from models.probes import batch_layout  # noqa: E402
from teacher.states import LiveTeacher  # noqa: E402
from tiny import WORDS, make_tokenizer  # noqa: E402
from training.optimizer import build_optimizer  # noqa: E402

MAX_LENGTH, VOCABULARY, OBJECTIVE = 512, 49152, "todi"
# Student and teacher: layers, hidden size, size of the MLP, heads, key-value heads.
SIZES = {
    "small": ((4, 256, 704, 4, 2), (8, 384, 1024, 6, 3)),
    "smollm2": (SMOLLM2_10L, SMOLLM2),
}
POINTS = {
    "length": [{"length": length} for length in (128, 256, 512, 1024)],
    "vocabulary": [{"vocabulary": size} for size in (32_000, 49_152, 151_936, 262_144)],
    "batch": [{"batch": size} for size in (1, 2, 4, 8, 16)],
}


# --- the bare step ---------------------------------------------------------------------------------------------------


def measure(size: str, steps: int, length: int | None = None, vocabulary: int = VOCABULARY, batch: int = 4) -> dict:
    """Mean of `steps` steps after one that warms up. length: of every row, half of it prompt; default: Dolly's."""
    student, teacher = (llama(shape, vocabulary, seed) for seed, shape in enumerate(SIZES[size]))
    kd = KDArguments(kd_objective=OBJECTIVE)
    distiller = Distiller(SplitModel(student, find_head(student)), build_criterion(OBJECTIVE, kd), kd.loss_chunk_mb)
    live = LiveTeacher(SplitModel(teacher.eval().requires_grad_(False), find_head(teacher)))
    layout = batch_layout([student, teacher])
    optimizer = build_optimizer(student, TrainArguments(lr=1e-4))
    draw = torch.Generator().manual_seed(0)
    lengths = cycle(DOLLY if length is None else [(length // 2, length - length // 2)])
    tokens = 0
    for step in range(steps + 1):
        if step == 1:
            tokens, started = 0, time.perf_counter()
        examples = [
            Example(*(torch.randint(vocabulary, (n,), generator=draw).tolist() for n in prompt_and_response))
            for prompt_and_response in islice(lengths, batch)
        ]
        rows = collate(examples, 0, length or MAX_LENGTH, layout)
        (distiller(rows, live.states(rows)).loss / len(rows.labels_N)).backward()
        optimizer.step()
        optimizer.zero_grad()
        tokens += rows.tokens
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds / steps, "tokens_per_s": tokens / seconds, "peak_mb": peak_mb}


def grow(dimension: str, args: argparse.Namespace) -> list[dict]:
    return [point | in_process(__file__, [*sys.argv[1:], "--point", json.dumps(point)]) for point in POINTS[dimension]]


# --- whole runs ------------------------------------------------------------------------------------------------------


def write_inputs(folder: Path, size: str, rows: int) -> None:
    """Student, teacher, and training data of Dolly's lengths in which each word is one token."""
    tokenizer = make_tokenizer()
    for name, shape in zip(("student", "teacher"), SIZES[size]):
        llama(shape, VOCABULARY, seed=len(name)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    words = cycle(WORDS)
    with (folder / "train.jsonl").open("w") as file:
        for prompt, response in islice(cycle(DOLLY), rows):
            texts = (" ".join(islice(words, count)) for count in (prompt, max(1, response - 1)))
            file.write(json.dumps(dict(zip(("prompt", "output"), texts))) + "\n")


def train(folder: Path, ranks: int, *flags: str) -> list[dict]:
    """The records of a run's metrics.jsonl, one per step."""
    run = folder / f"run{ranks}"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"),
        *(str(ROOT / "code/distillation.py"), "--model-path", str(folder / "student"), "--data-dir", str(folder)),
        *("--teacher-model-path", str(folder / "teacher"), "--kd-objective", OBJECTIVE, "--save-dir", str(run)),
        *("--deepspeed_config", str(ROOT / "configs/deepspeed/ds_config_zero1_fp32.json"), "--log-interval", "1"),
        *("--max-length", str(MAX_LENGTH), "--processed-data-dir", str(folder), *flags),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary(records: list[dict]) -> dict:
    seconds = sum(record["step_time"] for record in records)
    return {
        "seconds": seconds / len(records),
        "tokens_per_s": sum(record["tokens"] for record in records) / seconds,
        "peak_mb": max(record["peak_memory_mb"] for record in records),
    }


def compare_ranks(args: argparse.Namespace) -> list[dict]:
    """The same optimiser steps by one rank and by two, which take half of the micro-batches each."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), args.size, rows=16 * (args.steps + 1))
        for ranks, accumulation in ((1, 4), (2, 2)):
            batch = ("--batch-size", "4", "--gradient-accumulation-steps", str(accumulation), "--num-epochs", "1")
            found.append({"ranks": ranks} | summary(train(Path(folder), ranks, *batch)[1:]))
    return found


def compare_epochs(args: argparse.Namespace) -> list[dict]:
    """Each epoch of one run; the first step, which warms up, is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), args.size, rows=4 * (args.steps + 1))
        records = train(Path(folder), 1, "--batch-size", "4", "--num-epochs", "3")[1:]
    return [{"epoch": n} | summary([record for record in records if record["epoch"] == n]) for n in (1, 2, 3)]


WHOLE_RUNS: dict[str, Callable[[argparse.Namespace], list[dict]]] = {"ranks": compare_ranks, "epochs": compare_epochs}


# --- tables ----------------------------------------------------------------------------------------------------------


def table(dimension: str, found: list[dict]) -> str:
    """One row per point; after each number its ratio to the first row's."""
    columns = ("seconds", "tokens_per_s", "peak_mb")
    rows = [
        [
            str(point[next(iter(point))]),
            *(
                text
                for column in columns
                for text in (f"{point[column]:.{2 if column == 'seconds' else 0}f}", f"{ratio(point, found, column)}x")
            ),
        ]
        for point in found
    ]
    return format_table([dimension, "s/step", "", "tokens/s", "", "peak MB", ""], rows)


def ratio(point: dict, found: list[dict], column: str) -> str:
    return f"{point[column] / found[0][column]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*POINTS, *WHOLE_RUNS]
    parser.add_argument("--dimensions", nargs="+", choices=known, default=known)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, default=4, help="steps timed of each point, after one that warms up")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(args.size, args.steps, **args.point)))
        return
    results = {}
    for dimension in args.dimensions:
        results[dimension] = WHOLE_RUNS[dimension](args) if dimension in WHOLE_RUNS else grow(dimension, args)
        print(table(dimension, results[dimension]), end="\n\n", flush=True)
    write_result("bench_scaling", {"size": args.size, "objective": OBJECTIVE, "steps": args.steps}, results=results)


if __name__ == "__main__":
    main()
