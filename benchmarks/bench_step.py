"""One training step of distillation: padded to 512 with dense logits, against packed with the chunked loss.

Models of SmolLM2-135M's sizes (30 layers) and of 10 of its layers, random weights, no download; row lengths of Dolly;
forward, backward and AdamW in fp32. Each variant runs in a process of its own, so that peak memory is its own; all see
the same examples.

    python benchmarks/bench_step.py [--objective todi] [--batches 3] [--batch-size 4]

Prints a table and writes benchmarks/results/<date>-bench_step.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from lengths import DOLLY  # noqa: E402

from arguments import KDArguments  # noqa: E402
from criterions import build_criterion  # noqa: E402
from data_utils.batches import Example, collate  # noqa: E402
from distiller import Distiller  # noqa: E402
from evaluation.results import format_table  # noqa: E402
from models.heads import SplitModel, find_head  # noqa: E402
from reference.dense_step import dense_loss, pad_to_max  # noqa: E402
from teacher import LiveTeacher  # noqa: E402

MAX_LENGTH, VOCABULARY, TEMPERATURE = 512, 49152, 2.0
VARIANTS = {"dense": "padded to 512, dense logits", "chunked": "packed, chunked loss"}


def smollm2(layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config)


def batches(count: int, size: int) -> list[list[Example]]:
    draw = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(VOCABULARY, (length,), generator=draw).tolist()

    examples = [Example(ids(prompt), ids(response)) for prompt, response in DOLLY]
    return [examples[i * size : (i + 1) * size] for i in range(count)]


def measure(variant: str, args: argparse.Namespace) -> dict:
    """Seconds a step (the first warms up), mean losses, peak memory in MB of one variant."""
    student, teacher = smollm2(10, seed=1), smollm2(30, seed=2).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    kd = KDArguments(kd_objective=args.objective, kd_temperature=TEMPERATURE)
    distiller = Distiller(SplitModel(student, find_head(student)), build_criterion(kd.objective, kd), kd.loss_chunk_mb)
    live = LiveTeacher(SplitModel(teacher, find_head(teacher)))
    seconds, losses = [], []
    for examples in batches(args.batches + 1, args.batch_size):
        started = time.perf_counter()
        if variant == "dense":
            batch = pad_to_max([(e.prompt_ids, e.response_ids) for e in examples], MAX_LENGTH, pad_id=0)
            sums = dense_loss(student, teacher, batch, args.objective, kd.kd_rate, TEMPERATURE)
            loss = sums.loss_sum / sums.tokens
        else:
            batch = collate(examples, 0, MAX_LENGTH, "packed")
            loss = distiller(batch, live.states(batch)).loss / len(batch.labels_N)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": sum(seconds[1:]) / args.batches, "losses": losses, "peak_mb": peak_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", default="todi")
    parser.add_argument("--batches", type=int, default=3, help="steps timed, after one that warms up")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args.variant, args)))
        return

    results = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
        results[variant] = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
        )
    dense = results["dense"]
    rows = [
        [
            VARIANTS[variant],
            f"{found['seconds']:.2f}",
            f"{dense['seconds'] / found['seconds']:.1f}x",
            f"{found['peak_mb']:.0f}",
            f"{found['peak_mb'] / dense['peak_mb']:.2f}x",
            f"{max(abs(a - b) / b for a, b in zip(found['losses'], dense['losses'])):.1e}",
        ]
        for variant, found in results.items()
    ]
    header = ["step", "seconds", "faster", "peak MB", "of dense", "loss off by"]
    print(format_table(header, rows))
    path = ROOT / f"benchmarks/results/{date.today()}-bench_step.json"
    settings = {"objective": args.objective, "batch_size": args.batch_size, "threads": torch.get_num_threads()}
    path.write_text(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
