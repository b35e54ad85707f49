"""The objectives as their papers print them, for tests to compare with (in float64) and benchmarks to race against.

Every function takes student and teacher logits [N, V] that the caller has already divided by the temperature, and
returns a loss [N]; `NAIVE` lists them by name. p is the teacher, q the student. A vocabulary entry whose logit is
-inf on either side contributes 0. Nothing here is chunked, fused or imported from `code/`.

Shapes: N response positions, V vocabulary.
"""

import torch


def log_probabilities(student_logits_NV, teacher_logits_NV):
    """log q, log p and the entries that count; the others get 0, because 0 * -inf is NaN, in the gradient as well."""
    live_NV = torch.isfinite(student_logits_NV) & torch.isfinite(teacher_logits_NV)
    log_q_NV = torch.log_softmax(student_logits_NV, dim=-1).masked_fill(~live_NV, 0.0)
    log_p_NV = torch.log_softmax(teacher_logits_NV, dim=-1).masked_fill(~live_NV, 0.0)
    return log_q_NV, log_p_NV, live_NV


def probabilities(logits_NV):
    """A softmax of its own: in fp32 the gradient of exp(log_softmax) is off by up to 4e-6 where one token has nearly
    all of the mass, which the golden gradients of rkl notice."""
    return torch.softmax(logits_NV, dim=-1)


def sum_over_vocabulary(term_NV, live_NV):
    return term_NV.masked_fill(~live_NV, 0.0).sum(dim=-1)


def log_mixture(weight, log_a_NV, log_b_NV):
    """log(weight a + (1 - weight) b)."""
    log_weight, log_rest = torch.tensor([weight, 1 - weight], dtype=log_a_NV.dtype, device=log_a_NV.device).log()
    return torch.logaddexp(log_weight + log_a_NV, log_rest + log_b_NV)


def cross_entropy(student_logits_NV, teacher_logits_NV=None, labels_N=None):
    """-log q(y). The caller passes undivided logits: cross-entropy is at temperature 1."""
    label_logit_N = student_logits_NV.gather(-1, labels_N[:, None])[:, 0]
    log_q_N = torch.log_softmax(student_logits_NV, dim=-1).gather(-1, labels_N[:, None])[:, 0]
    return -log_q_N.masked_fill(~torch.isfinite(label_logit_N), 0.0)


def forward_kl(student_logits_NV, teacher_logits_NV, labels_N=None):
    """KL(p || q). Hinton et al. 2015."""
    log_q_NV, log_p_NV, live_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    return sum_over_vocabulary(probabilities(teacher_logits_NV) * (log_p_NV - log_q_NV), live_NV)


def reverse_kl(student_logits_NV, teacher_logits_NV, labels_N=None):
    """KL(q || p). Gu et al. 2024, arXiv 2306.08543."""
    log_q_NV, log_p_NV, live_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    return sum_over_vocabulary(probabilities(student_logits_NV) * (log_q_NV - log_p_NV), live_NV)


def jensen_shannon(student_logits_NV, teacher_logits_NV, labels_N=None, js_beta=0.5):
    """b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q. Agarwal et al. 2024, arXiv 2306.13649."""
    log_q_NV, log_p_NV, live_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    log_m_NV = log_mixture(js_beta, log_p_NV, log_q_NV)
    kl_p_N = sum_over_vocabulary(probabilities(teacher_logits_NV) * (log_p_NV - log_m_NV), live_NV)
    kl_q_N = sum_over_vocabulary(probabilities(student_logits_NV) * (log_q_NV - log_m_NV), live_NV)
    return js_beta * kl_p_N + (1 - js_beta) * kl_q_N


def total_variation(student_logits_NV, teacher_logits_NV, labels_N=None):
    """1/2 sum |p - q|. Wen et al. 2023, arXiv 2307.15190."""
    _, _, live_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    return sum_over_vocabulary((probabilities(teacher_logits_NV) - probabilities(student_logits_NV)).abs(), live_NV) / 2


def skewed_forward_kl(student_logits_NV, teacher_logits_NV, labels_N=None, skew_lambda=0.1):
    """KL(p || l p + (1 - l) q). Ko et al. 2024, arXiv 2402.03898."""
    log_q_NV, log_p_NV, live_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    log_m_NV = log_mixture(skew_lambda, log_p_NV, log_q_NV)
    return sum_over_vocabulary(probabilities(teacher_logits_NV) * (log_p_NV - log_m_NV), live_NV)


