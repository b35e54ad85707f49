"""Generalised Jensen-Shannon divergence."""

from criterions.base import Criterion, expectation, log_mixture, log_probabilities, register
from flags import option


@register("js", "js_divergence")
class JensenShannon(Criterion):
    """b KL(p || m) + (1-b) KL(q || m), m = b p + (1-b) q, b = --js-beta. Agarwal et al. 2024, arXiv 2306.13649."""

    # At 0 and 1 the divergence is 0.
    js_beta: float = option(0.5, "js: weight of the teacher in the mixture.", above=0, below=1)

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        b = self.js_beta
        log_q_NV, log_p_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
        log_m_NV = log_mixture(log_p_NV, log_q_NV, b)
        return b * expectation(log_p_NV, log_p_NV - log_m_NV) + (1 - b) * expectation(log_q_NV, log_q_NV - log_m_NV)
