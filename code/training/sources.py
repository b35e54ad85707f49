"""Which rows each step trains on: data, answers that the student samples in that step, or a replay of earlier ones.

In: the planned step, and the dev loss after each evaluation. Out: a `LoadedStep`. Kinds follow from one coin per
optimiser step, seeded by (seed, step), and from state that is equal on all ranks, so no rank waits for another's coin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from arguments import OnPolicyArguments
from data_utils.batches import Example, ExampleTable
from data_utils.epoch_plan import EpochPlan, Step
from data_utils.replay import ReplayBuffer
from generation.sampler import Sampled, StudentSampler

Kind = Literal["data", "student", "replay"]  # of the rows of a micro-step
StepKind = Literal[Kind, "pair"]  # pair: micro-steps of data and of student rows
KINDS: tuple[Kind, ...] = get_args(Kind)
COINS, REPLAYS = 1, 2  # keep these draws apart from others of the same seed and step (generation/sampler.py)
THRESHOLD_STEP = 0.1  # what a rise of the dev loss adds to the threshold


@dataclass(frozen=True)
class LoadedStep:
    """A step and its rows: the indices in `step` point into `rows`.

    kinds: of each micro-step. sampled: what was sampled in this step.
    """

    step: Step
    rows: ExampleTable | Sequence[Example]
    kinds: tuple[Kind, ...]
    sampled: Sampled | None = None

    @property
    def kind(self) -> StepKind:
        return self.kinds[0] if len(set(self.kinds)) == 1 else "pair"


class RowSource(Protocol):
    """Decides the kinds of steps and makes their rows. An owner of state that is equal on all ranks.

    latest: a row of the latest sampled step, for the log; None before that, and after a run was resumed.
    """

    needs_dev_loss: bool
    latest: Example | None

    def kinds(self, planned: Sequence[Step], step: int) -> list[StepKind]:
        """Of the next steps; none is drawn yet. step: number of the first, from 1."""

    def draw(self, planned: Step, step: int, kind: StepKind) -> LoadedStep:
        """The rows of the step with this number. Collective."""

    def observe(self, dev_loss: float) -> None:
        """After an evaluation; with `needs_dev_loss` also before the first step."""

    def log(self, step: int) -> dict[str, float]:
        """The source's share of the record after this step."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class DataRows:
    """Every step is data."""

    needs_dev_loss = False
    latest: Example | None = None

    def __init__(self, train: ExampleTable):
        self._train = train

    def kinds(self, planned: Sequence[Step], step: int) -> list[StepKind]:
        return ["data"] * len(planned)

    def draw(self, planned: Step, step: int, kind: StepKind) -> LoadedStep:
        return LoadedStep(planned, self._train, ("data",) * len(planned.examples))

    def observe(self, dev_loss: float) -> None:
        pass

    def log(self, step: int) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


class MixedRows(DataRows):
    """With probability --mixed-alpha a step's responses are the student's. GKD, arXiv 2306.13649, Algorithm 1."""

    def __init__(self, train: ExampleTable, plan: EpochPlan, sampler: StudentSampler, args: OnPolicyArguments):
        super().__init__(train)
        self._plan, self._sampler, self._args = plan, sampler, args

    def kinds(self, planned: Sequence[Step], step: int) -> list[StepKind]:
        alpha = self._args.mixed_alpha
        return [
            "student" if coin(self._plan.seed, number) < alpha else "data" for number, _ in enumerate(planned, step)
        ]

    def draw(self, planned: Step, step: int, kind: StepKind) -> LoadedStep:
        return super().draw(planned, step, kind) if kind == "data" else self._sample(planned, step)

    def _sample(self, planned: Step, step: int) -> LoadedStep:
        """The student's answers to the planned prompts."""
        indices = [i for micro_step in planned.micro_steps for i in micro_step]
        # In an order without ranks and micro-steps, by which the sampler's batches are made.
        sampled = self._sampler.sample({i: self._train[i].prompt_ids for i in sorted(indices)}, step)
        rows = dict(zip(sorted(indices), sampled.rows))
        self.latest = sampled.rows[0]
        return self._dealt(planned, [rows[i] for i in indices], "student", sampled)

    def _dealt(self, planned: Step, rows: list[Example], kind: Kind, sampled: Sampled | None = None) -> LoadedStep:
        lengths, responses = np.array([len(row) for row in rows]), np.array([row.predicted for row in rows])
        step = self._plan.deal_step(planned, lengths, responses)
        return LoadedStep(step, rows, (kind,) * len(step.examples), sampled)


