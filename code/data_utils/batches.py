"""Batches: the examples of a micro-batch in rows, packed or padded.

In: tokenised examples. Out: `Batch` (tensors) from `collate`.

Shapes: R rows, T tokens per row, N response positions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

# How the examples of a batch lie in its rows; `models.probes.batch_layout` chooses it for the models of a run.
#   packed: rows of at most --max-length tokens. Positions restart at each example, and Transformers makes the
#     block-diagonal attention mask of them, whose cost grows with the square of the row: hence the bound.
#   packed into one row: the same in one row of any length, without padding. For attention that visits one example after
#     the other and needs no mask: models/cpu.py on a CPU, variable-length kernels (flash attention) on a GPU.
#   padded: one example per row, pads on the right, an attention mask. For models that cannot be packed.
Layout = Literal["packed", "packed into one row", "padded"]


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and its response, which ends with EOS unless it was cut.

    spans: of a chat, whose response is what follows the first question: begin and end of each answer in `response_ids`,
    one after another. Only these are learnt; empty: the whole response is.
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    spans: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def targets(self) -> np.ndarray:
        """Places, in prompt and response, of the tokens that are learnt; the first of all follows no other token."""
        first = len(self.prompt_ids)
        ends = first + np.asarray(self.spans if len(self.spans) else (0, len(self.response_ids)))
        places = [np.arange(max(1, begin), end) for begin, end in ends.reshape(-1, 2)]
        return places[0] if len(places) == 1 else np.concatenate(places)

    @property
    def predicted(self) -> int:
        """Number of response positions: of tokens that are learnt."""
        return len(self.targets)

    @property
    def key(self) -> bytes:
        """A hash of the token ids, 16 bytes; the same for equal examples of different data sets."""
        spans = [[-1], self.spans] if len(self.spans) else []
        ids = np.concatenate([[len(self.prompt_ids)], self.prompt_ids, self.response_ids, *spans])
        return hashlib.blake2b(ids.astype("<i4").tobytes(), digest_size=16).digest()


class ExampleTable(Protocol):
    """Tokenised examples by index: what plans, batches, the teacher cache and the loop need of a data set.

    lengths, responses: tokens per example, and how many of them are learnt.
    """

    lengths: np.ndarray
    responses: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def keys(self) -> list[bytes]:
        """`Example.key` of every example."""


def longest_prompt(data: ExampleTable, max_prompt_length: int) -> int:
    """An upper bound of the prompts' tokens: of a chat, what is not learnt is more than the prompt."""
    return min(int((data.lengths - data.responses).max()), max_prompt_length)


@dataclass(frozen=True)
class Batch:
    """Rows of tokens. Exactly one of `position_ids_RT` (packed) and `attention_mask_RT` (padded) is set.

    response_positions: N indices into the flattened [R, T]; the token after each, in `labels_N`, is a response token.
    cu_seqlens (packed only): start of each example in the flattened [R, T], then R * T; int32. The padding at the end
    of a row counts as an example.
    longest (packed only): tokens of the longest example.
    tokens: tokens without padding.
    positions_per_rank: N on every rank in this micro-step.
    examples: in the order of their rows, and so of their response positions.
    supervised: the responses are data, not the student's own samples, so that CE trains on them.
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
    supervised: bool = True

    @property
    def shares_rows(self) -> bool:
        """Whether a row holds more than one example, counting the padding at its end as one."""
        return self.cu_seqlens is not None and len(self.cu_seqlens) - 1 > len(self.input_ids_RT)

    def to(self, device: torch.device) -> "Batch":
        """A copy on `device`. A GPU copies it from pinned memory, and the host does not wait for that."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        if device.type != "cpu":
            tensors = {name: tensor.pin_memory() if tensor.is_cpu else tensor for name, tensor in tensors.items()}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def collate(
    examples: Sequence[Example],
    pad_id: int,
    max_length: int,
    layout: Layout,
    positions_per_rank: tuple[int, ...] = (0,),
) -> Batch:
    """One batch of all examples. Without examples, one pad token, so that the rank stays in step with the others.

    max_length: bounds the rows of the packed layout. In a packed row, the padding at the end is an example of its own.
    """
    lengths = [len(example) for example in examples]
    rows = assign_rows(lengths, max_length, layout) or [[]]
    width = max(1, *(sum(lengths[i] for i in row) for row in rows))
    input_ids_RT = np.full((len(rows), width), pad_id, dtype=np.int64)
    position_ids_RT = np.zeros_like(input_ids_RT)
    attention_mask_RT = np.full_like(input_ids_RT, 0 if examples else 1)
    positions, labels, starts = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], []
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            starts.append(r * width + start)
            prompt, response, end = examples[i].prompt_ids, examples[i].response_ids, start + lengths[i]
            input_ids_RT[r, start:end] = np.concatenate([prompt, response])
            position_ids_RT[r, start:end] = np.arange(lengths[i])
            attention_mask_RT[r, start:end] = 1
            targets = start + examples[i].targets
            positions.append(r * width + targets - 1)  # position t predicts token t + 1
            labels.append(input_ids_RT[r, targets])
            start = end
        if start < width:
            starts.append(r * width + start)
            position_ids_RT[r, start:] = np.arange(width - start)
    packed = layout != "padded"
    cu_seqlens = np.array([*starts, input_ids_RT.size], dtype=np.int32)
    return Batch(
        input_ids_RT=torch.from_numpy(input_ids_RT),
        response_positions=torch.from_numpy(np.concatenate(positions)),
        labels_N=torch.from_numpy(np.concatenate(labels)),
        position_ids_RT=torch.from_numpy(position_ids_RT) if packed else None,
        attention_mask_RT=None if packed else torch.from_numpy(attention_mask_RT),
        cu_seqlens=torch.from_numpy(cu_seqlens) if packed else None,
        longest=int(np.diff(cu_seqlens).max()) if packed else 0,
        positions_per_rank=positions_per_rank,
        tokens=sum(lengths),
        examples=tuple(examples[i] for row in rows for i in row),
    )


def assign_rows(lengths: Sequence[int], max_length: int, layout: Layout) -> list[list[int]]:
    """Indices of the examples in each row."""
    if layout == "packed":
        return pack(lengths, max_length)
    if layout == "packed into one row":
        return [list(range(len(lengths)))] if lengths else []
    return [[i] for i in range(len(lengths))]


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of the examples in each row. A row has at most `max_length` tokens, or as many as the longest example.

    Tries every number of rows: the examples, longest first, each go to the row that is shortest so far. The smallest
    area (rows x longest row) wins; of equal areas the one with shorter rows, whose attention is cheaper.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest, total = max(lengths, default=0), sum(lengths)
    capacity = max(max_length, longest)
    best, best_cost = [], None
    for count in range(-(-total // capacity) if total else 1, len(order) + 1):
        if best_cost is not None and count * longest > best_cost[0]:
            break  # the area is at least count * longest, so more rows cannot win
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
    """Indices, the longest first, in the fewest batches.

    A batch takes as many as fit into `tokens` when they are padded to its longest (at least one), times `ranks`.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = []
    while order:
        size = max(1, tokens // int(lengths[order[0]])) * ranks
        batches.append(order[:size])
        order = order[size:]
    return batches