def skewed_reverse_kl(student_logits_NV, teacher_logits_NV, labels_N=None, skew_lambda=0.1):
    """KL(q || (1 - l) p + l q). Ko et al. 2024, arXiv 2402.03898."""
    log_q_NV, log_p_NV, live_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    log_m_NV = log_mixture(1 - skew_lambda, log_p_NV, log_q_NV)
    return sum_over_vocabulary(probabilities(student_logits_NV) * (log_q_NV - log_m_NV), live_NV)


def adaptive_kl(student_logits_NV, teacher_logits_NV, labels_N=None, adaptive_kl_alpha=0.5):
    """FKL weighted by the gap over the teacher's head, RKL by the gap over its tail. Wu et al. 2024, arXiv 2404.02657.

    Tokens sorted by ascending p: the tail is the prefix whose cumulative p is at most alpha, the head is the rest.
    """
    _, _, live_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    with torch.no_grad():
        gap_NV = (probabilities(teacher_logits_NV) - probabilities(student_logits_NV)).abs().masked_fill(~live_NV, 0.0)
        ascending_p_NV, order_NV = probabilities(teacher_logits_NV).sort(dim=-1)
        is_tail_NV = ascending_p_NV.cumsum(dim=-1) <= adaptive_kl_alpha
        gap_NV = gap_NV.gather(-1, order_NV)
        gap_tail_N = gap_NV.masked_fill(~is_tail_NV, 0.0).sum(dim=-1)
        gap_head_N = gap_NV.masked_fill(is_tail_NV, 0.0).sum(dim=-1)
        total_N = gap_head_N + gap_tail_N
        total_N = torch.where(total_N > 0, total_N, 1.0)  # p = q: both divergences are 0 whatever weighs them
    forward_kl_N = forward_kl(student_logits_NV, teacher_logits_NV)
    reverse_kl_N = reverse_kl(student_logits_NV, teacher_logits_NV)
    return gap_head_N / total_N * forward_kl_N + gap_tail_N / total_N * reverse_kl_N


def alpha_beta(student_logits_NV, teacher_logits_NV, labels_N=None, ab_alpha=0.2, ab_beta=0.7):
    """The alpha-beta divergence. Wang et al. 2025, arXiv 2505.04560; its limits: Cichocki et al. 2011.

    -1/(ab) sum [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)], and where that is 0/0:
      a = b = 0   1/2 sum (log p - log q)^2
      b = 0       1/a^2 sum [p^a log(p^a / q^a) - p^a + q^a]                  (a = 1: KL(p || q))
      a = 0       1/b^2 sum [q^b log(q^b / p^b) - q^b + p^b]                  (b = 1: KL(q || p))
      a = -b      1/a^2 sum [log(q^a / p^a) + p^a / q^a - 1]
    The official release divides the last three by a, b and a; they are then not the limits.
    """
    log_q_NV, log_p_NV, live_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    a, b, log_ratio_NV = ab_alpha, ab_beta, log_p_NV - log_q_NV
    if a == 0 and b == 0:
        term_NV = log_ratio_NV**2 / 2
    elif b == 0:
        p_a_NV, q_a_NV = (a * log_p_NV).exp(), (a * log_q_NV).exp()
        term_NV = (p_a_NV * a * log_ratio_NV - p_a_NV + q_a_NV) / a**2
    elif a == 0:
        p_b_NV, q_b_NV = (b * log_p_NV).exp(), (b * log_q_NV).exp()
        term_NV = (-q_b_NV * b * log_ratio_NV - q_b_NV + p_b_NV) / b**2
    elif a + b == 0:
        term_NV = (-a * log_ratio_NV + (a * log_ratio_NV).exp() - 1) / a**2
    else:
        p_a_q_b_NV = (a * log_p_NV + b * log_q_NV).exp()
        p_ab_NV, q_ab_NV = ((a + b) * log_p_NV).exp(), ((a + b) * log_q_NV).exp()
        term_NV = -(p_a_q_b_NV - a / (a + b) * p_ab_NV - b / (a + b) * q_ab_NV) / (a * b)
    return sum_over_vocabulary(term_NV, live_NV)


def todi(student_logits_NV, teacher_logits_NV, labels_N=None):
    """sum [w p log(p/q) + (1 - w) q log(q/p)], w = sigmoid(log p - log q) detached. ToDi, arXiv 2505.16297."""
    log_q_NV, log_p_NV, live_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    p_NV, q_NV = probabilities(teacher_logits_NV), probabilities(student_logits_NV)
    w_NV = torch.sigmoid(log_p_NV - log_q_NV).detach()
    term_NV = w_NV * p_NV * (log_p_NV - log_q_NV) + (1 - w_NV) * q_NV * (log_q_NV - log_p_NV)
    return sum_over_vocabulary(term_NV, live_NV)


