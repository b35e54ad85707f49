"""What telemetry costs: of the step that is logged, of a log interval, and of a look at 64 dev rows (probe.jsonl).

Models of SmolLM2-135M's sizes (30 layers) and of 10 of its layers, random weights, no download; row lengths of Dolly;
forward, backward and AdamW in fp32. The teacher's states are computed before, as with --teacher-cache: with a live
teacher a step takes longer and telemetry the same. Each batch takes a plain step and a measured one, in turns, in one
process; the cost is the median difference of the pairs. The probe is timed whole, with a live teacher: before the first
step, when the teacher runs, and after an epoch. All times are processor time of all threads.

    python benchmarks/bench_telemetry.py [--objectives todi adakd] [--batch-size 8] [--rounds 3]

Prints a table and writes benchmarks/results/<date>-bench_telemetry.json.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from bench_step import MAX_LENGTH, TEMPERATURE, VOCABULARY, MasterWeights, Rows, live_teacher, make_batches  # noqa: E402
from workload import DOLLY, SMOLLM2_10L, llama, write_result  # noqa: E402

from arguments import KDArguments, TrainArguments  # noqa: E402
from criterions import StepTokens, build_criterion  # noqa: E402
from criterions.measures import sample_sums  # noqa: E402
from data_utils.batches import collate  # noqa: E402
from data_utils.dataset import Row  # noqa: E402
from distiller import Distiller  # noqa: E402
from evaluation.results import format_table  # noqa: E402
from models.heads import SplitModel, find_head  # noqa: E402
from models.probes import batch_layout  # noqa: E402
from runtime.ranks import init_distributed  # noqa: E402
from training.probe import Probe  # noqa: E402
from training.rank_batches import RankBatches  # noqa: E402

LOG_INTERVAL = TrainArguments().log_interval


class Texts:
    """In place of a tokenizer: the ids are random."""

    def __call__(self, _text: str, **_options: object) -> dict[str, list[int]]:
        return {"input_ids": [0]}

    def decode(self, _ids: list[int]) -> str:
        return "a"

    def batch_decode(self, ids: list[list[int]]) -> list[str]:
        return [f"a {last}" for *_, last in ids]


class Engine:
    """In place of DeepSpeed's: one rank that does not train."""

    def __init__(self, module: Distiller):
        self.module = module

    @property
    def device(self) -> torch.device:
        return self.module.student.device

    def eval(self) -> None:
        self.module.eval()

    def __call__(self, **inputs: object) -> object:
        return self.module(**inputs)


def build(objective: str) -> Distiller:
    student = llama(SMOLLM2_10L, VOCABULARY, seed=1)
    kd = KDArguments(kd_objective=objective, kd_temperature=TEMPERATURE)
    return Distiller(SplitModel(student, find_head(student)), build_criterion(objective, kd))


def seconds_of(work: Callable[[], object]) -> float:
    """Of processor time, over all threads: the machine may be shared."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure_steps(objective: str, args: argparse.Namespace) -> dict:
    """Seconds of plain and of measured steps over the same batches."""
    distiller, teacher = build(objective), live_teacher()
    layout, optimizer = batch_layout([distiller.student, teacher.model.model]), MasterWeights(distiller.student)
    measured: list[Tensor] = []

    def step(batch, states, watched: bool) -> None:
        distiller.criterion.start_step(StepTokens((len(batch.labels_N),)))
        observed = distiller.observed_by(lambda positions: measured.append(sample_sums(positions)))
        with observed if watched else nullcontext():
            loss = distiller(batch, states).loss
        (loss / len(batch.labels_N)).backward()
        optimizer.step()
        optimizer.zero_grad()
        distiller.criterion.end_step()

    rows = make_batches(args.batches, args.batch_size)
    batches = [collate(some, 0, MAX_LENGTH, layout, (sum(e.predicted for e in some),)) for some in rows]
    states = [teacher.states(batch) for batch in batches]
    for watched in (False, True):
        step(batches[0], states[0], watched)
    plain, logged = [], []
    for turn in range(args.rounds * args.batches):
        place = 1 + turn % args.batches
        for watched in (False, True) if turn % 2 else (True, False):
            taken = seconds_of(partial(step, batches[place], states[place], watched))
            (logged if watched else plain).append(taken)
    cost = median(b - a for a, b in zip(plain, logged))
    positions = sum(len(batch.labels_N) for batch in batches[1:]) / args.batches
    return {"plain_s": plain, "logged_s": logged, "cost_s": cost, "step_s": median(plain), "positions": positions}


def measure_probe(objective: str, device: torch.device) -> list[float]:
    """Seconds of two looks at 64 rows, one after the other."""
    distiller, teacher = build(objective), live_teacher()
    examples = Rows([example for batch in make_batches(1, len(DOLLY) // 2) for example in batch])
    layout = batch_layout([distiller.student, teacher.model.model])
    with tempfile.TemporaryDirectory() as folder:
        probe = Probe(
            Engine(distiller),
            teacher,
            Texts(),
            RankBatches(None, examples, 0, MAX_LENGTH, layout, device),
            [Row("prompt", ("response",))] * len(examples),
            Path(folder) / "probe.jsonl",
            tokens_per_batch=TrainArguments().eval_batch_size * MAX_LENGTH,
        )
        return [seconds_of(partial(probe.write, epoch, epoch)) for epoch in (0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=["todi", "adakd"])
    parser.add_argument("--batches", type=int, default=2, help="of different rows, after one that warms up")
    parser.add_argument("--batch-size", type=int, default=TrainArguments().batch_size)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each batch")
    args = parser.parse_args()
    steps = {objective: measure_steps(objective, args) for objective in args.objectives}
    device = init_distributed()
    probes = {objective: measure_probe(objective, device) for objective in args.objectives}
    table = []
    for objective, found in steps.items():
        of_step = found["cost_s"] / found["step_s"]
        table.append([objective, f"{found['step_s']:.2f}", f"{found['cost_s']:.3f}", f"{of_step:.1%}"])
        table[-1] += [f"{of_step / LOG_INTERVAL:.2%}", *(f"{taken:.1f}" for taken in probes[objective])]
    print(
        format_table(
            ["objective", "step s", "telemetry s", "of a step", "of an interval", "first probe s", "probe s"], table
        )
    )
    write_result("bench_telemetry", vars(args) | {"log_interval": LOG_INTERVAL}, steps=steps, probe_s=probes)


if __name__ == "__main__":
    main()
