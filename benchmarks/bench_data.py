"""What tokenising many rows costs, and what starting again with its cache does: time and peak memory.

Synthetic rows of Dolly's mean length (instruction, input, output) in one jsonl file, without dev rows, so that some are
held out; the tokenizer of a model folder, or a tiny one. Each start is a process of its own.

    python benchmarks/bench_data.py [--rows 1000000] [--tokenizer MODEL_FOLDER] [--workers 1] [--template alpaca]

Prints a table and writes benchmarks/results/<date>-bench_data.json. Peak memory is of the largest process: in all, and
without the pages of mapped files, which the system takes back when it needs them ("anonymous"). The processor's seconds
are of all processes, imports included.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from workload import in_process, write_result  # noqa: E402

from arguments import DataArguments  # noqa: E402
from data_utils.dataset import load_train_and_dev  # noqa: E402
from evaluation.results import format_table  # noqa: E402
from models.loading import load_tokenizer  # noqa: E402
from tiny import WORDS, make_tokenizer  # noqa: E402

MEAN_WORDS = {"instruction": 12, "input": 30, "output": 58}  # every third row has an input


def write_rows(path: Path, count: int) -> None:
    """Texts are parts of one long one: as fast as the disk, and no two rows are equal."""
    draw = random.Random(0)
    words = draw.choices(WORDS, k=100_000)
    with path.open("w") as file:
        for i in range(count):
            sizes = {name: draw.randint(mean // 2, 3 * mean // 2) for name, mean in MEAN_WORDS.items()}
            row = {name: " ".join(words[(at := draw.randrange(90_000)) : at + size]) for name, size in sizes.items()}
            if i % 3:
                row["input"] = ""
            file.write(json.dumps(row | {"id": i}) + "\n")


def start(folder: str, tokenizer: str | None, workers: int, template: str, keys: bool) -> dict:
    """What every start does with the data, and (`keys`) what the teacher cache asks of it."""
    peak, done = [0], threading.Event()
    watch = threading.Thread(target=_watch, args=(peak, done))
    watch.start()
    args = DataArguments(
        data_dir=folder, data_process_workers=workers, processed_data_dir=f"{folder}/cache", prompt_template=template
    )
    of_model = make_tokenizer() if tokenizer is None else load_tokenizer(tokenizer)
    began = time.perf_counter()
    train, dev = load_train_and_dev(of_model, args)
    seconds = time.perf_counter() - began
    result = {"rows": len(train) + len(dev), "dev": len(dev), "tokens": int(train.lengths.sum()), "seconds": seconds}
    if keys:
        began = time.perf_counter()
        result["keys"] = len(set(train.keys()))
        result["keys_seconds"] = time.perf_counter() - began
    done.set()
    watch.join()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result["cpu_seconds"] = sum(of.ru_utime + of.ru_stime for of in used)
    return result | {"peak_mb": max(of.ru_maxrss for of in used) / 1024, "anonymous_mb": peak[0] / 1024}


def _watch(peak: list[int], done: threading.Event) -> None:
    while not done.wait(0.05):
        lines = Path("/proc/self/status").read_text().splitlines()
        (anonymous,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
        peak[0] = max(peak[0], anonymous)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokenizer", help="a model's folder; default: a tiny byte-level BPE")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--template", default="alpaca")
    parser.add_argument("--start", help=argparse.SUPPRESS)  # the folder, in a process of its own
    parser.add_argument("--keys", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(args.start, args.tokenizer, args.workers, args.template, args.keys)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        write_rows(path, args.rows)
        words = ["--workers", str(args.workers), "--template", args.template, "--start", folder]
        words += ["--tokenizer", args.tokenizer] if args.tokenizer else []
        for name, keys in (("first", []), ("second", []), ("with keys", ["--keys"])):
            measured = in_process(__file__, [*words, *keys])
            results.append({"start": name, "file_mb": path.stat().st_size / 2**20} | measured)
            print(json.dumps(results[-1]), flush=True)
    header = ("start", "rows", "tokens", "seconds", "cpu_seconds", "peak_mb", "anonymous_mb")
    print(format_table(header, [[row["start"], *(f"{row[name]:,.0f}" for name in header[1:])] for row in results]))
    write_result("bench_data", {"rows": args.rows, "workers": args.workers, "template": args.template}, results=results)


if __name__ == "__main__":
    main()
