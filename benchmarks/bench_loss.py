"""The vocabulary loss alone: ours against the dense one and, where installed, TRL's and Liger's, and the matmul.

From hidden states and heads (random, tied sizes) to the loss and the gradients of hidden states and head weight, in
fp32. The floor is the four matrix products that no exact method avoids (logits of both models, gradients of hidden
states and weight), measured in the same process; "of matmul" is the floor's time over the method's. "compiled" is ours
with --compile-loss, its compilation left out of the time. Each method runs in a process of its own; memory is its peak
over what the inputs take, the gradients included.

    python benchmarks/bench_loss.py [--objectives fkl todi js] [--vocabularies 32000 49152 151936 262144]

Prints tables and writes benchmarks/results/<date>-bench_loss.json.
"""

import argparse
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from workload import in_process, write_result  # noqa: E402

from arguments import KDArguments  # noqa: E402
from criterions import Criterion, build_criterion  # noqa: E402
from criterions.fused import ResponsePositions, chunk_bytes  # noqa: E402
from evaluation.results import format_table  # noqa: E402
from models.heads import LanguageModelHead  # noqa: E402
from reference.objectives import NAIVE  # noqa: E402

BETA = {"fkl": 0.0, "rkl": 1.0, "js": 0.5}  # TRL's and Liger's objectives, by their parameter


class Inputs:
    """hidden_ND and weight_VD of student (which train) and teacher."""

    def __init__(self, positions: int, vocabulary: int, hidden: int):
        torch.manual_seed(0)
        self.student, self.teacher = (nn.Linear(hidden, vocabulary, bias=False) for _ in range(2))
        self.teacher.requires_grad_(False)
        self.student_hidden_ND = torch.randn(positions, hidden, requires_grad=True)
        self.teacher_hidden_ND = torch.randn(positions, hidden)
        self.labels_N = torch.randint(vocabulary, (positions,))
        self.student_head, self.teacher_head = (
            LanguageModelHead(linear, vocabulary) for linear in (self.student, self.teacher)
        )


@cache
def criterion_of(objective: str) -> Criterion:
    return build_criterion(objective, KDArguments(kd_objective=objective, kd_rate=1.0))


def ours(objective: str, x: Inputs, compiled: bool = False) -> torch.Tensor:
    criterion = criterion_of(objective)
    positions = ResponsePositions(
        x.student_hidden_ND,
        x.student_head,
        x.labels_N,
        chunk_bytes(criterion.args.loss_chunk_mb, on_cpu=True),
        x.teacher_hidden_ND,
        x.teacher_head,
        compiled=compiled,
    )
    return criterion.loss(positions).loss


def dense(objective: str, x: Inputs) -> torch.Tensor:
    return NAIVE[objective](x.student(x.student_hidden_ND), x.teacher(x.teacher_hidden_ND), x.labels_N).sum()


def trl(objective: str, x: Inputs) -> torch.Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    of_student = (x.student_hidden_ND, x.student.weight, None)
    of_teacher = (x.teacher_hidden_ND, x.teacher.weight, None)
    return ChunkedDivergenceFunction.apply(*of_student, *of_teacher, BETA[objective])[0].sum()


def liger(objective: str, x: Inputs) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[objective], compiled=not x.labels_N.is_cpu
    )
    of_student, of_teacher = (x.student_hidden_ND, x.student.weight), (x.teacher_hidden_ND, x.teacher.weight)
    return loss(*of_student, *of_teacher, x.labels_N) * len(x.labels_N)


METHODS = {"ours": ours, "compiled": partial(ours, compiled=True), "dense": dense, "trl": trl, "liger": liger}
PACKAGES = {"trl": "trl", "liger": "liger_kernel"}


