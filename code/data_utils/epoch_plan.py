"""Which examples each rank takes in each step of an epoch.

In: lengths of the examples, and the flags. Out: `Step`s of plain ints, the same on every rank, so that every rank knows
the token counts of all without communication.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from arguments import TrainArguments
from data_utils.batches import ExampleTable, Layout


@dataclass(frozen=True)
class Step:
    """One optimiser step: `examples[micro_step][rank]` are indices into the data set (or the rows of a `LoadedStep`).

    tokens: response tokens per micro-step and rank.
    """

    examples: tuple[tuple[tuple[int, ...], ...], ...]
    tokens: tuple[tuple[int, ...], ...]

    @property
    def micro_steps(self) -> tuple[tuple[int, ...], ...]:
        """The indices of each micro-step in ascending order, which does not depend on the number of ranks."""
        return tuple(tuple(sorted(i for rank in ranks for i in rank)) for ranks in self.examples)


@dataclass(frozen=True)
class EpochPlan:
    """The steps of every epoch, decided by seed, epoch and batch shape alone, so that a resumed run finds its place.

    An epoch has `steps_per_epoch` steps of `accumulation_steps` micro-steps. A micro-batch is one rank's part of a
    micro-step. With `batch_size` it has that many examples, and the last step of an epoch takes what is left.

    With `tokens_per_micro_batch` it has as many as fit. The examples, sorted by length, are then dealt like cards, one
    to each micro-batch of the epoch in every round. So each micro-batch has one example of each range of lengths: all
    have nearly equal numbers of tokens and of examples, and no step is short.

    Within a micro-step the ranks get equal numbers of examples and nearly equal work.
    """

    lengths: np.ndarray  # tokens of each example
    responses: np.ndarray  # response tokens of each example
    batch_size: int
    accumulation_steps: int
    world_size: int
    seed: int
    tokens_per_micro_batch: int | None = None  # instead of batch_size; at least the longest example
    layout: Layout = "packed"  # the token budget counts the padding of padded batches

    @property
    def micro_batches_per_step(self) -> int:
        return self.accumulation_steps * self.world_size

    def __len__(self) -> int:
        return self.steps_per_epoch

    @cached_property
    def steps_per_epoch(self) -> int:
        """With a token budget, the smallest number at which every micro-batch fits, however the rounds are shuffled."""
        count = len(self.lengths)
        if self.tokens_per_micro_batch is None:
            return -(-count // (self.batch_size * self.micro_batches_per_step))
        longest_first = -np.sort(-self.lengths)
        fits = partial(self._fits, longest_first)
        return 1 + bisect_left(range(1, count), True, key=lambda steps: fits(steps * self.micro_batches_per_step))

    def steps(self, epoch: int, start: int = 0) -> list[Step]:
        """The steps of an epoch, without the first `start`."""
        draw = np.random.default_rng([self.seed, epoch])
        micro_steps = self._shuffled(draw) if self.tokens_per_micro_batch is None else self._dealt(draw)
        per_step = self.accumulation_steps
        starts = range(start * per_step, len(micro_steps), per_step)
        return [self._step(micro_steps[i : i + per_step], self.lengths, self.responses) for i in starts]

    def deal_step(self, planned: Step, lengths: np.ndarray, responses: np.ndarray) -> Step:
        """A step of other rows in place of the planned ones: rows 0, 1, ... in the order of `planned.micro_steps`.

        They may be fewer. With a token budget they are dealt anew, to as many more micro-steps as they need: no hand
        is larger than that of who gets the longest row of every round.
        """
        if self.tokens_per_micro_batch is None:
            ends = np.cumsum([len(micro_step) for micro_step in planned.micro_steps])
            return self._step(np.split(np.arange(len(lengths)), ends[:-1]), lengths, responses)
        longest_first = np.argsort(-lengths, kind="stable")
        count = len(planned.examples)
        while not self._fits(lengths[longest_first], count * self.world_size):
            count += 1
        micro_batches = count * self.world_size
        rounds = [longest_first[i : i + micro_batches] for i in range(0, len(lengths), micro_batches)]
        hands = (slice(i, i + self.world_size) for i in range(0, micro_batches, self.world_size))
        return self._step([np.concatenate([cards[hand] for cards in rounds]) for hand in hands], lengths, responses)

    def _fits(self, longest_first: np.ndarray, micro_batches: int) -> bool:
        """Whether the fullest hand of a deal is within the token budget. longest_first: lengths."""
        fullest = longest_first[::micro_batches]  # the longest example of each round
        tokens = len(fullest) * fullest[0] if self.layout == "padded" else fullest.sum()
        return bool(tokens <= self.tokens_per_micro_batch)

    def _shuffled(self, draw: np.random.Generator) -> list[np.ndarray]:
        """Micro-steps of equal numbers of examples."""
        order = draw.permutation(len(self.lengths))
        size = self.batch_size * self.world_size
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _dealt(self, draw: np.random.Generator) -> list[np.ndarray]:
        """Micro-steps of nearly equal tokens. Each round deals the longest examples left, in random order."""
        count, micro_batches = len(self.lengths), self.steps_per_epoch * self.micro_batches_per_step
        rounds = np.full((-(-count // micro_batches), micro_batches), -1)
        rounds.flat[:count] = np.argsort(-self.lengths, kind="stable")
        rounds = draw.permuted(rounds, axis=1)
        micro_steps = (rounds[:, i : i + self.world_size] for i in range(0, micro_batches, self.world_size))
        return [micro_step[micro_step >= 0] for micro_step in micro_steps]

    def _step(self, micro_steps: Sequence[np.ndarray], lengths: np.ndarray, responses: np.ndarray) -> Step:
        examples = tuple(
            self._balanced(micro_step, lengths, responses) for micro_step in micro_steps if len(micro_step)
        )
        tokens = tuple(tuple(int(responses[list(rank)].sum()) for rank in ranks) for ranks in examples)
        return Step(examples, tokens)

    def _balanced(self, indices: np.ndarray, lengths: np.ndarray, responses: np.ndarray) -> tuple[tuple[int, ...], ...]:
        """A micro-step's examples per rank, in rounds, longest first; a round's hardest goes to who has least work."""
        order = indices[np.argsort(-lengths[indices], kind="stable")]
        # The loss over the vocabulary costs about as much per response token as the models do.
        work = lengths[order] + responses[order]
        ranks: list[list[int]] = [[] for _ in range(self.world_size)]
        done = np.zeros(self.world_size, dtype=np.int64)
        for first in range(0, len(order), self.world_size):
            in_round = slice(first, first + self.world_size)
            hardest_first = first + np.argsort(-work[in_round], kind="stable")
            for rank, i in zip(np.argsort(done, kind="stable"), hardest_first):
                ranks[rank].append(int(order[i]))
                done[rank] += work[i]
        return tuple(tuple(rank) for rank in ranks)


def epoch_plan(train: ExampleTable, args: TrainArguments, world_size: int, layout: Layout) -> EpochPlan:
    """The plan that the flags ask for."""
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
