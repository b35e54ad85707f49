"""Calls a model on a batch, and tells it where packed examples begin, so that it need not ask the device.

In: a Transformers (or PEFT) model and a `Batch`. Out: what the model returns.

Transformers finds packed examples in `position_ids`: once for every mask and, with flash attention, once in every
layer, and each time the host waits for the device. The batch knows on the host.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor, nn
from transformers import masking_utils
from transformers.utils.generic import is_flash_attention_requested

from data_utils.batches import Batch

# Whether rows of the batch in work hold several examples; None outside of `run`.
_shares_rows: ContextVar[bool | None] = ContextVar("shares_rows", default=None)


def run(model: nn.Module, batch: Batch, **arguments: object) -> object:
    """`model(**arguments)` on the tokens of the batch, without a cache.

    Raises TypeError if the batch is packed and the model takes no `position_ids`.
    """
    inputs = {"input_ids": batch.input_ids_RT, "attention_mask": batch.attention_mask_RT, "use_cache": False}
    if batch.position_ids_RT is not None:
        inputs["position_ids"] = batch.position_ids_RT
        if _takes_boundaries(model):
            # For each row's examples one after the other: Transformers flattens the rows for these kernels.
            inputs |= {"cu_seq_lens_q": batch.cu_seqlens, "cu_seq_lens_k": batch.cu_seqlens}
            inputs |= {"max_length_q": batch.longest, "max_length_k": batch.longest}
    with _known(batch.shares_rows):
        return model(**inputs, **arguments)


def _takes_boundaries(model: nn.Module) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return is_flash_attention_requested(inner.config.get_text_config()) and _takes_keywords(type(inner))


@cache
def _takes_keywords(model: type[nn.Module]) -> bool:
    """Whether `forward` hands on keyword arguments that it does not know."""
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
    """The number of each token's example in its row; None where every row is one example."""
    if _shares_rows.get() is None:
        return _ask_for_packed_examples(position_ids_RT)
    if not _shares_rows.get():
        return None
    begins_RT = torch.diff(position_ids_RT, dim=-1, prepend=position_ids_RT[:, :1] - 1) != 1
    return begins_RT.cumsum(-1)


# Transformers calls it for every mask, and has no argument in its place.
_ask_for_packed_examples = masking_utils.find_packed_sequence_indices
masking_utils.find_packed_sequence_indices = _packed_examples
