"""Adaptive KL: forward KL where the teacher's head is missed, reverse KL where its tail is."""

import torch
from torch import Tensor

from criterions.base import Criterion, expectation, log_probabilities, register
from flags import option


@register("akl", "adaptive_kl")
class AdaptiveKL(Criterion):
    """(g_head fkl + g_tail rkl) / (g_head + g_tail), g = sum of |p - q| over a part. Wu et al. 2024, arXiv 2404.02657.

    Tokens sorted by p ascending: the tail is the prefix with cumulative p <= --adaptive-kl-alpha, the head the rest.
    """

    adaptive_kl_alpha: float = option(0.5, "akl: teacher mass that counts as the tail.", at_least=0, at_most=1)

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
        fkl_N = expectation(log_p_NV, log_p_NV - log_q_NV)
        rkl_N = expectation(log_q_NV, log_q_NV - log_p_NV)
        head_share_N = self._head_share(log_q_NV.detach(), log_p_NV)
        return head_share_N * fkl_N + (1 - head_share_N) * rkl_N

    def _head_share(self, log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
        p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
        sorted_p_NV, order_NV = p_NV.sort(-1)
        is_tail_NV = sorted_p_NV.cumsum(-1) <= self.adaptive_kl_alpha
        gap_NV = (p_NV - q_NV).abs().gather(-1, order_NV)
        tail_N, total_N = (gap_NV * is_tail_NV).sum(-1), gap_NV.sum(-1)
        return torch.where(total_N > 0, 1 - tail_N / total_N.clamp_min(torch.finfo(total_N.dtype).tiny), 0.5)
