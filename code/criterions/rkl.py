"""Reverse KL."""

from criterions.base import Criterion, expectation, log_probabilities, register


@register("rkl", "reverse_kl")
class ReverseKL(Criterion):
    """KL(q || p), mode-seeking. Gu et al. 2024, arXiv 2306.08543, Eq. 2."""

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
        # sum_v q d(log q) = d(sum_v q) = 0: left to autograd, that zero comes out as rounding error.
        return expectation(log_q_NV, (log_q_NV - log_p_NV).detach())
