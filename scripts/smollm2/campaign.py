"""A campaign of about 45 runs: makes those that are missing, says what is left, prints the tables.

    python scripts/smollm2/campaign.py run [--records FILE] [--jobs 2]    # resumes; hours
    python scripts/smollm2/campaign.py plan [--records FILE]    # what is left, and when it will be done
    python scripts/smollm2/campaign.py table [--records FILE]   # markdown (results_table.py)

In: the fine-tuned teacher, its 18- and 12-layer cuts, the rows (scripts/smollm2/reproduce.sh makes them). Out: a folder
per run under outputs/smollm2/campaign/, and two lines of JSON per run in FILE: how it trained, and its scores on the
valid rows, answer by answer. FILE alone says what is done, so it can come from another machine; a checkpoint that is
needed and not on disk is trained again.

The order is the protocol. Every choice is made on dev rows: the learning rate by the dev NLL of SFT and ToDi together,
kd_rate per method by dev ROUGE-L, the methods that on-policy data are added to by the same. Valid rows are only scored.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from results_table import best_nll, best_rouge, tables

ROOT = Path(__file__).resolve().parents[2]
TEACHER = "outputs/smollm2/smollm2-135m/sft"
DATA = "data/dolly-900"
SEQKD_DATA = "data/dolly-900-seqkd"
RUNS = "outputs/smollm2/campaign"
RATES = ("0.0003", "0.0001", "0.001")  # learning rates that are tried
WEIGHTS = ("0.5", "1.0")  # kd_rate
SEEDS = (10, 20, 30)
ON_POLICY_SEEDS = SEEDS[:2]  # they take several times as long
OFF_POLICY = ("todi", "fkl", "adakd", "adakd+todi", "rkl", "js")  # in the order of their runs
ON_POLICY = ("gkd", "distillm")
SAMPLED = 4  # SFT and the best three also answer by sampling
SAMPLE_SEEDS = (10, 20, 30, 40, 50)
PRECISION = os.environ.get("PRECISION", "bf16")  # fp32 where the CPU has no instructions for bf16
TRAIN_SECONDS, SCORE_SECONDS = 600.0, 400.0  # of a run, until the first of its kind is measured


@dataclass(frozen=True)
class Run:
    """method: a row of the table. variables: of scripts/smollm2/*.sh, beside those that all runs share."""

    method: str
    seed: int
    variables: dict[str, str] = field(hash=False)

    @property
    def name(self) -> str:
        parts = [f"{name.lower()}{value}" for name, value in self.variables.items() if name in ("LR", "KD_RATE")]
        return "-".join([self.method, *parts, f"seed{self.seed}"])

    @property
    def folder(self) -> Path:
        return Path(TEACHER) if self == THE_TEACHER else Path(RUNS) / self.name


THE_TEACHER = Run("teacher", 10, {})


@dataclass(frozen=True)
class Score:
    """The answers of a run to the valid rows that are to be scored. decoding: greedy or sampled."""

    run: Run
    decoding: str

    @property
    def name(self) -> str:
        return f"{self.run.name}/{self.decoding}"


class Records:
    """What is done, by the names of runs and scores."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        self.by_name = {record["name"]: record for record in map(json.loads, lines)}

    def __contains__(self, item: Run | Score) -> bool:
        return item.name in self.by_name

    def __getitem__(self, item: Run | Score) -> dict:
        return self.by_name[item.name]

    def add(self, record: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.by_name[record["name"]] = record

    def seconds(self, items: Iterable[Run | Score]) -> float:
        """Estimate of the time that the items take: the mean of those of their method, or of their kind."""
        return sum(map(self._seconds, items))

    def _seconds(self, item: Run | Score) -> float:
        kind, run = ("train", item) if isinstance(item, Run) else (item.decoding, item.run)
        of_kind = [record for record in self.by_name.values() if record["kind"] == kind]
        of_method = [record["seconds"] for record in of_kind if record["method"] == run.method]
        default = TRAIN_SECONDS if kind == "train" else SCORE_SECONDS * (5 if kind == "sampled" else 1)
        return fmean(of_method or [record["seconds"] for record in of_kind] or [default])


@dataclass(frozen=True)
class Plan:
    """todo: in order. chosen: by method, the run with seed 10 at what was chosen on dev. undecided: open choices."""

    todo: list[Run | Score]
    chosen: dict[str, Run]
    undecided: list[str]


def plan(records: Records) -> Plan:
    """The protocol, as far as the records decide it."""
    todo: list[Run | Score] = []
    chosen: dict[str, Run] = {}

    def missing(items: Iterable[Run | Score]) -> bool:
        new = [item for item in items if item not in records and item not in todo]
        todo.extend(new)
        return bool(new)

    # The learning rate.
    search = {rate: [run_of("sft", 10, rate), run_of("todi", 10, rate, "0.5")] for rate in RATES}
    if missing(run for runs in search.values() for run in runs):
        return Plan(todo, chosen, ["learning rate", "kd_rate per method", "all that follows"])
    rate = min(RATES, key=lambda rate: fmean(best_nll(records[run]) for run in search[rate]))

    # kd_rate, method by method. A row of the table is complete, seeds and scores, before the next one is begun.
    missing([Score(THE_TEACHER, "greedy")])
    undecided = []
    for method in ("sft", *OFF_POLICY, "seqkd"):
        weights = WEIGHTS if method in OFF_POLICY else [None]
        tried = [run_of(method, 10, rate, weight) for weight in weights]
        if missing(tried):
            undecided.append(f"kd_rate of {method}")
            continue
        chosen[method] = max(tried, key=lambda run: best_rouge(records[run]))
        missing(all_seeds(chosen[method]))
    if undecided:
        return Plan(todo, chosen, [*undecided, "all that follows"])

    of_sampled_rows = on_policy(records, chosen, rate)
    chosen |= of_sampled_rows
    missing(item for first in of_sampled_rows.values() for item in all_seeds(first))
    if todo:
        return Plan(todo, chosen, ["which methods are sampled and cut deeper"])
    missing(sampled_and_cut_deeper(records, chosen))
    return Plan(todo, chosen, [])


def is_on_policy(method: str) -> bool:
    return method.partition("-")[0] in ON_POLICY


def on_policy(records: Records, chosen: dict[str, Run], rate: str) -> dict[str, Run]:
    """Each schedule around the best two objectives, at their kd_rate."""
    best = sorted(OFF_POLICY, key=lambda method: -best_rouge(records[chosen[method]]))[:2]
    pairs = [(schedule, base) for schedule in ON_POLICY for base in best]
    runs = [run_of(f"{schedule}-{base}", 10, rate, chosen[base].variables["KD_RATE"]) for schedule, base in pairs]
    return {run.method: run for run in runs}


def all_seeds(first: Run) -> list[Run | Score]:
    """The runs of a row of the table, each followed by its score, while its checkpoint is on disk."""
    seeds = ON_POLICY_SEEDS if is_on_policy(first.method) else SEEDS
    runs = [Run(first.method, seed, first.variables) for seed in seeds]
    return [item for run in runs for item in (run, Score(run, "greedy"))]


def sampled_and_cut_deeper(records: Records, chosen: dict[str, Run]) -> list[Run | Score]:
    """Sampled answers of SFT and the best three; SFT and the best one again with a deeper cut."""
    best = sorted((m for m in chosen if m != "sft"), key=lambda method: -dev_rouge(records, chosen[method]))
    items: list[Run | Score] = [Score(chosen[method], "sampled") for method in ("sft", *best[: SAMPLED - 1])]
    for method in ("sft", best[0]):
        deeper = {**chosen[method].variables, "CKPT_PATH": "model_hub/smollm2/SmolLM2-12L"}
        items += all_seeds(Run(f"{method}, 12 layers", SEEDS[0], deeper))
    return items


def run_of(method: str, seed: int, rate: str, weight: str | None = None) -> Run:
    schedule, dash, base = method.partition("-")
    objective = {"sft": "cross_entropy", "seqkd": "cross_entropy"}.get(base if dash else method, base or method)
    variables = {"KD_OBJ": objective, "LR": rate}
    if weight is not None:
        variables |= {"KD_RATE": weight, "KD_TEMP": "1.0" if "adakd" in objective else "2.0"}
    if dash:
        variables |= {"ON_POLICY": schedule}
    if method == "seqkd":
        variables |= {"DATA_DIR": SEQKD_DATA}
    return Run(method, seed, variables)


def dev_rouge(records: Records, first: Run) -> float:
    """Mean over the seeds that are done."""
    runs = [Run(first.method, seed, first.variables) for seed in SEEDS]
    return fmean(best_rouge(records[run]) for run in runs if run in records)


def run_all(records: Records, jobs: int) -> None:
    """Makes what is missing, several at a time. Raises CalledProcessError once the others have ended."""
    busy: dict[Future, Run | Score] = {}

    def make(item: Run | Score) -> None:
        records.add(execute(item))

    with ThreadPoolExecutor(jobs) as pool:
        while True:
            current = plan(records)
            for item in ready(current.todo, list(busy.values()))[: jobs - len(busy)]:
                say(current, records, jobs)
                busy[pool.submit(make, item)] = item
            if not busy:
                return
            for done in wait(busy, return_when=FIRST_COMPLETED).done:
                done.result()
                del busy[done]


def ready(todo: Sequence[Run | Score], busy: Sequence[Run | Score]) -> list[Run | Score]:
    """Those of `todo` that wait for nothing: a score waits for its run, and nobody else works in the run's folder."""
    found, taken = [], {run_in(item) for item in busy}
    for item in todo:
        waits = isinstance(item, Score) and item.run in todo
        if not waits and run_in(item) not in taken:
            found.append(item)
            taken.add(run_in(item))
    return found


def run_in(item: Run | Score) -> Run:
    return item if isinstance(item, Run) else item.run


def execute(item: Run | Score) -> dict:
    """Trains or scores; returns the record. Raises CalledProcessError with the command that failed.

    A checkpoint that is gone is trained again first, except the teacher: FileNotFoundError.
    """
    run, began = run_in(item), time.monotonic()
    if isinstance(item, Run) or not list(run.folder.glob("epoch*_step*")):
        if run == THE_TEACHER:
            raise FileNotFoundError(f"{TEACHER}: no checkpoint; scripts/smollm2/reproduce.sh trains the teacher")
        train(run)
        if isinstance(item, Run):
            return train_record(run, time.monotonic() - began)
        began = time.monotonic()
    evaluate(item)
    return score_record(item, time.monotonic() - began)


def train(run: Run) -> None:
    if run.method == "seqkd" and not Path(SEQKD_DATA, "manifest.json").is_file():
        words = ["--model-path", TEACHER, "--data-dir", DATA, "--save-dir", SEQKD_DATA]
        call([sys.executable, "code/generate.py", *words], {})
    variables = {
        "DATA_DIR": DATA,
        "PRECISION": PRECISION,
        "EVAL_GEN": "1",
        "DO_SAMPLE": "0",
        "TEACHER_MODEL_PATH": TEACHER,
        "SEED": str(run.seed),
        "SAVE_DIR": str(run.folder),
        **run.variables,
    }
    call(["bash", "scripts/smollm2/kd_student.sh"], variables)


def evaluate(score: Score) -> None:
    """With sampling, from the distribution of the student itself, as the papers do."""
    sampled = score.decoding == "sampled"
    seeds = " ".join(map(str, SAMPLE_SEEDS if sampled else SAMPLE_SEEDS[:1]))
    variables = {"DATA_DIRS": DATA, "SEEDS": seeds, "DO_SAMPLE": str(int(sampled))}
    call(["bash", "scripts/eval/run_eval.sh", str(score.run.folder), "--save-dir", str(results(score))], variables)


def results(score: Score) -> Path:
    return score.run.folder / f"valid-{score.decoding}"


def call(command: Sequence[str], variables: dict[str, str]) -> None:
    shown = " ".join([*(f"{name}={value}" for name, value in variables.items()), *command])
    print(f"{time.strftime('%H:%M:%S')} {shown}", flush=True)
    subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL)


def train_record(run: Run, seconds: float) -> dict:
    metrics = jsonl(run.folder / "metrics.jsonl")
    divergence = subprocess.run(
        [sys.executable, "scripts/smollm2/divergence.py", str(run.folder), TEACHER, DATA],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return {
        "name": run.name,
        "kind": "train",
        "method": run.method,
        "seed": run.seed,
        "variables": run.variables,
        "precision": PRECISION,
        "dev": jsonl(run.folder / "dev_metrics.jsonl"),
        **json.loads(divergence.splitlines()[-1]),
        "step_seconds": round(fmean(record["step_time"] for record in metrics), 4),
        "peak_memory_mb": max(record["peak_memory_mb"] for record in metrics),
        "seconds": round(seconds, 1),
    }


def score_record(score: Score, seconds: float) -> dict:
    of_seeds = sorted(results(score).glob("*/*/seed*"))
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in of_seeds]
    answers = [[record["rougeL"] for record in jsonl(folder / "answers.jsonl")] for folder in of_seeds]
    return {
        "name": score.name,
        "kind": score.decoding,
        "method": score.run.method,
        "seed": score.run.seed,
        "metrics": metrics,
        "rougeL": [round(fmean(of_row), 2) for of_row in zip(*answers)],  # per row, the mean over the sampling seeds
        "seconds": round(seconds, 1),
    }


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def say(current: Plan, records: Records, jobs: int) -> None:
    """What is left, and when it will be done if nothing else runs."""
    for item in current.todo:
        print(f"  {'score' if isinstance(item, Score) else 'train'} {item.name}")
    seconds = records.seconds(current.todo) / jobs
    done = time.strftime("%A %H:%M", time.localtime(time.time() + seconds))
    later = f"; undecided: {', '.join(current.undecided)}" if current.undecided else ""
    print(f"{len(current.todo)} left, {seconds / 3600:.1f} h, done on {done}{later}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("run", "plan", "table"))
    parser.add_argument("--records", type=Path, default=Path(RUNS) / "records.jsonl", help="what is done")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    os.chdir(ROOT)
    records = Records(args.records)
    if args.command == "table":
        print(tables(list(records.by_name.values())))
        return
    if args.command == "run":
        if args.jobs > 1:  # a thread that waits for another's core slows both down
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // args.jobs)))
        run_all(records, args.jobs)
    say(plan(records), records, args.jobs)


if __name__ == "__main__":
    main()
