"""What a model supports, found out at load on a few random tokens: packed rows, and a head that can be split off.

Shapes: R rows, T tokens of a row, N response positions, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch import distributed as dist
from transformers import PreTrainedModel

from data_utils.batches import Batch, Example, Layout, collate
from models.cpu import BY_EXAMPLE, SDPA, can_attend_by_example
from models.heads import ModelLogits, SplitModel, find_head
from models.packing import response_logits, unwrap_peft
from models.sharding import whole

# Root mean square difference of logits, in units of their spread, that rounding explains. HEAD: both heads get the same
# hidden states, so little is rounded differently. PACKING: packed and single rows take different kernels in every layer
# (SmolLM2-135M, sdpa: 0.045 in bf16, 0.007 in fp16); positions that do not restart at each example cause 0.2 and more.
# What an example sees of its neighbours may cause less: `_leaks` finds that.
HEAD_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.005}
PACKING_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.12, torch.float16: 0.05}
# The same measure when only the contents of the neighbours change, not the shapes: nothing in half precision. In fp32
# a mixture of experts, whose products have as many rows as tokens were routed to an expert, differs by 1e-6.
LEAK_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.0, torch.float16: 0.0}


def split(model: PreTrainedModel, vocabulary_size: int | None = None) -> SplitModel:
    """The model split before its head, or with its own logits if the split does not reproduce them.

    vocabulary_size: how many ids to keep, from 0 on; default: all.
    """
    causal_lm = unwrap_peft(model)
    head = find_head(model)
    if head is not None and causal_lm.base_model is not causal_lm and head_is_exact(SplitModel(model, head)):
        head.vocabulary_size = vocabulary_size or head.vocabulary_size
        return SplitModel(model, head)
    return SplitModel(model, ModelLogits(causal_lm.config.get_text_config().vocab_size, vocabulary_size))


@torch.no_grad()
def head_is_exact(model: SplitModel) -> bool:
    """Whether the head gives the model's own logits."""
    with _evaluating(model.model):
        batch = collate(_examples(model.model), 0, max_length=1, layout="padded").to(model.model.device)
        own_NV = response_logits(model.model, batch)
        states_ND = model.states(batch)
        with whole(model.head.parameters()):
            split_NV = model.head.finish(model.head.project(states_ND))
    if own_NV.shape != split_NV.shape:
        return False
    return _worst(_distance(own_NV, split_NV), model.model.device) <= HEAD_TOLERANCE[model.model.dtype]


def batch_layout(models: Sequence[PreTrainedModel]) -> Layout:
    """The fastest layout in which every model keeps the examples of a row apart.

    If all models can attend by example (models/cpu.py), this switches them to it.
    """
    able = [model for model in models if can_attend_by_example(model)]
    if len(able) == len(models):
        for model in models:
            model.set_attn_implementation(BY_EXAMPLE)
        if all(packing_is_exact(model, "packed into one row") for model in models):
            return "packed into one row"
    for model in able:
        model.set_attn_implementation(SDPA)
    for layout in ("packed", "packed into one row"):
        if all(packing_is_exact(model, layout) for model in models):
            return layout
    return "padded"


@torch.no_grad()
def packing_is_exact(model: PreTrainedModel, layout: Layout = "packed") -> bool:
    """Whether examples packed into rows, separated by `position_ids` alone, get the logits that each gets alone.

    layout: "packed" or "packed into one row"; variable-length attention kernels may support only the second.
    """
    rows = 2 if layout == "packed" else 1
    examples = _examples(model, rows)
    with _evaluating(model):
        try:
            packed_NV = response_logits(model, _packed(examples, rows))
        except TypeError:  # a forward without `position_ids`
            return False
        alone_NV = torch.cat([response_logits(model, collate([e], 0, 1, "padded")) for e in examples])
        distance = _worst(_distance(packed_NV, alone_NV), model.device)
        return distance <= PACKING_TOLERANCE[model.dtype] and not _leaks(model, examples, rows)


def _leaks(model: PreTrainedModel, examples: list[Example], rows: int) -> bool:
    """Whether an example's logits depend on the ids of the examples packed with it.

    Equal shapes take equal kernels, so the answer is exact in every dtype. The exception is a mixture of experts, where
    the ids decide the shapes: it may change by twice as much as it does in padded rows, which share nothing.
    """
    influence = _influence(model, examples, lambda examples: _packed(examples, rows))
    if influence <= LEAK_TOLERANCE[model.dtype]:
        return False
    allowed = 2 * _influence(model, examples, lambda examples: collate(examples, 0, 1, "padded"))
    return math.isinf(influence) or influence > allowed


def _influence(model: PreTrainedModel, examples: list[Example], batch_of: Callable[[list[Example]], Batch]) -> float:
    """The largest change of an example's logits, in units of their spread, when all other examples get other ids."""
    counts = [len(example.response_ids) for example in examples]
    others = _examples(model, len(examples) // 2, seed=1)
    before = response_logits(model, batch_of(examples)).split(counts)
    changes = []
    for i, example in enumerate(examples):
        after = response_logits(model, batch_of([*others[:i], example, *others[i + 1 :]])).split(counts)
        changes.append(_distance(after[i], before[i]))
    return _worst(torch.tensor(changes).max().item(), model.device)


def _examples(model: PreTrainedModel, rows: int = 1, seed: int = 0) -> list[Example]:
    """Two examples of random ids per row, of the same lengths in every row."""
    vocabulary = unwrap_peft(model).config.get_text_config().vocab_size
    ids_R19 = torch.randint(vocabulary, (rows, 19), generator=torch.Generator().manual_seed(seed)).tolist()
    return [e for ids in ids_R19 for e in (Example(ids[:4], ids[4:11]), Example(ids[11:14], ids[14:]))]


def _packed(examples: list[Example], rows: int) -> Batch:
    """The examples in order, in `rows` rows of equal length; `collate` itself would prefer shorter rows."""
    row = collate(examples, 0, max_length=1, layout="packed into one row")
    shape = (rows, row.input_ids_RT.shape[1] // rows)
    return replace(
        row, input_ids_RT=row.input_ids_RT.reshape(shape), position_ids_RT=row.position_ids_RT.reshape(shape)
    )


def _worst(value: float, device: torch.device) -> float:
    """The largest value of all ranks, NaN as infinity. Kernels may differ per rank, but all ranks must decide alike."""
    value = math.inf if math.isnan(value) else value
    if not dist.is_initialized():
        return value
    worst = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return worst.item()


def _distance(first_NV: Tensor, second_NV: Tensor) -> float:
    """Root mean square difference, in units of the spread of the first."""
    difference_NV = first_NV - second_NV.to(first_NV.dtype)
    return (difference_NV.square().mean().sqrt() / first_NV.std().clamp_min(1e-6)).item()


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Turns dropout off inside the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
