"""Which examples every rank takes in every step of an epoch.

In: lengths of the examples, and the flags. Out: `Step` (plain ints), the same on every rank, so that token counts need
no communication.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from arguments import TrainArguments
from data_utils.batches import Layout
from data_utils.dataset import InstructionDataset


@dataclass(frozen=True)
class Step:
    """One optimiser step: `examples[micro_step][rank]` are indices into the data set.

    tokens: response tokens of each micro-step and rank.
    """

    examples: tuple[tuple[tuple[int, ...], ...], ...]
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class EpochPlan:
    """Which examples make which step: a function of seed, epoch and batch shape alone, so a restart finds its place.

    Every epoch has `len(plan)` steps of `accumulation_steps` micro-steps. A micro-batch, a micro-step's share of one
    rank, has `batch_size` examples; the last step of an epoch takes what is left. Or it has as many as fit into
    `tokens_per_micro_batch`: then the examples are dealt like cards sorted by length, so that all micro-batches of an
    epoch have nearly equal tokens and numbers, and no step is short. Within a micro-step the ranks get equal numbers
    and nearly equal work.
    """

    lengths: np.ndarray  # tokens of each example
    responses: np.ndarray  # response tokens of each example
    batch_size: int
    accumulation_steps: int
    world_size: int
    seed: int
    tokens_per_micro_batch: int | None = None  # instead of batch_size; at least the longest example
    layout: Layout = "packed"  # decides what a token budget has to hold

    @property
    def micro_batches_per_step(self) -> int:
        return self.accumulation_steps * self.world_size

    def __len__(self) -> int:
        return self._steps_an_epoch

    @cached_property
    def _steps_an_epoch(self) -> int:
        count = len(self.lengths)
        if self.tokens_per_micro_batch is None:
            return -(-count // (self.batch_size * self.micro_batches_per_step))
        longest_first = -np.sort(-self.lengths)

        def fits(steps: int) -> bool:
            hands = steps * self.micro_batches_per_step
            # The worst hand: the longest card of every round.
            rounds = longest_first[::hands]
            held = len(rounds) * rounds[0] if self.layout == "padded" else rounds.sum()
            return bool(held <= self.tokens_per_micro_batch)

        return 1 + bisect_left(range(1, count), True, key=fits)

    def steps(self, epoch: int, start: int = 0) -> list[Step]:
        """The steps of an epoch, from step `start` on."""
        draw = np.random.default_rng([self.seed, epoch])
        micro_steps = self._shuffled(draw) if self.tokens_per_micro_batch is None else self._dealt(draw)
        per_step = self.accumulation_steps
        return [self._step(micro_steps[i : i + per_step]) for i in range(start * per_step, len(micro_steps), per_step)]

    def _shuffled(self, draw: np.random.Generator) -> list[np.ndarray]:
        """Micro-steps of equal numbers."""
        order = draw.permutation(len(self.lengths))
        size = self.batch_size * self.world_size
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _dealt(self, draw: np.random.Generator) -> list[np.ndarray]:
        """Micro-steps of nearly equal tokens: a round deals the longest that are left, one a hand, in random order."""
        count, hands = len(self.lengths), len(self) * self.micro_batches_per_step
        rounds = np.full((-(-count // hands), hands), -1)
        rounds.flat[:count] = np.argsort(-self.lengths, kind="stable")
        rounds = draw.permuted(rounds, axis=1)
        micro_steps = (rounds[:, i : i + self.world_size] for i in range(0, hands, self.world_size))
        return [micro_step[micro_step >= 0] for micro_step in micro_steps]

    def _step(self, micro_steps: list[np.ndarray]) -> Step:
        examples = tuple(self._deal(micro_step) for micro_step in micro_steps if len(micro_step))
        tokens = tuple(tuple(int(self.responses[list(rank)].sum()) for rank in ranks) for ranks in examples)
        return Step(examples, tokens)

    def _deal(self, indices: np.ndarray) -> tuple[tuple[int, ...], ...]:
        """To the ranks in rounds, the longest first; each round's hardest to the rank that has least work."""
        order = indices[np.argsort(-self.lengths[indices], kind="stable")]
        # A response token costs about as much in the loss over the vocabulary as in the models.
        work = self.lengths[order] + self.responses[order]
        ranks: list[list[int]] = [[] for _ in range(self.world_size)]
        done = np.zeros(self.world_size, dtype=np.int64)
        for first in range(0, len(order), self.world_size):
            of_round = slice(first, first + self.world_size)
            hardest_first = first + np.argsort(-work[of_round], kind="stable")
            for rank, place in zip(np.argsort(done, kind="stable"), hardest_first):
                ranks[rank].append(int(order[place]))
                done[rank] += work[place]
        return tuple(tuple(rank) for rank in ranks)


def epoch_plan(train: InstructionDataset, args: TrainArguments, world_size: int, layout: Layout) -> EpochPlan:
    """Which rows make which step, as the flags say."""
    return EpochPlan(
        lengths=train.lengths,
        responses=train.responses,
        batch_size=args.batch_size,
        accumulation_steps=args.gradient_accumulation_steps,
        world_size=world_size,
        seed=args.seed,
        tokens_per_micro_batch=args.tokens_per_micro_batch,
        layout=layout,
    )


def total_steps(plan: EpochPlan, args: TrainArguments) -> int:
    """Optimiser steps of the run."""
    steps = len(plan) * args.num_epochs
    return steps if args.total_iters is None else min(steps, args.total_iters)


def warmup_steps(args: TrainArguments, total_steps: int) -> int:
    """Steps of the linear warm-up."""
    return args.warmup_iters or int(args.warmup_ratio * total_steps)
