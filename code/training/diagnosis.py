"""How hard, middle and easy positions pull on the student, every --diagnose-every steps: diagnose.jsonl.

In: the first micro-batch of the step on rank 0. Out: per third of its positions by difficulty, the share of KD's
gradient and its cosine with the SFT gradient (AdaKD, arXiv 2510.11615, Fig. 1), and histograms (Fig. 4). The gradients
are those of the head's weight, whether it trains or not: they need no backward through the model, so that neither its
parameters and gradients nor random numbers are touched. Fields and equations are in docs/telemetry.md.

Shapes: N response positions, S of them in the sample, V shared vocabulary, D hidden size, G groups.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from criterions import Criterion
from criterions.fused import ResponsePositions
from criterions.measures import Measures, hellinger, measure
from runtime.ranks import is_main_process
from training.writers import JsonlWriter, rounded

GROUPS = ("easy", "middle", "hard")
LARGEST_SAMPLE = 128  # positions whose gradients are held at once
BINS = 20


class Diagnosis:
    """Looks at one micro-batch per step in which it observes."""

    def __init__(self, criterion: Criterion, save_dir: Path):
        self._criterion, self._writer = criterion, JsonlWriter(save_dir / "diagnose.jsonl")
        self._found: dict | None = None

    def observe(self, positions: ResponsePositions) -> None:
        if self._found is None and is_main_process() and len(positions.labels_N) >= len(GROUPS):
            self._found = diagnose(positions, self._criterion)

    def write(self, epoch: int, step: int) -> None:
        """Raises WriteError."""
        if self._found is not None:
            self._writer.write({"step": step, "epoch": epoch, **self._found})
        self._found = None


@torch.no_grad()
def diagnose(positions: ResponsePositions, criterion: Criterion) -> dict:
    """The record of one micro-batch of at least three positions with a teacher."""
    (difficulty_N,) = positions.score(lambda *logits: (_difficulty(criterion, *logits),))
    if criterion.selects:
        temperature_N = criterion.plan(difficulty_N).temperature_N
    else:
        temperature_N = torch.full_like(difficulty_N, criterion.args.kd_temperature)
    measures = Measures(*positions.score(measure))
    sample = slice(None, None, -(-len(difficulty_N) // LARGEST_SAMPLE))
    pulls = _pulls(positions.part(sample), criterion, difficulty_N[sample], temperature_N[sample])
    return {
        "positions": len(difficulty_N),
        **{name: dict(zip(GROUPS, rounded(values))) for name, values in pulls.items()},
        "temperature": _histogram(temperature_N) if criterion.selects else None,
        "student_entropy": _histogram(measures.student_entropy),
        "teacher_entropy": _histogram(measures.teacher_entropy),
    }


def _difficulty(criterion: Criterion, student_logits_NV: Tensor, teacher_logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """The criterion's own, or the Hellinger distance."""
    if criterion.selects:
        return criterion.difficulty(student_logits_NV, teacher_logits_NV, labels_N)
    return hellinger(student_logits_NV, teacher_logits_NV)


def _pulls(
    positions: ResponsePositions, criterion: Criterion, difficulty_S: Tensor, temperature_S: Tensor
) -> dict[str, list[float]]:
    """Of each group: mean difficulty, its gradient's norm as a share of the sum of all norms, cosine with SFT's."""
    tau_S1, labels_S, teacher = temperature_S[:, None], positions.labels_N, positions.teacher_head
    teacher_logits_SV = teacher.finish(teacher.project(positions.teacher_hidden_NE))

    def kd_S(logits_SV: Tensor) -> Tensor:
        return temperature_S**2 * criterion.token_loss(logits_SV / tau_S1, teacher_logits_SV / tau_S1, labels_S)

    kd_SV = _gradient(positions, kd_S)
    sft_SV = _gradient(positions, lambda logits_SV: F.cross_entropy(logits_SV, labels_S, reduction="none"))
    # The gradient of the head's weight is sum_i g_i h_i^T, and <g_i h_i^T, g_j h_j^T> = <g_i, g_j> <h_i, h_j>.
    hidden_SD = positions.hidden_ND.detach().to(kd_SV.dtype)
    products_SS = hidden_SD @ hidden_SD.T
    if positions.head.parameters()[0] is None:  # a model's own logits: the gradient is that of the logits
        products_SS = torch.eye(len(labels_S), dtype=kd_SV.dtype, device=kd_SV.device)
    rank_S = difficulty_S.argsort(stable=True).argsort()
    group_S = rank_S * len(GROUPS) // len(labels_S)
    member_GS = torch.stack([group_S == group for group in range(len(GROUPS))]).to(kd_SV.dtype)
    norm_G = _squares(member_GS, kd_SV @ kd_SV.T * products_SS).sqrt()
    sft_norm = (sft_SV @ sft_SV.T * products_SS).sum().clamp_min(0).sqrt()
    with_sft_G = member_GS @ (kd_SV @ sft_SV.T * products_SS).sum(1)
    return {
        "difficulty": (member_GS @ difficulty_S.to(kd_SV.dtype) / member_GS.sum(1)).tolist(),
        "gradient_share": (norm_G / norm_G.sum()).tolist(),
        "cosine_with_sft": (with_sft_G / (norm_G * sft_norm)).tolist(),
    }


def _gradient(positions: ResponsePositions, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the sum of the losses, in the student's raw logits."""
    raw_SV = positions.head.project(positions.hidden_ND.detach()).float()
    with torch.enable_grad():
        loss = loss_of(positions.head.finish(raw_SV.requires_grad_())).sum()
    return torch.autograd.grad(loss, raw_SV)[0]


def _squares(member_GS: Tensor, products_SS: Tensor) -> Tensor:
    return torch.einsum("gs,st,gt->g", member_GS, products_SS, member_GS).clamp_min(0)


def _histogram(values_N: Tensor) -> dict[str, list[float]]:
    """edges: one more than counts."""
    counts, edges = np.histogram(values_N.double().cpu().numpy(), BINS)
    return {"edges": rounded(edges.tolist()), "counts": counts.tolist()}
