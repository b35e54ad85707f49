"""What an objective is, and the registry that finds one by its name.

An objective is a divergence of teacher and student at one response position. Its file states it as an equation over
log-probabilities; `fused.py` walks over the positions and takes the gradient.

Shapes: N response positions in a chunk, V shared vocabulary.
"""

from collections.abc import Callable
from dataclasses import Field, dataclass, fields

import torch
from torch import Tensor

from arguments import KDArguments, unknown_objective
from criterions.fused import LossSums, ResponsePositions

# exp(ABSENT) is 0 in fp32 and ABSENT - ABSENT is 0: an entry absent on both sides contributes nothing anywhere.
ABSENT = -1e4
# Fields of KDArguments that choose the objective, or how it is computed.
NO_HYPER_PARAMETERS = ("criterion", "kd_objective", "loss_chunk_mb", "compile_loss")

_REGISTRY: dict[str, type["Criterion"]] = {}
_ARGUMENTS = {field.name for field in fields(KDArguments)}


@dataclass(frozen=True)
class StepTokens:
    """The response tokens of an optimiser step, known to every rank without communication.

    tokens: of each micro-step, over all ranks.
    device: where the step runs.
    """

    tokens: tuple[int, ...]
    device: torch.device | None = None

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens)


class Criterion:
    """Base of all objectives. Stateless unless a subclass says otherwise.

    A subclass defines `token_loss`; what varies with training (AdaKD) also overrides `loss` and the step hooks. An
    `option` in the class body is a hyper-parameter: a flag, and an attribute of the instance. Its values are literals,
    since `arguments.py` reads it from the file's text. `__init__` checks what must hold between several.
    """

    needs_teacher: bool = True
    selects: bool = False  # has `difficulty` and `plan`, as AdaKD

    def __init__(self, args: KDArguments):
        self.args = args
        for name in self.hyper_parameters:
            setattr(self, name, getattr(args, name))

    @property
    def hyper_parameters(self) -> tuple[str, ...]:
        """The options that the class declares, which are fields of KDArguments.

        Changed ones are part of the run folder's name; a flag that no part of the objective declares is reported as
        having no effect.
        """
        return _options(type(self))

    def token_loss(
        self, student_logits_NV: Tensor, teacher_logits_NV: Tensor, labels_N: Tensor | None = None
    ) -> Tensor:
        """loss_N: the divergence at each position; differentiable in the student; temperature already applied.

        fp32 in, fp32 out (any float dtype in tests). A logit of -inf on either side contributes 0.
        """
        raise NotImplementedError

    def loss(self, positions: ResponsePositions) -> LossSums:
        """Sum over the positions of (1 - kd_rate) * CE + kd_rate * KD, differentiable, and both sums for the log.

        Without the first part where the labels are the student's own samples.
        """
        temperature = self.args.kd_temperature
        kd_rate = self.args.kd_rate if self.needs_teacher else 0.0
        kd_weight = kd_rate * (temperature**2 if self.args.kd_temperature_scaling == "squared" else 1.0)
        ce_weight = 1 - kd_rate if positions.supervised else 0.0
        return positions.walk(self.token_loss, ce_weight, kd_weight, temperature)

    def used_arguments(self) -> tuple[str, ...]:
        """Fields of KDArguments that change the loss, in the order in which a run folder's name has them."""
        weighted_sum = ("kd_rate", "kd_temperature", "kd_temperature_scaling") if self.needs_teacher else ()
        return (*weighted_sum, *self.hyper_parameters)

    def folder_names(self, name: str) -> tuple[str, str]:
        """The objective's name in the run's parent folder and in its own, where `--kd-objective` is `name`."""
        return name, name

    def prepare(self, total_steps: int) -> None:
        """Called once, before the first step."""

    def start_step(self, step_tokens: StepTokens) -> None:
        """Called before the micro-batches of an optimiser step."""

    def end_step(self) -> dict[str, float]:
        """Called after them, on every rank. Returns the criterion's share of the log."""
        return {}

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def _options(criterion: type[Criterion]) -> tuple[str, ...]:
    """Names of the options in the class body, those of the base class first."""
    bodies = [vars(base) for base in reversed(criterion.__mro__)]
    return tuple(name for body in bodies for name, value in body.items() if isinstance(value, Field))


