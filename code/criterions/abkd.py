"""The alpha-beta divergence."""

from criterions.base import Criterion, log_probabilities, register
from flags import option, require


@register("abkd")
class AlphaBeta(Criterion):
    """-1/(ab) sum_v [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)]. Wang et al. 2025, arXiv 2505.04560.

    The limits at a = 0, b = 0 and a + b = 0 are those of Cichocki et al. 2011 (Entropy 13(1), Eq. 20); a = 1, b = 0 is
    forward KL and a = 0, b = 1 reverse KL.
    """

    ab_alpha: float = option(0.2, "abkd: alpha.")
    ab_beta: float = option(0.7, "abkd: beta.")

    def __init__(self, args):
        super().__init__(args)
        remedy = "pass at least minus --ab-alpha; below, abkd diverges"
        require(self.ab_alpha + self.ab_beta >= 0, "ab_beta", self.ab_beta, remedy)

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        a, b = self.ab_alpha, self.ab_beta
        log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
        log_ratio_NV = log_p_NV - log_q_NV
        if a == 0 and b == 0:
            terms_NV = 0.5 * log_ratio_NV**2
        elif a == 0:
            p_NV, q_NV = (b * log_p_NV).exp(), (b * log_q_NV).exp()
            terms_NV = (p_NV - q_NV - b * q_NV * log_ratio_NV) / b**2
        elif b == 0:
            p_NV, q_NV = (a * log_p_NV).exp(), (a * log_q_NV).exp()
            terms_NV = (q_NV - p_NV + a * p_NV * log_ratio_NV) / a**2
        elif a + b == 0:
            terms_NV = ((a * log_ratio_NV).exp() - 1 - a * log_ratio_NV) / a**2
        else:
            # p^a q^b as (p q^r / p^r)^(a+b), r = b / (a+b): equal to p^(a+b) to the last bit where p = q.
            r = b / (a + b)
            mixed_NV = ((a + b) * (log_p_NV - r * log_ratio_NV)).exp()
            p_NV, q_NV = ((a + b) * log_p_NV).exp(), ((a + b) * log_q_NV).exp()
            terms_NV = ((1 - r) * (p_NV - mixed_NV) + r * (q_NV - mixed_NV)) / (a * b)
        return terms_NV.sum(-1)
