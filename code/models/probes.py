"""What a model can do, found out at load on two short rows: be packed, be cut before its head."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch import distributed as dist
from transformers import PreTrainedModel

from data_utils.batches import Batch, Example, Layout, collate
from models.cpu import BY_EXAMPLE, SDPA, can_attend_by_example
from models.heads import ModelLogits, SplitModel, find_head, unwrap_peft
from models.packing import run
from models.sharding import whole

# Root mean square difference of logits, in units of their spread, that rounding explains. The same hidden states go
# through both heads, so that hardly anything is rounded differently there; packed and single rows take different
# kernels in every layer (SmolLM2-135M, sdpa: 0.045 in bf16, 0.007 in fp16). Positions that do not restart at each
# example show here by 0.2 and more; what an example sees of its neighbours may be less, see `_leaks`.
HEAD_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.005}
PACKING_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.12, torch.float16: 0.05}
# The same measure of what other contents at equal shapes may change: nothing, in half precision. In fp32 a mixture of
# experts, whose products have as many rows as tokens were routed to an expert, differs by 1e-6.
LEAK_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.0, torch.float16: 0.0}


def split(model: PreTrainedModel, vocabulary_size: int | None = None) -> SplitModel:
    """The model cut before its head, or with its own logits where the cut does not reproduce them.

    vocabulary_size: ids to keep, from 0 on; default: all.
    """
    head = find_head(model)
    if head is not None and unwrap_peft(model).base_model is not unwrap_peft(model):
        candidate = SplitModel(model, head)
        if head_is_exact(candidate):
            head.vocabulary_size = vocabulary_size or head.vocabulary_size
            return candidate
    logits = ModelLogits(unwrap_peft(model).config.get_text_config().vocab_size)
    logits.vocabulary_size = vocabulary_size or logits.vocabulary_size
    return SplitModel(model, logits)


@torch.no_grad()
def head_is_exact(model: SplitModel) -> bool:
    """Whether the head gives the model's own logits."""
    with _evaluating(model.model):
        batch = collate(_examples(model.model), 0, max_length=1, layout="padded").to(model.model.device)
        own_NV = _own_logits(model.model, batch)
        hidden_ND = model.hidden_states(batch)
        with whole(model.head.parameters()):
            split_NV = model.head.finish(model.head.project(hidden_ND))
    if own_NV.shape != split_NV.shape:
        return False
    return _worst(_distance(own_NV, split_NV), model.model.device) <= HEAD_TOLERANCE[model.model.dtype]


def batch_layout(models: Sequence[PreTrainedModel]) -> Layout:
    """The best layout in which every model tells the examples of a row apart.

    Models that can attend example by example do so from here on, if all of them can.
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
    """Whether examples in shared rows, told apart by `position_ids` alone, get the logits that they get alone.

    layout: one of the packed ones; variable-length attention kernels tell examples apart in one row only.
    """
    rows = 2 if layout == "packed" else 1
    examples = _examples(model, rows)
    with _evaluating(model):
        try:
            packed_NV = _own_logits(model, _packed(examples, rows))
        except TypeError:  # a forward without `position_ids`
            return False
        alone_NV = torch.cat([_own_logits(model, collate([e], 0, 1, "padded")) for e in examples])
        distance = _worst(_distance(packed_NV, alone_NV), model.device)
        return distance <= PACKING_TOLERANCE[model.dtype] and not _leaks(model, examples, rows)


def _leaks(model: PreTrainedModel, examples: list[Example], rows: int) -> bool:
    """Whether an example's logits depend on the ids of the examples packed with it.

    Equal shapes take equal kernels, so that the answer is exact in every dtype. Only where the ids decide the shapes,
    as in a mixture of experts, rounding differs; then as much is allowed as in padded rows, which share nothing.
    """
    influence = _influence(model, examples, lambda some: _packed(some, rows))
    if influence <= LEAK_TOLERANCE[model.dtype]:
        return False
    allowed = 2 * _influence(model, examples, lambda some: collate(some, 0, 1, "padded"))
    return math.isinf(influence) or influence > allowed


def _influence(model: PreTrainedModel, examples: list[Example], batch_of: Callable[[list[Example]], Batch]) -> float:
    """The largest change of an example's logits, in units of their spread, when all others get other ids."""
    counts = [len(example.response_ids) for example in examples]
    others = _examples(model, len(examples) // 2, seed=1)
    before = _own_logits(model, batch_of(examples)).split(counts)
    changes = []
    for i, example in enumerate(examples):
        after = _own_logits(model, batch_of([*others[:i], example, *others[i + 1 :]])).split(counts)
        changes.append(_distance(after[i], before[i]))
    return _worst(torch.tensor(changes).max().item(), model.device)


def _examples(model: PreTrainedModel, rows: int = 1, seed: int = 0) -> list[Example]:
    """Two for each row, of the same lengths in every row."""
    vocabulary = unwrap_peft(model).config.get_text_config().vocab_size
    ids_R19 = torch.randint(vocabulary, (rows, 19), generator=torch.Generator().manual_seed(seed)).tolist()
    return [e for ids in ids_R19 for e in (Example(ids[:4], ids[4:11]), Example(ids[11:14], ids[14:]))]


def _packed(examples: list[Example], rows: int) -> Batch:
    """The examples in `rows` rows of equal lengths, in their order, where `collate` would prefer short rows."""
    row = collate(examples, 0, max_length=1, layout="packed into one row")
    shape = (rows, row.input_ids_RT.shape[1] // rows)
    return replace(
        row, input_ids_RT=row.input_ids_RT.reshape(shape), position_ids_RT=row.position_ids_RT.reshape(shape)
    )


def _own_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """logits_NV of the model itself at the response positions."""
    batch = batch.to(model.device)
    logits_RTV = run(model, batch).logits
    return logits_RTV.flatten(0, 1)[batch.response_positions].float()


def _worst(value: float, device: torch.device) -> float:
    """The largest of all ranks, NaN as infinity: kernels vary, and the ranks must decide alike."""
    value = math.inf if math.isnan(value) else value
    if not dist.is_initialized():
        return value
    worst = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return worst.item()


def _distance(first_NV: Tensor, second_NV: Tensor) -> float:
    difference_NV = first_NV - second_NV.to(first_NV.dtype)
    return (difference_NV.square().mean().sqrt() / first_NV.std().clamp_min(1e-6)).item()


class _evaluating:
    """Dropout off inside the block."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __enter__(self):
        self.was_training = self.model.training
        self.model.eval()

    def __exit__(self, *_):
        self.model.train(self.was_training)
