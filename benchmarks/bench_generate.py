"""Answers per second of the generators behind --generator, and whether their greedy answers are the same.

A model of SmolLM2-135M's sizes with random weights, no download; 64 prompts of Dolly's lengths. Random weights end no
answer, so the model is made to: each answer has the length of its row's response in Dolly (cut at --max-new-tokens).
The rule reads only the token and its position, so it costs every generator the same. All generators run in one
process, in turns, and the best of the rounds counts, since a machine's speed varies.

    python benchmarks/bench_generate.py [--generators transformers dropping continuous] [--rows 64] [--rounds 2]

Prints a table and writes benchmarks/results/<date>-bench_generate.json.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "benchmarks")]

from workload import DOLLY, SMOLLM2, llama, write_result  # noqa: E402

from arguments import GenerationArguments  # noqa: E402
from evaluation.results import format_table  # noqa: E402
from generation.building import build_generator, cache_bytes_per_token  # noqa: E402

VOCABULARY, MAX_LENGTH, PAD, EOS, SEED, CERTAIN = 49152, 512, 0, 1, 10, 1e4
CLASSES = len(DOLLY)  # a token's id modulo CLASSES is the row that it belongs to


class EndingLlama(LlamaForCausalLM):
    """Continues a token by a token of the same class, up to the position where the class ends: there, by EOS.

    Shapes: R sequences, T tokens, K of them with logits, C classes, V vocabulary.
    """

    ends_C: Tensor  # position of the token that EOS follows

    def forward(self, input_ids=None, position_ids=None, logits_to_keep=0, **inputs):
        outputs = super().forward(input_ids, position_ids=position_ids, logits_to_keep=logits_to_keep, **inputs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        class_RK, position_RK = input_ids[:, kept] % CLASSES, position_ids[:, kept]
        logits_RKV = outputs.logits
        others_RKC = torch.arange(CLASSES) != class_RK[..., None]
        logits_RKV.unflatten(-1, (-1, CLASSES)).masked_fill_(others_RKC[..., None, :], -torch.inf)
        ends_RK = position_RK >= self.ends_C[class_RK]
        logits_RKV[..., EOS] = torch.where(ends_RK, CERTAIN, -torch.inf)
        return outputs


def workload(rows: int, max_new_tokens: int) -> tuple[EndingLlama, list[list[int]]]:
    model = llama(SMOLLM2, VOCABULARY, seed=1).eval()
    model.__class__ = EndingLlama
    draw, prompts = torch.Generator().manual_seed(0), []
    for row, (length, _) in enumerate(DOLLY[:rows]):
        ids = torch.randint(2, VOCABULARY, (length,), generator=draw)
        ids[-1] = ids[-1] // CLASSES * CLASSES + row
        prompts.append(ids.tolist())
    lengths = [response if response <= max_new_tokens else MAX_LENGTH for _, response in DOLLY]
    model.ends_C = torch.tensor([prompt + length - 2 for (prompt, _), length in zip(DOLLY, lengths)])
    return model, prompts


def answer(model: EndingLlama, prompts: Sequence[list[int]], args: argparse.Namespace, **flags) -> tuple[float, list]:
    """Seconds and answers."""
    generator = build_generator(
        model,
        SimpleNamespace(eos_token_id=EOS, pad_token_id=PAD),
        GenerationArguments(**flags),
        max_new_tokens=args.max_new_tokens,
        tokens_per_batch=args.eval_batch_size * MAX_LENGTH,
    )
    started = time.perf_counter()
    (answers,) = generator.generate(prompts, [SEED]).values()
    return time.perf_counter() - started, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", nargs="+", default=["transformers", "dropping", "continuous"])
    parser.add_argument("--rows", type=int, default=len(DOLLY), help=f"prompts, at most {len(DOLLY)}")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--eval-batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    model, prompts = workload(args.rows, args.max_new_tokens)
    wanted = [min(response, args.max_new_tokens) for _, response in DOLLY[: args.rows]]
    variants = {name: {"generator": name} for name in args.generators}
    variants |= {
        f"{name}, sampled": {"generator": name, "do_sample": True} for name in variants if name != "continuous"
    }
    seconds, answers = {name: [] for name in variants}, {}
    for _ in range(args.rounds):
        for name, flags in variants.items():
            took, answers[name] = answer(model, prompts, args, **flags)
            seconds[name].append(took)
            assert [len(ids) for ids in answers[name]] == wanted, f"{name}: answers end elsewhere"
            print(f"{name}: {took:.1f} s", flush=True)
    first = next(iter(variants))
    results = {
        name: {
            "seconds": seconds[name],
            "answers_per_second": args.rows / min(seconds[name]),
            "equal_answers": sum(a == b for a, b in zip(answers[name], answers[first])),
        }
        for name in variants
    }
    print_table(results, first, args.rows)
    print(
        f"\ncache: {cache_bytes_per_token(model) / 1024:.0f} KB per token; mean answer: {sum(wanted) / len(wanted):.0f}"
    )
    write_result("bench_generate", vars(args), results=results)


def print_table(results: dict[str, dict], first: str, rows: int) -> None:
    table = []
    for name, found in results.items():
        against = f"{first}, sampled" if name.endswith("sampled") else first
        ratio = found["answers_per_second"] / results[against]["answers_per_second"]
        equal = "" if name.endswith("sampled") else f"{found['equal_answers']} of {rows}"
        table.append([name, f"{found['answers_per_second']:.2f}", f"{ratio:.2f}x", equal])
    print(format_table(["generator", "answers/s", "faster", f"same as {first}"], table))


if __name__ == "__main__":
    main()
