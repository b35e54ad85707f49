"""On-policy training: what a sampled step costs, what an adaptive run costs, and trainers of TRL beside it.

    python benchmarks/bench_onpolicy.py --student STUDENT --teacher TEACHER --data-dir DATA [--rows 24]

Without models and data: SmolLM2's sizes (10 of 30 layers learn from all), random weights and Dolly's lengths; no answer
of theirs ends before the limit. Every run is a real one (code/distillation.py, in this process) of one pass over the
first rows of train.jsonl (or dev.jsonl) with prompts of at most --max-prompt-length, with reverse KL alone. What is
compared runs in turns, since a machine's speed varies; ratios are of the same round, and the tables have their medians:

    generation / training   in steps whose rows are all sampled, by rows per step
    adaptive / off-policy   whole runs, --init-threshold 0.3
    TRL                     sampled tokens per second of DistillationTrainer, and of GKDTrainer with lmbda 1: reverse
                            KL, the same prompts, batches and limit, fp32, without gradient checkpointing; left out if
                            TRL is not installed
    tokens/s                of the generators alone, by rows

Prints tables and writes benchmarks/results/<date>-bench_onpolicy.json.
"""

import argparse
import gc
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "benchmarks")]

import of_trl  # noqa: E402
from workload import DOLLY, SMOLLM2, SMOLLM2_10L, llama, write_result  # noqa: E402

import distillation  # noqa: E402
from arguments import GenerationArguments  # noqa: E402
from data_utils.dataset import Row, read_rows  # noqa: E402
from data_utils.prompts import encode_prompts, prompt_template  # noqa: E402
from evaluation.results import format_table  # noqa: E402
from generation.building import build_generator  # noqa: E402

VOCABULARY, DEV_ROWS, SEED = 49152, 8, 10
GROUPS = {4: 1, 8: 2, 16: 4}  # rows per step: micro-batches of 4
GENERATORS = ("dropping", "transformers")
SAMPLED = ["--student-gen", "--mixed-alpha", "1"]


