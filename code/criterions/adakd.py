"""AdaKD, token-adaptive distillation around any other objective. arXiv 2510.11615.

LATF (Eq. 4-7) decides which positions train: the most difficult share r_t of a micro-step's response positions, over
all ranks, where r_t follows the trend of the loss. IDTS (Eq. 9-10) decides at which temperature: low where a position
is difficult, high where it is easy. A first pass over the chunks scores the positions without gradient; a second one
trains those selected.

Shapes: N response positions (of this rank in `loss`, of the whole micro-step in `plan`), V shared vocabulary.
"""

import math
from dataclasses import replace
from itertools import chain
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from arguments import KDArguments, did_you_mean
from criterions.base import Criterion, StepTokens, build_criterion, objectives, register
from criterions.fused import LossSums, ResponsePositions
from criterions.measures import hellinger
from flags import option

LEVELS = tuple("tau_q05 tau_q50 tau_q95 difficulty_q05 difficulty_q50 difficulty_q95".split())
TINY = 1e-12  # keeps log(s / median) finite where a position, or the median, has no difficulty at all


class TokenPlan(NamedTuple):
    """Which positions train, and the temperature of each."""

    selected_N: Tensor  # bool
    temperature_N: Tensor


@register("adakd")
class AdaKD(Criterion):
    """Mean over the selected positions of tau_i^2 * base(logits / tau_i).

    base: the wrapped objective, from --adakd-base.
    ratio: r_t, the share of positions that the current optimiser step trains on.
    """

    selects = True

    adakd_base: str = option("rkl", "adakd: the objective it wraps.")
    adakd_latf: Literal["adaptive", "fixed", "off"] = option("adaptive", "adakd: which positions train (LATF).")
    adakd_ratio: float = option(1.0, "adakd: share of positions at the start, or fixed.", above=0, at_most=1)
    adakd_ratio_min: float = option(0.1, "adakd: floor of the adaptive share.", above=0, at_most=1)
    adakd_idts: Literal["inverse", "direct", "off"] = option(
        "inverse", "adakd: temperature of a position by its difficulty (IDTS)."
    )
    adakd_difficulty: Literal["hellinger", "fkl", "rkl", "js", "cross_entropy"] = option(
        "hellinger", "adakd: what makes a position difficult."
    )
    adakd_tau_base: float = option(
        1.0, "adakd: temperature of the difficulty and centre of IDTS; not --kd-temperature.", above=0
    )
    adakd_c: float = option(0.5, "adakd: strength of IDTS.", at_least=0)
    adakd_beta: float = option(0.99, "adakd: decay of the loss average that drives LATF.", at_least=0, at_most=1)
    adakd_epsilon: float = option(0.05, "adakd: relative change of it that moves the share.", at_least=0)
    adakd_delta: float = option(0.05, "adakd: relative size of such a move.", at_least=0, at_most=1)
    adakd_warmup_ratio: float = option(0.05, "adakd: share of steps with all positions.", at_least=0, at_most=1)

    def __init__(self, args: KDArguments):
        super().__init__(args)
        bases = [names for names in objectives() if "adakd" not in names]
        if self.adakd_base not in (known := list(chain(*bases))):
            hint, own = did_you_mean(self.adakd_base, known), ", ".join(name for name, *_ in bases)
            raise ValueError(f"--adakd-base {self.adakd_base}: {hint}adakd wraps one of {own}")
        self.base = build_criterion(self.adakd_base, args)
        self.ratio = 1.0 if self.adakd_latf == "off" else self.adakd_ratio
        self.average: float | None = None  # L_t
        self.reference: float | None = None  # L_ref
        self.step = 0
        self.warmup_steps = 1
        self._measure = None if self.adakd_difficulty == "hellinger" else build_criterion(self.adakd_difficulty, args)
        self._step_tokens = StepTokens(tokens=())
        self._sums: Tensor | None = None  # of this step and rank: KD over the selected, KD over all
        self._last: tuple[TokenPlan, Tensor] | None = None  # of the latest micro-step with positions; difficulty_N

    @classmethod
    def around(cls, base: str, args: KDArguments) -> "AdaKD":
        return cls(replace(args, adakd_base=base))

    def used_arguments(self):
        wrapped = [criterion.hyper_parameters for criterion in (self.base, self._measure) if criterion is not None]
        return "kd_rate", *self.hyper_parameters, *dict.fromkeys(name for names in wrapped for name in names)

    def folder_names(self, name):
        base = self.adakd_base
        if "+" not in name and base != KDArguments().adakd_base:
            name = f"{name}+{base}"
        return name, name

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        return self.base.token_loss(student_logits_NV, teacher_logits_NV, labels_N)

    @torch.no_grad()
    def difficulty(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        """s_N: the Hellinger distance of teacher and student at tau_base, in [0, 1] (Eq. 3), or --adakd-difficulty."""
        if self._measure is not None and not self._measure.needs_teacher:  # cross-entropy is at temperature 1
            return self._measure.token_loss(student_logits_NV, teacher_logits_NV, labels_N)
        student_logits_NV = student_logits_NV / self.adakd_tau_base
        teacher_logits_NV = teacher_logits_NV / self.adakd_tau_base
        if self._measure is not None:
            return self._measure.token_loss(student_logits_NV, teacher_logits_NV, labels_N)
        return hellinger(student_logits_NV, teacher_logits_NV)

    def plan(self, difficulty_N: Tensor) -> TokenPlan:
        """LATF and IDTS for the positions of one micro-step over all ranks."""
        selected_N = torch.zeros_like(difficulty_N, dtype=torch.bool)
        # Stable: equal scores take the earlier position, whichever sort the device has.
        hardest_K = difficulty_N.argsort(descending=True, stable=True)[: self._count(len(difficulty_N))]
        selected_N[hardest_K] = True
        temperature_N = torch.full_like(difficulty_N, self.adakd_tau_base)
        if len(hardest_K) and self.adakd_idts != "off":
            median = difficulty_N[hardest_K].median()  # of an even count the lower middle
            relative_N = (difficulty_N.clamp_min(TINY) / median.clamp_min(TINY)).log().tanh()
            strength = self.adakd_c if self.adakd_idts == "inverse" else -self.adakd_c
            temperature_N = self.adakd_tau_base * (-strength * relative_N).exp()
        return TokenPlan(selected_N, temperature_N)

    def loss(self, positions: ResponsePositions) -> LossSums:
        difficulty_N, kd_N, ce_N = positions.score(self._score)
        start, everyones_difficulty = _gather(difficulty_N, positions.positions_per_rank)
        plan = self.plan(everyones_difficulty)
        mine = slice(start, start + len(difficulty_N))
        selected_N, temperature_N = plan.selected_N[mine], plan.temperature_N[mine]
        # With one rank the count is known; with several, asking the device for it is the only wait of a micro-step.
        alone = len(positions.positions_per_rank) == 1
        selected = self._count(len(difficulty_N)) if alone else int(selected_N.sum())

        # Every rank divides by the tokens of the whole step; KD is a mean over the positions selected in it.
        per_selected = self._step_tokens.total_tokens / self._selected_tokens
        sums = positions.walk(
            self.base.token_loss,
            ce_weight=1 - self.args.kd_rate if positions.supervised else 0.0,
            kd_weight=self.args.kd_rate,
            temperature=temperature_N,
            kd_scale_N=temperature_N.square() * per_selected,
            kd_selected_N=selected_N,
            kd_count=selected,
        )
        self._sums += torch.stack([sums.kd / per_selected, kd_N.sum()])
        if len(everyones_difficulty):
            self._last = plan, everyones_difficulty
        return sums._replace(ce=ce_N.sum())

    def prepare(self, total_steps: int) -> None:
        self.warmup_steps = max(1, int(self.adakd_warmup_ratio * total_steps))

    def start_step(self, step_tokens: StepTokens) -> None:
        self._step_tokens = step_tokens
        self._sums = torch.zeros(2, device=step_tokens.device)

    def end_step(self) -> dict[str, float]:
        if dist.is_initialized():
            dist.all_reduce(self._sums)
        used_ratio = self.ratio
        selected_sum, all_sum, *levels = torch.cat([self._sums, self._levels()]).tolist()
        selected_loss = selected_sum / self._selected_tokens  # before `update` changes the ratio
        self.update(selected_loss)
        average = math.nan if self.average is None else self.average
        return {
            "adakd_ratio": used_ratio,
            "adakd_average_loss": average,
            "adakd_reference_loss": average if self.reference is None else self.reference,
            "adakd_selected_loss": selected_loss,
            "adakd_all_token_loss": all_sum / max(1, self._step_tokens.total_tokens),
            **{f"adakd_{name}": level for name, level in zip(LEVELS, levels)},
        }

    def update(self, mean_loss: float) -> None:
        """End of optimiser step t (Eq. 5-7): L_t, and from it the share r of step t + 1.

        mean_loss: over the positions selected in the step, all ranks and micro-batches.
        """
        if not math.isfinite(mean_loss):  # the average would stay non-finite
            return
        beta, epsilon, delta = self.adakd_beta, self.adakd_epsilon, self.adakd_delta
        self.step += 1
        self.average = mean_loss if self.average is None else beta * self.average + (1 - beta) * mean_loss
        if self.adakd_latf != "adaptive" or self.step < self.warmup_steps:
            return
        if self.reference is None:  # the end of the warm-up
            self.reference = self.average
        elif self.average < self.reference * (1 - epsilon):
            self.ratio = max(self.adakd_ratio_min, self.ratio * (1 - delta))
            self.reference = self.average
        elif self.average > self.reference * (1 + epsilon):
            self.ratio = min(1.0, self.ratio * (1 + delta))
            self.reference = self.average

    def state_dict(self) -> dict:
        return {"ratio": self.ratio, "average": self.average, "reference": self.reference, "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.ratio, self.average = state["ratio"], state["average"]
        self.reference, self.step = state["reference"], state["step"]

    def _levels(self) -> Tensor:
        """Quantiles (5, 50, 95 %) of the selected positions' temperatures, then of all positions' difficulty."""
        if self._last is None:
            return torch.zeros(len(LEVELS), device=self._step_tokens.device)
        (selected_N, temperature_N), difficulty_N = self._last
        levels = torch.linspace(0.05, 0.95, 3, device=temperature_N.device, dtype=temperature_N.dtype)
        values_2N = torch.stack([temperature_N.where(selected_N, torch.nan), difficulty_N])
        return values_2N.nanquantile(levels, dim=1).T.flatten()

    @property
    def _selected_tokens(self) -> int:
        """Positions selected in the whole step; known without looking at a score."""
        return max(1, sum(map(self._count, self._step_tokens.tokens)))

    def _count(self, of_positions: int) -> int:
        return min(of_positions, max(1, int(self.ratio * of_positions)))

    def _score(self, student_logits_NV: Tensor, teacher_logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, ...]:
        tau = self.adakd_tau_base
        return (
            self.difficulty(student_logits_NV, teacher_logits_NV, labels_N),
            self.base.token_loss(student_logits_NV / tau, teacher_logits_NV / tau, labels_N),
            F.cross_entropy(student_logits_NV, labels_N, reduction="none"),
        )


def _gather(values_N: Tensor, positions_per_rank: tuple[int, ...]) -> tuple[int, Tensor]:
    """Where this rank's values begin among those of all ranks in rank order, and those."""
    if len(positions_per_rank) == 1:
        return 0, values_N
    padded = values_N.new_zeros(max(1, *positions_per_rank))
    padded[: len(values_N)] = values_N
    of_ranks = [torch.empty_like(padded) for _ in positions_per_rank]
    dist.all_gather(of_ranks, padded)
    start = sum(positions_per_rank[: dist.get_rank()])
    return start, torch.cat([values[:count] for values, count in zip(of_ranks, positions_per_rank)])
