"""Skewed forward and reverse KL: a share of the other distribution is mixed into the second one."""

from criterions.base import Criterion, expectation, log_mixture, log_probabilities, register
from flags import option


class Skewed(Criterion):
    """KL to a mixture of both distributions. Ko et al. 2024, arXiv 2402.03898."""

    # At 1 the divergence is 0.
    skew_lambda: float = option(0.1, "sfkl, srkl: share of the other distribution mixed in.", at_least=0, below=1)


@register("sfkl", "skewed_forward_kl")
class SkewedForwardKL(Skewed):
    """KL(p || l p + (1-l) q), l = --skew-lambda."""

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
        return expectation(log_p_NV, log_p_NV - log_mixture(log_p_NV, log_q_NV, self.skew_lambda))


@register("srkl", "skewed_reverse_kl")
class SkewedReverseKL(Skewed):
    """KL(q || (1-l) p + l q), l = --skew-lambda."""

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
        return expectation(log_q_NV, log_q_NV - log_mixture(log_q_NV, log_p_NV, self.skew_lambda))
