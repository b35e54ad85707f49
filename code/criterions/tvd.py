"""Total variation distance."""

from criterions.base import Criterion, log_probabilities, register


@register("tvd")
class TotalVariation(Criterion):
    """1/2 sum_v |p - q|. Wen et al. 2023, arXiv 2307.15190."""

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
        return 0.5 * (log_p_NV.exp() - log_q_NV.exp()).abs().sum(-1)
