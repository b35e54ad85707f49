"""Batches: the examples of a micro-batch in rows, packed or padded, and which examples every rank takes when.

In: tokenised examples. Out: `Batch` (tensors) from `collate`; `Step` (plain ints) from `EpochPlan`, the same on every
rank, so that token counts need no communication.

Shapes: R rows, T tokens of a row, N response positions.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

# How the examples of a batch lie in its rows; see `collate`.
Layout = Literal["packed", "packed into one row", "padded"]


@dataclass(frozen=True)
class Example:
    """Token ids; the response ends with EOS unless it was cut."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def predicted(self) -> int:
        """Response positions: its tokens that have a token before them; without a prompt, all but the first."""
        return len(self) - min(len(self), max(1, len(self.prompt_ids)))

    @property
    def key(self) -> bytes:
        """16 bytes that stand for the token ids, wherever the example came from."""
        ids = np.concatenate([[len(self.prompt_ids)], self.prompt_ids, self.response_ids])
        return hashlib.blake2b(ids.astype("<i4").tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Batch:
    """Rows of tokens. Exactly one of `position_ids_RT` (packed) and `attention_mask_RT` (padded) is set.

    response_positions: indices into the flattened [R, T] whose next token, `labels_N`, is a response token.
    cu_seqlens, longest: of packed examples, where each one begins in the flattened [R, T] and, last, R * T (int32);
    tokens of the longest.
    positions_per_rank: N on every rank in this micro-step.
    examples: in the order of their response positions.
    """

    input_ids_RT: Tensor
    response_positions: Tensor
    labels_N: Tensor
    position_ids_RT: Tensor | None = None
    attention_mask_RT: Tensor | None = None
    cu_seqlens: Tensor | None = None
    longest: int = 0
    positions_per_rank: tuple[int, ...] = (0,)
    tokens: int = 0
    examples: tuple[Example, ...] = ()

    @property
    def shares_rows(self) -> bool:
        """Whether a row holds more than one example, its dummy end among them."""
        return self.cu_seqlens is not None and len(self.cu_seqlens) - 1 > len(self.input_ids_RT)

    def to(self, device: torch.device) -> "Batch":
        """A copy on `device`, on its way: a GPU takes it from pinned memory while the host goes on."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        if device.type != "cpu":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def collate(
    examples: Sequence[Example],
    pad_id: int,
    max_length: int,
    layout: Layout,
    positions_per_rank: tuple[int, ...] = (0,),
) -> Batch:
    """One batch of all examples; of none, a batch of one pad token that keeps a rank in step with the others.

    packed: rows of at most `max_length` tokens, `position_ids` restart at each example, row ends are a dummy example.
    packed into one row: whatever its length; what variable-length attention kernels want.
    padded: one example per row, pads on the right, an attention mask.
    """
    lengths = [len(example) for example in examples]
    rows = place(lengths, max_length, layout)
    width = max([sum(lengths[i] for i in row) for row in rows], default=1)
    input_ids = np.full((max(1, len(rows)), width), pad_id, dtype=np.int64)
    position_ids = np.tile(np.arange(width), (len(input_ids), 1))
    attention_mask = np.zeros_like(input_ids)
    positions, labels, starts = [], [], [] if rows else [0]
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            starts.append(r * width + start)
            prompt, response, end = examples[i].prompt_ids, examples[i].response_ids, start + lengths[i]
            input_ids[r, start:end] = np.concatenate([prompt, response])
            position_ids[r, start:end] = np.arange(lengths[i])
            attention_mask[r, start:end] = 1
            first = end - examples[i].predicted
            positions.append(r * width + np.arange(first - 1, end - 1))  # position t predicts token t + 1
            labels.append(input_ids[r, first:end])
            start = end
        if start < width:
            starts.append(r * width + start)
            position_ids[r, start:] = np.arange(width - start)
    if not rows:
        attention_mask[:] = 1
    packed, cu_seqlens = layout != "padded", np.array([*starts, input_ids.size], dtype=np.int32)
    return Batch(
        input_ids_RT=torch.from_numpy(input_ids),
        response_positions=torch.from_numpy(np.concatenate(positions or [np.zeros(0, dtype=np.int64)])),
        labels_N=torch.from_numpy(np.concatenate(labels or [np.zeros(0, dtype=np.int64)])),
        position_ids_RT=torch.from_numpy(position_ids) if packed else None,
        attention_mask_RT=None if packed else torch.from_numpy(attention_mask),
        cu_seqlens=torch.from_numpy(cu_seqlens) if packed else None,
        longest=int(np.diff(cu_seqlens).max()) if packed else 0,
        positions_per_rank=positions_per_rank,
        tokens=sum(lengths),
        examples=tuple(examples[i] for row in rows for i in row),
    )


def place(lengths: Sequence[int], max_length: int, layout: Layout) -> list[list[int]]:
    """Indices of the examples of each row."""
    if layout == "packed":
        return pack(lengths, max_length)
    if layout == "packed into one row":
        return [list(range(len(lengths)))] if lengths else []
    return [[i] for i in range(len(lengths))]


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of the examples of each row; no row longer than `max_length` (or than its only example).

    Longest first into the shortest row, for every number of rows; the smallest padded area wins, and of equal areas
    the one with shorter rows, whose attention is cheaper.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest, total = max(lengths, default=0), sum(lengths)
    capacity = max(max_length, longest)
    best, best_cost = [], None
    for count in range(-(-total // capacity) if total else 1, len(order) + 1):
        if best_cost is not None and count * longest > best_cost[0]:
            break  # with more rows of at least this length the area only grows
        rows, fill = [[] for _ in range(count)], [0] * count
        for i in order:
            shortest = fill.index(min(fill))
            rows[shortest].append(i)
            fill[shortest] += lengths[i]
        width = max(fill)
        if width <= capacity and (best_cost is None or (count * width, width) < best_cost):
            best, best_cost = rows, (count * width, width)
    return best


def batches_by_length(lengths: Sequence[int], tokens: int, ranks: int = 1) -> list[list[int]]:
    """Indices, the longest first, in batches of `ranks` times as many as fit into `tokens` padded to their longest.

    The fewest batches; and of all ways to make so few, the one with the least padding.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    # For the first `end` of them: how many batches, the padded tokens, where the last batch starts.
    best = [(0, 0, 0)]
    for end in range(1, len(order) + 1):
        choices = []
        for start in range(end - 1, -1, -1):
            width = int(lengths[order[start]])
            if end - start > max(1, tokens // width) * ranks:
                break
            batches, padded, _ = best[start]
            choices.append((batches + 1, padded + (end - start) * width, start))
        best.append(min(choices))
    batches, end = [], len(order)
    while end:
        start = best[end][2]
        batches.insert(0, order[start:end])
        end = start
    return batches


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
