"""Skewed reverse KL."""

from criterions.base import Criterion, expectation, log_mixture, log_probabilities, register


@register("srkl", "skewed_reverse_kl")
class SkewedReverseKL(Criterion):
    """KL(q || (1-l) p + l q), l = --skew-lambda. Ko et al. 2024, arXiv 2402.03898."""

    hyper_parameters = ("skew_lambda",)

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
        return expectation(log_q_NV, log_q_NV - log_mixture(log_q_NV, log_p_NV, self.args.skew_lambda))
