"""Calls a model on a batch, and tells Transformers where packed examples begin.

In: a Transformers (or PEFT) model and a `Batch`. Out: the model's output, or its logits where the loss is.
Shapes: N response positions, V vocabulary.

Without this, Transformers would look for packed examples in `position_ids`: once per mask and, with flash attention,
once per layer. Each time the host would wait for the device, although the batch has the answer on the host.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, masking_utils
from transformers.utils.generic import is_flash_attention_requested

from data_utils.batches import Batch

# Whether a row of the current batch holds several examples; None outside of `forward`.
_shares_rows: ContextVar[bool | None] = ContextVar("shares_rows", default=None)


def forward(model: nn.Module, batch: Batch, **arguments: object) -> object:
    """`model(**arguments)` on the tokens of the batch, without a key-value cache.

    Raises TypeError if the batch is packed and the model takes no `position_ids`.
    """
    inputs = {"input_ids": batch.input_ids_RT, "attention_mask": batch.attention_mask_RT, "use_cache": False}
    if batch.position_ids_RT is not None:
        inputs["position_ids"] = batch.position_ids_RT
        if _takes_boundaries(model):
            # For these kernels Transformers flattens the rows into one.
            inputs |= {"cu_seq_lens_q": batch.cu_seqlens, "cu_seq_lens_k": batch.cu_seqlens}
            inputs |= {"max_length_q": batch.longest, "max_length_k": batch.longest}
    with _known(batch.shares_rows):
        return model(**inputs, **arguments)


def response_logits(model: nn.Module, batch: Batch) -> Tensor:
    """logits_NV of the model itself at the response positions, in fp32."""
    batch = batch.to(model.device)
    return forward(model, batch).logits.flatten(0, 1)[batch.response_positions].float()


def unwrap_peft(model: nn.Module) -> PreTrainedModel:
    """The Transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _takes_boundaries(model: nn.Module) -> bool:
    inner = unwrap_peft(model)
    return is_flash_attention_requested(inner.config.get_text_config()) and _passes_on_keywords(type(inner))


@cache
def _passes_on_keywords(model: type[nn.Module]) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


@contextmanager
def _known(shares_rows: bool) -> Iterator[None]:
    token = _shares_rows.set(shares_rows)
    try:
        yield
    finally:
        _shares_rows.reset(token)


def _packed_examples(position_ids_RT: Tensor) -> Tensor | None:
    """For each token the number of its example in the row; None if every row holds one example."""
    if _shares_rows.get() is None:
        return _find_in_position_ids(position_ids_RT)
    if not _shares_rows.get():
        return None
    begins_RT = torch.diff(position_ids_RT, dim=-1, prepend=position_ids_RT[:, :1] - 1) != 1
    return begins_RT.cumsum(-1)


# Transformers calls this function for every mask, and has no argument that would replace its result.
_find_in_position_ids = masking_utils.find_packed_sequence_indices
masking_utils.find_packed_sequence_indices = _packed_examples