def register(*names: str) -> Callable[[type[Criterion]], type[Criterion]]:
    """Class decorator: makes an objective known as `names`; the first is its own, the others are aliases."""

    def add(criterion: type[Criterion]) -> type[Criterion]:
        for name in _options(criterion):
            if name not in _ARGUMENTS:
                raise ValueError(f"{criterion.__name__}.{name}: write it as `{name}: float = option(...)`")
        for name in names:
            if name in _REGISTRY:
                raise ValueError(f"objective {name!r} is already registered by {_REGISTRY[name].__name__}")
            _REGISTRY[name] = criterion
        return criterion

    return add


def unused_arguments(criterion: Criterion, args: KDArguments) -> dict[str, object]:
    """The flags that were set but not read by `criterion`, or overruled by its name (--adakd-base by adakd+todi)."""
    defaults, used = KDArguments(), criterion.used_arguments()
    return {
        field.name: value
        for field in fields(args)
        if (value := getattr(args, field.name)) != getattr(defaults, field.name)
        and field.name not in NO_HYPER_PARAMETERS
        and (field.name not in used or getattr(criterion.args, field.name) != value)
    }


def objective_names() -> list[str]:
    """Every name and alias, in the order of registration."""
    return list(_REGISTRY)


def objectives() -> list[tuple[str, ...]]:
    """The names of each objective, its own first, in the order of registration."""
    classes = dict.fromkeys(_REGISTRY.values())
    return [tuple(name for name, found in _REGISTRY.items() if found is criterion) for criterion in classes]


def build_criterion(name: str, args: KDArguments, flag: str = "--kd-objective") -> Criterion:
    """The objective `name` (exact name or alias; `adakd+todi` is adakd around todi).

    Raises ValueError naming the flag and the known names for any other name.
    """
    wrapper, plus, base = name.partition("+")
    if wrapper not in _REGISTRY:
        raise ValueError(f"{flag} {name}: {unknown_objective(wrapper, objectives())}")
    criterion = _REGISTRY[wrapper]
    if not plus:
        return criterion(args)
    if not hasattr(criterion, "around"):
        raise ValueError(f"{flag} {name}: {wrapper} does not wrap another objective; drop '+{base}'")
    return criterion.around(base, args)


def log_probabilities(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """log q, log p. Where p or q is 0, both become ABSENT, so that the entry adds 0 to any divergence."""
    log_q_NV, log_p_NV = student_logits_NV.log_softmax(-1), teacher_logits_NV.log_softmax(-1)
    if not (_may_be_absent(student_logits_NV) or _may_be_absent(teacher_logits_NV)):
        return log_q_NV, log_p_NV
    absent_NV = torch.isneginf(student_logits_NV) | torch.isneginf(teacher_logits_NV)
    return log_q_NV.masked_fill(absent_NV, ABSENT), log_p_NV.masked_fill(absent_NV, ABSENT)


def _may_be_absent(logits_NV: Tensor) -> bool:
    """Whether an entry is -inf. That is rare, and on a CPU masking costs as much as the divergence itself.

    An accelerator is not asked, since the host would have to wait for it; compiled code masks at no cost.
    """
    ask = logits_NV.is_cpu and not torch.compiler.is_compiling()
    return not ask or (logits_NV.numel() > 0 and bool(logits_NV.detach().amin().isneginf()))


def expectation(log_weights_NV: Tensor, values_NV: Tensor) -> Tensor:
    """sum_v exp(log_weights) * values, at each position."""
    return (log_weights_NV.exp() * values_NV).sum(-1)


def log_mixture(log_a_NV: Tensor, log_b_NV: Tensor, weight_of_a: float) -> Tensor:
    """log(weight * a + (1 - weight) * b) in log space, from the larger of the two; exactly log a where a = b."""
    if weight_of_a in (0, 1):
        return log_a_NV if weight_of_a else log_b_NV
    a_is_larger_NV = log_a_NV > log_b_NV
    larger_NV = torch.where(a_is_larger_NV, log_a_NV, log_b_NV)
    smaller_NV = torch.where(a_is_larger_NV, log_b_NV, log_a_NV)
    weight_of_smaller = weight_of_a
    if weight_of_a != 0.5:
        weight_of_smaller = weight_of_a + (1 - 2 * weight_of_a) * a_is_larger_NV.to(log_a_NV.dtype)
    return larger_NV + (weight_of_smaller * (smaller_NV - larger_NV).expm1()).log1p()
