"""Forward KL."""

from criterions.base import Criterion, expectation, log_probabilities, register


@register("fkl", "forward_kl")
class ForwardKL(Criterion):
    """KL(p || q), mass-covering. Hinton et al. 2015, arXiv 1503.02531."""

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
        return expectation(log_p_NV, log_p_NV - log_q_NV)