def hellinger(student_logits_NV, teacher_logits_NV, labels_N=None):
    """sqrt(1/2 sum (sqrt p - sqrt q)^2), in [0, 1]. AdaKD, arXiv 2510.11615, Eq. 3."""
    log_q_NV, log_p_NV, live_NV = log_probabilities(student_logits_NV, teacher_logits_NV)
    return (sum_over_vocabulary(((log_p_NV / 2).exp() - (log_q_NV / 2).exp()) ** 2, live_NV) / 2).sqrt()


NAIVE = {
    "cross_entropy": cross_entropy,
    "fkl": forward_kl,
    "rkl": reverse_kl,
    "js": jensen_shannon,
    "tvd": total_variation,
    "sfkl": skewed_forward_kl,
    "srkl": skewed_reverse_kl,
    "akl": adaptive_kl,
    "abkd": alpha_beta,
    "todi": todi,
}


def naive_difficulty(student_logits_NV, teacher_logits_NV, tau_base, difficulty="hellinger", labels_N=None):
    """s_N, detached: the named divergence at tau_base (cross_entropy: at temperature 1, as everywhere)."""
    score = hellinger if difficulty == "hellinger" else NAIVE[difficulty]
    tau = 1.0 if difficulty == "cross_entropy" else tau_base
    with torch.no_grad():
        return score(student_logits_NV / tau, teacher_logits_NV / tau, labels_N)


def naive_adakd(
    student_logits_NV,
    teacher_logits_NV,
    ratio,
    tau_base=1.0,
    c=0.5,
    base="rkl",
    latf="adaptive",
    idts="inverse",
    difficulty="hellinger",
    labels_N=None,
    **base_hyperparameters,
):
    """AdaKD, arXiv 2510.11615, Eq. 3-10, for one ratio r_t (`latf="off"` selects every position).

    Returns the mean over the selected positions of tau_i^2 * base at tau_i, the selected indices in ascending order,
    and temperature_N of every position, selected or not. Equal scores: the earlier position is selected first.
    """
    s_N = naive_difficulty(student_logits_NV, teacher_logits_NV, tau_base, difficulty, labels_N)
    positions = len(s_N)
    selected_count = positions if latf == "off" else max(1, int(ratio * positions))
    selected = s_N.argsort(descending=True, stable=True)[:selected_count].sort().values

    median = s_N[selected].median()  # of an even count: the lower middle one
    s_hat_N = torch.where(s_N == median, 0.0, (s_N / median).log().tanh())  # 0 / 0 is "as hard as the median"
    exponent_N = {"inverse": -c * s_hat_N, "direct": c * s_hat_N, "off": 0.0 * s_hat_N}[idts]
    temperature_N = tau_base * exponent_N.exp()

    tau_M = temperature_N[selected]
    loss_M = NAIVE[base](
        student_logits_NV[selected] / tau_M[:, None],
        teacher_logits_NV[selected] / tau_M[:, None],
        None if labels_N is None else labels_N[selected],
        **base_hyperparameters,
    )
    return (tau_M**2 * loss_M).mean(), selected, temperature_N


def naive_ratio_controller(losses, total_steps, beta=0.99, eps=0.05, delta=0.05, r_min=0.1, warmup_ratio=0.05):
    """AdaKD's r_t for each optimiser step of `losses` (the selected-mean loss of that step), Eq. 5-7.

    L_1 = loss_1; r is 1 through the warm-up, which has at least one step; L_ref is L after its last step; a later
    step t first compares L_{t-1} with L_ref, then uses the r that results.
    """
    warmup_steps = max(1, int(warmup_ratio * total_steps))
    ratio, ema, reference = 1.0, None, None
    ratio_of_step = []
    for step, loss in enumerate(losses, start=1):
        if step > warmup_steps:
            if ema < reference * (1 - eps):
                ratio, reference = max(r_min, ratio * (1 - delta)), ema
            elif ema > reference * (1 + eps):
                ratio, reference = min(1.0, ratio * (1 + delta)), ema
        ratio_of_step.append(ratio)
        ema = loss if ema is None else beta * ema + (1 - beta) * loss
        if step == warmup_steps:
            reference = ema
    return ratio_of_step