class PairRows(MixedRows):
    """Every step trains its data and the student's answers to their prompts. DistiLLM-2, arXiv 2503.07067.

    Micro-steps have rows of one kind, since each kind has an objective of its own (`criterions.pair`).
    """

    def kinds(self, planned: Sequence[Step], step: int) -> list[StepKind]:
        return ["pair"] * len(planned)

    def draw(self, planned: Step, step: int, kind: StepKind) -> LoadedStep:
        student = self._sample(planned, step)
        indices = [i for micro_step in planned.micro_steps for i in micro_step]
        rows = [*student.rows, *(self._train[i] for i in indices)]
        place = {i: len(student.rows) + n for n, i in enumerate(indices)}
        data = tuple(tuple(tuple(place[i] for i in rank) for rank in ranks) for ranks in planned.examples)
        # Data first: --diagnose-every looks at the first micro-step, with the objective of data.
        both = Step(data + student.step.examples, planned.tokens + student.step.tokens)
        return LoadedStep(both, rows, ("data",) * len(data) + student.kinds, student.sampled)


class AdaptiveRows(MixedRows):
    """The share of sampled steps follows the dev loss, and fresh samples give way to replayed ones.

    DistiLLM, arXiv 2402.03898, as its release does it; docs/onpolicy.md says where this departs from it.
    threshold: probability that a step is not data; rises when the dev loss has risen by --loss-eps over `reference`.
    """

    needs_dev_loss = True

    def __init__(
        self,
        train: ExampleTable,
        plan: EpochPlan,
        sampler: StudentSampler,
        args: OnPolicyArguments,
        total_steps: int,
    ):
        super().__init__(train, plan, sampler, args)
        self._total_steps = total_steps
        self.threshold = args.init_threshold
        self.reference: float | None = None
        self.buffer = ReplayBuffer(args.capacity)

    def kinds(self, planned: Sequence[Step], step: int) -> list[StepKind]:
        found, buffered = [], len(self.buffer)
        for number, plan in enumerate(planned, step):
            found.append(self._kind(number, buffered))
            if found[-1] == "student":
                buffered += sum(map(len, plan.micro_steps))
        return found

    def _kind(self, step: int, buffered: int) -> Kind:
        drawn, done = coin(self._plan.seed, step), (step - 1) / self._total_steps
        fresh = {"decreasing": 1 - done, "constant": 0.5, "increasing": done}[self._args.replay_ratio]
        if drawn < self.threshold * fresh or (drawn < self.threshold and buffered < self._args.capacity):
            return "student"
        return "replay" if drawn < self.threshold else "data"

    def draw(self, planned: Step, step: int, kind: StepKind) -> LoadedStep:
        if kind == "replay":
            draw = np.random.default_rng([self._plan.seed, REPLAYS, step])
            rows = self.buffer.sample(sum(map(len, planned.micro_steps)), draw)
            return self._dealt(planned, rows, kind)
        loaded = super().draw(planned, step, kind)
        if kind == "student":
            self.buffer.add(loaded.rows, step)
        return loaded

    def observe(self, dev_loss: float) -> None:
        if not math.isfinite(dev_loss):
            return
        if self.reference is None:
            self.reference = dev_loss
        elif dev_loss >= self.reference + self._args.loss_eps:
            self.threshold = min(1.0, self.threshold + THRESHOLD_STEP)
            self.reference = dev_loss

    def log(self, step: int) -> dict[str, float]:
        age = self.buffer.mean_age(step)
        record = {"gen_threshold": self.threshold, "buffer_rows": len(self.buffer)}
        return record if age is None else record | {"buffer_age": age}

    def state_dict(self) -> dict:
        return {"threshold": self.threshold, "reference": self.reference}

    def load_state_dict(self, state: dict) -> None:
        self.threshold, self.reference = state["threshold"], state["reference"]


def coin(seed: int, step: int) -> float:
    """Uniform in [0, 1); the same on every rank."""
    return np.random.default_rng([seed, COINS, step]).random()
