"""What a model can do, found out at load on two short rows: be packed, be cut before its head."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from data_utils.batches import Batch, Example, Layout, collate
from models.attention import BY_EXAMPLE, SDPA, can_attend_by_example
from models.heads import ModelLogits, SplitModel, find_head, unwrap_peft

# Root mean square difference of logits, in units of their spread, that rounding explains. The same hidden states go
# through both heads, so that hardly anything is rounded differently there; packed and single rows take different
# kernels in every layer (SmolLM2-135M, sdpa: 0.045 in bf16, 0.007 in fp16). A model that ignores the borders of packed
# examples is wrong by 0.2 and more.
HEAD_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.005}
PACKING_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.12, torch.float16: 0.05}


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
        split_NV = model.head.finish(model.head.project(model.hidden_states(batch)))
    return own_NV.shape == split_NV.shape and _distance(own_NV, split_NV) <= HEAD_TOLERANCE[model.model.dtype]


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
    examples, rows = _examples(model), 2 if layout == "packed" else 1
    with _evaluating(model):
        packed = _packed(examples, rows).to(model.device)
        try:
            packed_NV = _own_logits(model, packed)
        except TypeError:  # a forward without `position_ids`
            return False
        alone_NV = torch.cat([_own_logits(model, collate([e], 0, 1, "padded").to(model.device)) for e in examples])
        alone_NV = alone_NV.repeat(rows, 1)
    return _distance(packed_NV, alone_NV) <= PACKING_TOLERANCE[model.dtype]


def _examples(model: PreTrainedModel) -> list[Example]:
    vocabulary = unwrap_peft(model).config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (19,), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example(ids[:4], ids[4:11]), Example(ids[11:14], ids[14:])]


def _packed(examples: list[Example], rows: int) -> Batch:
    """The examples in one row, `rows` times over, where `collate` would prefer short rows."""
    row = collate(examples, 0, max_length=1, layout="packed into one row")
    starts = torch.arange(rows) * row.input_ids_RT.shape[1]
    return replace(
        row,
        input_ids_RT=row.input_ids_RT.repeat(rows, 1),
        position_ids_RT=row.position_ids_RT.repeat(rows, 1),
        response_positions=(row.response_positions + starts[:, None]).flatten(),
        labels_N=row.labels_N.repeat(rows),
    )


def _own_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """logits_NV of the model itself at the response positions."""
    inputs = {"attention_mask": batch.attention_mask_RT, "use_cache": False}
    if batch.position_ids_RT is not None:
        inputs["position_ids"] = batch.position_ids_RT
    logits_RTV = model(input_ids=batch.input_ids_RT, **inputs).logits
    return logits_RTV.flatten(0, 1)[batch.response_positions].float()


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
