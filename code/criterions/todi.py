"""ToDi, token-wise distillation: every vocabulary entry of a position gets its own mix of forward and reverse KL."""

from criterions.base import Criterion, log_probabilities, register


@register("todi", "ToDi")
class ToDi(Criterion):
    """sum_v [w p (log p - log q) + (1-w) q (log q - log p)], w = sigmoid(log p - log q). ToDi, arXiv 2505.16297.

    The weight, detached, favours forward KL where the student is under the teacher, reverse KL where it is over.
    """

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
        log_ratio_NV = log_p_NV - log_q_NV
        w_NV = log_ratio_NV.detach().sigmoid()
        return ((w_NV * log_p_NV.exp() - (1 - w_NV) * log_q_NV.exp()) * log_ratio_NV).sum(-1)