def random_pair(folder: Path) -> None:
    """`student`, `teacher` and `data/train.jsonl`: SmolLM2's sizes, and a word per token for Dolly's lengths."""
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    for name, shape, seed in (("student", SMOLLM2_10L, 1), ("teacher", SMOLLM2, 2)):
        llama(shape, VOCABULARY, seed).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(2, VOCABULARY, (length,), generator=draw).tolist())

    rows = [{"prompt": text(prompt), "output": text(response - 1)} for prompt, response in DOLLY]
    (folder / "data").mkdir()
    (folder / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_rows(args: argparse.Namespace, folder: Path) -> list[Row]:
    """`folder`/train.jsonl with --rows rows, and dev.jsonl with the next ones. Returns the rows to train on."""
    source = next(path for name in ("train", "dev") if (path := Path(args.data_dir) / f"{name}.jsonl").is_file())
    rows = read_rows(source, prompt_template("alpaca"))
    lengths = map(len, encode_prompts(AutoTokenizer.from_pretrained(args.student), [row.prompt for row in rows]))
    rows = [row for row, length in zip(rows, lengths) if length <= args.max_prompt_length][: args.rows + DEV_ROWS]
    folder.mkdir()
    for name, part in (("train", rows[: args.rows]), ("dev", rows[args.rows :])):
        lines = [json.dumps({"prompt": row.prompt, "output": row.responses[0]}) + "\n" for row in part]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return rows[: args.rows]


def train(args: argparse.Namespace, data: Path, rows_per_step: int, *flags: str) -> dict:
    """A run of one pass: seconds of the whole, and the records of all steps but the first, which warms up."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--model-path", args.student, "--teacher-model-path", args.teacher, "--data-dir", str(data)]
        words += ["--save-dir", folder, "--num-epochs", "1", "--log-interval", "1", "--resume-interval", "0"]
        words += ["--batch-size", "4", "--gradient-accumulation-steps", str(GROUPS[rows_per_step])]
        words += ["--kd-objective", "rkl", "--kd-rate", "1", "--lr", "1e-5", "--seed", str(SEED), "--probe-rows", "0"]
        words += ["--max-length", str(args.max_prompt_length + args.max_new_tokens)]
        words += ["--max-prompt-length", str(args.max_prompt_length), "--precision", "fp32"]
        trainer = distillation.prepare([*words, *flags])
        started = time.perf_counter()
        trainer.run()
        seconds = time.perf_counter() - started
        records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").open()]
    del trainer
    gc.collect()
    kept = ("step_time", "tokens", "response_tokens", "generation_s", "generated_tokens", "cut_share", "rows_kind")
    return {
        "seconds": seconds,
        "steps": [{name: record[name] for name in kept if name in record} for record in records[1:]],
    }


def total(run: dict, name: str) -> float:
    return sum(step.get(name, 0) for step in run["steps"])


def sampled_speed(run: dict) -> float:
    """Sampled tokens per second of the steps, training included."""
    return total(run, "generated_tokens") / total(run, "step_time")


def generation_speeds(args: argparse.Namespace, rows: Sequence[Row], rounds: int) -> dict[str, dict[int, list[float]]]:
    """Tokens per second of each round, by generator and rows sampled at once."""
    model = AutoModelForCausalLM.from_pretrained(args.student, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.student)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = encode_prompts(tokenizer, [row.prompt for row in rows])
    speeds: dict[str, dict[int, list[float]]] = {name: {size: [] for size in GROUPS} for name in GENERATORS}
    for _ in range(rounds):
        for size in GROUPS:
            for name in GENERATORS:
                generator = build_generator(
                    model,
                    tokenizer,
                    GenerationArguments(do_sample=True, generator=name),
                    max_new_tokens=args.max_new_tokens,
                    tokens_per_batch=size * (args.max_prompt_length + args.max_new_tokens),
                )
                started = time.perf_counter()
                answers = generator.generate(prompts[:size], [SEED])[SEED]
                speeds[name][size].append(sum(map(len, answers)) / (time.perf_counter() - started))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", help="folder; with --teacher and --data-dir")
    parser.add_argument("--teacher")
    parser.add_argument("--data-dir")
    parser.add_argument("--rows", type=int, default=48, help="of one run; a multiple of 16")
    parser.add_argument("--max-prompt-length", type=int, default=256, help="rows with longer prompts are left out")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time instead: for a machine that is busy")
    args = parser.parse_args()
    if args.cpu_time:
        time.perf_counter = time.process_time  # also for training, which reports its steps' times
    given = (args.student, args.teacher, args.data_dir)
    if any(given) != all(given) or args.rows % max(GROUPS):
        parser.error("pass all of --student, --teacher and --data-dir or none; --rows: a multiple of 16")
    settings, load = vars(args).copy(), os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        if not all(given):
            random_pair(Path(folder))
            args.student, args.teacher, args.data_dir = (f"{folder}/{name}" for name in ("student", "teacher", "data"))
        rows = write_rows(args, Path(folder) / "rows")
        found = measure(args, rows, Path(folder) / "rows")
    print_tables(found)
    settings |= {"load_before": load, "load_after": os.getloadavg()}
    write_result("bench_onpolicy", settings, **found)


def measure(args: argparse.Namespace, rows: Sequence[Row], data: Path) -> dict[str, dict]:
    with_trl = importlib.util.find_spec("trl") is not None
    prompts = [row.prompt for row in rows]
    settings = of_trl.Settings(args.student, args.teacher, 4, GROUPS[8], args.max_new_tokens, SEED)
    runs: dict[str, list[dict]] = {}
    for number in range(args.rounds):
        turn = {
            "off-policy": train(args, data, 8),
            "adaptive": train(args, data, 8, "--distillm", "--init-threshold", "0.3"),
            **({f"TRL, {name}": of_trl.train(name, prompts, settings) for name in of_trl.TRAINERS} if with_trl else {}),
            **{f"sampled, {size} rows": train(args, data, size, *SAMPLED) for size in GROUPS},
        }
        for name, run in turn.items():
            runs.setdefault(name, []).append(run)
            print(f"round {number + 1}, {name}: {run['seconds']:.1f} s", file=sys.stderr, flush=True)
    return {"runs": runs, "generators": generation_speeds(args, rows, args.rounds)}


def print_tables(found: dict[str, dict]) -> None:
    runs, table = found["runs"], []
    for name, turns in runs.items():
        generation = [total(run, "generation_s") for run in turns]
        training = [total(run, "step_time") - seconds for run, seconds in zip(turns, generation)]
        ratio = statistics.median(a / b for a, b in zip(generation, training))
        speed = statistics.median(map(sampled_speed, turns))
        share = ratio / (1 + ratio)
        seconds = statistics.median(total(run, "step_time") for run in turns)
        table.append([name, f"{seconds:.1f}", f"{ratio:.2f}", f"{share:.0%}", f"{speed:.0f}"])
    print(format_table(["run", "seconds", "generation / training", "share", "sampled tokens/s"], table))

    def ratio_of(name: str, other: str, key=lambda run: total(run, "step_time")) -> float:
        return statistics.median(key(a) / key(b) for a, b in zip(runs[name], runs[other]))

    sampled = statistics.median(
        sum(step["rows_kind"] == "student" for step in run["steps"]) / len(run["steps"]) for run in runs["adaptive"]
    )
    print(f"\nadaptive / off-policy: {ratio_of('adaptive', 'off-policy'):.2f}x with {sampled:.0%} of the steps sampled")
    for name in (name for name in runs if name.startswith("TRL")):
        ratio = ratio_of("sampled, 8 rows", name, sampled_speed)
        print(f"sampled tokens/s of ours, 8 rows / those of {name}: {ratio:.2f}x")
    table = [
        [name, *(f"{statistics.median(of_size):.0f}" for of_size in speeds.values())]
        for name, speeds in found["generators"].items()
    ]
    print("\n" + format_table(["tokens/s, sampled", *(f"{size} rows" for size in GROUPS)], table))


if __name__ == "__main__":
    main()