def best(function: Callable[[], object], times: int) -> float:
    """Seconds of the fastest call."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measure(method: str, objective: str, positions: int, vocabulary: int, hidden: int, times: int) -> dict:
    x = Inputs(positions, vocabulary, hidden)
    page_mb = resource.getpagesize() / 2**20
    before_mb = int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]) * page_mb
    value = 0.0

    def run() -> None:
        nonlocal value
        x.student_hidden_ND.grad = x.student.weight.grad = None
        loss = METHODS[method](objective, x)
        loss.backward()
        value = loss.item()

    seconds = best(run, times)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gradient = x.student_hidden_ND.grad.norm().item()
    return {
        "seconds": seconds,
        "peak_mb": peak_mb - before_mb,
        "floor": floor(x, times),
        "loss": value / positions,
        "gradient": gradient,
    }


@torch.no_grad()
def floor(x: Inputs, times: int) -> float:
    """Seconds of the four matrix products, into memory that is there already."""
    weight_VD, teacher_VD, hidden_ND = x.student.weight, x.teacher.weight, x.student_hidden_ND
    logits_NV = torch.empty(len(hidden_ND), len(weight_VD))
    grad_VD, grad_ND = torch.zeros_like(weight_VD), torch.empty_like(hidden_ND)

    def products() -> None:
        torch.mm(x.teacher_hidden_ND, teacher_VD.T, out=logits_NV)
        torch.mm(hidden_ND, weight_VD.T, out=logits_NV)
        torch.mm(logits_NV, weight_VD, out=grad_ND)
        grad_VD.addmm_(logits_NV.T, hidden_ND)

    return best(products, times)


def methods(objective: str) -> list[str]:
    """Those that know the objective and are installed."""
    peers = [name for name, package in PACKAGES.items() if objective in BETA and importlib.util.find_spec(package)]
    return ["ours", "compiled", "dense", *peers]


def of_case(method: str, objective: str, positions: int, vocabulary: int, args: argparse.Namespace) -> dict:
    case = [method, objective, str(positions), str(vocabulary), str(args.hidden), str(args.times)]
    return in_process(__file__, ["--case", *case]) | {
        "method": method,
        "objective": objective,
        "positions": positions,
        "vocabulary": vocabulary,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=["fkl", "todi", "js"])
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[32000, 49152, 151936, 262144])
    parser.add_argument("--positions", type=int, default=335, help="response positions")
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--times", type=int, default=4, help="calls; the fastest counts")
    parser.add_argument("--case", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        method, objective, *numbers = args.case
        print(json.dumps(measure(method, objective, *map(int, numbers))))
        return

    found = [
        of_case(method, objective, args.positions, vocabulary, args)
        for objective in args.objectives
        for vocabulary in args.vocabularies
        for method in methods(objective)
    ]
    growth = [of_case("ours", args.objectives[0], args.positions * k, 49152, args) for k in (1, 2, 4, 8)]
    print_tables(found, growth)
    write_result("bench_loss", {"hidden": args.hidden, "times": args.times}, results=found, growth=growth)


def print_tables(found: list[dict], growth: list[dict]) -> None:
    rows = []
    for case in found:
        twin = next(c for c in found if c["method"] == "dense" and same_case(c, case))
        rows.append([f"{case['objective']}, {case['vocabulary']}, {case['method']}", f"{case['seconds']:.3f}"])
        rows[-1] += [f"{twin['seconds'] / case['seconds']:.1f}x", f"{100 * case['floor'] / case['seconds']:.0f} %"]
        rows[-1] += [f"{case['peak_mb']:.0f}", f"{abs(case['loss'] / twin['loss'] - 1):.0e}"]
    print(format_table(["loss", "seconds", "of dense", "of matmul", "MB", "off by"], rows))
    print()
    rows = [
        [
            str(c["positions"]),
            f"{c['seconds']:.3f}",
            f"{1e3 * c['seconds'] / c['positions']:.2f}",
            f"{c['peak_mb']:.0f}",
        ]
        for c in growth
    ]
    print(format_table(["positions, ours, 49152", "seconds", "ms/position", "MB"], rows))


def same_case(one: dict, other: dict) -> bool:
    return (one["objective"], one["vocabulary"]) == (other["objective"], other["vocabulary"])


if __name__ == "__main__":
    main()
