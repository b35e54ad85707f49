"""What student and teacher predict at a position: entropies, agreement, divergences, the mass under ToDi's weights.

In: logits at temperature 1, whatever --kd-temperature is. Out: one value per position, in nats; or the means over a
sample of the positions of a step. Nothing here is trained, and nothing here changes what is.

Shapes: N positions, V shared vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from criterions.base import ABSENT, log_probabilities
from criterions.fused import ResponsePositions

LARGEST_SAMPLE, SMALLEST_STRIDE = 64, 4  # positions of a micro-batch on one rank


class Measures(NamedTuple):
    """Per position, [N]; from `teacher_entropy` on, None without a teacher. Equations: docs/telemetry.md."""

    nll: Tensor
    student_entropy: Tensor
    correct: Tensor  # the student's most likely token is the label
    teacher_entropy: Tensor | None = None
    agreement: Tensor | None = None  # both models have the same most likely token
    overlap: Tensor | None = None
    forward_kl: Tensor | None = None
    reverse_kl: Tensor | None = None
    todi_forward: Tensor | None = None
    todi_reverse: Tensor | None = None


STUDENTS_MEASURES = Measures._fields[:3]


def measure(student_logits_NV: Tensor, teacher_logits_NV: Tensor | None, labels_N: Tensor) -> tuple[Tensor, ...]:
    """The fields of `Measures` that there are, in their order."""
    if teacher_logits_NV is None:
        log_q_NV = student_logits_NV.log_softmax(-1).clamp_min(ABSENT)
        return _of_student(log_q_NV, log_q_NV.exp(), log_q_NV.argmax(-1), labels_N)
    log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    q_NV, p_NV, log_ratio_NV = log_q_NV.exp(), log_p_NV.exp(), log_p_NV - log_q_NV
    student_best_N = log_q_NV.argmax(-1)
    w_NV = log_ratio_NV.sigmoid()
    distance_NV = log_ratio_NV.abs()
    return (
        *_of_student(log_q_NV, q_NV, student_best_N, labels_N),
        -_dot(p_NV, log_p_NV),
        student_best_N == log_p_NV.argmax(-1),
        torch.minimum(p_NV, q_NV).sum(-1),
        _dot(p_NV, log_ratio_NV),
        -_dot(q_NV, log_ratio_NV),
        _dot(w_NV * p_NV, distance_NV),
        _dot((1 - w_NV) * q_NV, distance_NV),
    )


def hellinger(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """The distance of q and p, in [0, 1]."""
    log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    return (0.5 * ((0.5 * log_p_NV).exp() - (0.5 * log_q_NV).exp()).square().sum(-1)).sqrt()


def _of_student(log_q_NV: Tensor, q_NV: Tensor, best_N: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return -log_q_NV.gather(-1, labels_N[:, None])[:, 0], -_dot(q_NV, log_q_NV), best_N == labels_N


def _dot(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    return torch.linalg.vecdot(a_NV, b_NV)


def sample_sums(positions: ResponsePositions) -> Tensor:
    """The number of sampled positions and the sum of each field of `Measures` over them; fp64, on the device.

    Every fourth position, or fewer of a large micro-batch: two more products with the heads, for few positions.
    """
    count = len(positions.labels_N)
    stride = max(SMALLEST_STRIDE, -(-count // LARGEST_SAMPLE))
    sample = positions.part(slice(min(stride // 2, max(0, count - 1)), None, stride))
    sums = [values_N.sum(dtype=torch.float64) for values_N in sample.score(measure)]
    return torch.stack([torch.full_like(sums[0], len(sample.labels_N)), *sums])


def means(totals: Sequence[float]) -> dict[str, float]:
    """What metrics.jsonl has of the totals of `sample_sums`: {} where no position was sampled."""
    count, *sums = totals
    if not count:
        return {}
    total = Measures(*sums)
    record = {"student_entropy": total.student_entropy / count, "token_accuracy": total.correct / count}
    if total.teacher_entropy is None:
        return record
    mass = total.todi_forward + total.todi_reverse
    return record | {
        "teacher_entropy": total.teacher_entropy / count,
        "agreement": total.agreement / count,
        "overlap": total.overlap / count,
        "todi_forward_share": total.todi_forward / mass if mass else 0.5,
        "todi_reverse_share": total.todi_reverse / mass if mass else 0.5,
    }
