"""What is done on CPUs alone, since a GPU has kernels for it or gains nothing by it.

- Attention by example: `batch_layout` (models/probes.py) chooses it when every model of the run is on a CPU, uses
  Transformers' `sdpa` and supports variable-length kernels. It takes effect in packed batches of a single row.
- Sparse gradient of the input embedding: in training, when embedding and head are one fp32 or fp64 weight.
- Sums of half-precision products: in training, for the gradient of a head's weight in bf16 or fp16.

The chunked loss also works in blocks that fit the CPU's cache; that is part of its walk (criterions/fused.py).

Shapes: R rows, T tokens of a row, H attention heads, D size of a head or of a hidden state, C response positions in a
chunk, V vocabulary.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

SDPA, BY_EXAMPLE = "sdpa", "sdpa_by_example"


# --- gradients -------------------------------------------------------------------------------------------------------


def add_input_gradient_sparsely(model: PreTrainedModel, head_weight: Tensor | None) -> None:
    """Makes the gradient of an input embedding sparse if the head has the same weight.

    The gradient of that weight is the head's plus, for the few tokens of the batch, the embedding's. Autograd would
    allocate and add a second dense tensor of the head's size, nearly all zeros. Elsewhere the gradient stays dense: a
    GPU sums dense gradients in a fixed order, half precision sums them in fp32.
    """
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding) and embedding.weight is head_weight:
        embedding.sparse = head_weight.is_cpu and head_weight.dtype in (torch.float32, torch.float64)


def add_half_precision_product(sum_VD: Tensor, first_VC: Tensor, second_CD: Tensor) -> None:
    """Adds first_VC @ second_CD to an fp32 sum; PyTorch's CPU kernels have no product of mixed dtypes."""
    if first_VC.dtype == torch.bfloat16:
        # The product is rounded to bf16, as the sum will be in the end; the sum over chunks stays in fp32.
        sum_VD += torch.mm(first_VC, second_CD)
    else:
        sum_VD.addmm_(first_VC.to(sum_VD.dtype), second_CD.to(sum_VD.dtype))


# --- attention by example --------------------------------------------------------------------------------------------
#
# PyTorch's CPU kernel computes the whole square of a row, masked or not, where the examples of a row need only the
# triangles on its diagonal. `_attention` calls Transformers' own `sdpa` once per example, with that example's part of
# the mask if a sliding window is shorter than an example. It finds the examples as a variable-length kernel does, by
# `position_ids` that restart. Batches of any other shape, and generation, go to `sdpa` unchanged.


def can_attend_by_example(model: PreTrainedModel) -> bool:
    """Whether the model is on a CPU, uses Transformers' `sdpa`, and would accept a variable-length kernel instead."""
    implementation = model.config.get_text_config()._attn_implementation
    return implementation in (SDPA, BY_EXAMPLE) and model.device.type == "cpu" and model._supports_flash_attn


def _attention(
    module: nn.Module,
    query_RHTD: Tensor,
    key_RHTD: Tensor,
    value_RHTD: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """output_RTHD: each token attends to the tokens before it in its example."""
    inputs = query_RHTD, key_RHTD, value_RHTD
    rows, _, tokens, _ = query_RHTD.shape
    masked = attention_mask is not None
    whole_mask = masked and attention_mask.shape[-2:] != (tokens, tokens)
    if whole_mask or position_ids is None or rows > 1 or key_RHTD.shape[2] != tokens:
        return sdpa_attention_forward(module, *inputs, attention_mask, **kwargs)
    borders = [0, *((position_ids[0].diff() != 1).nonzero()[:, 0] + 1).tolist(), tokens]
    outputs = []
    for start, end in pairwise(borders):
        example = (tensor[:, :, start:end] for tensor in inputs)
        mask = attention_mask[..., start:end, start:end] if masked else None
        outputs.append(sdpa_attention_forward(module, *example, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    **kwargs,
) -> Tensor | None:
    """None if a single row has no example longer than the window; otherwise the mask that `sdpa` would get."""
    one_row = batch_size == 1 and q_length == kv_length and attention_mask is None
    if one_row and (local_size is None or not _exceeds(local_size, q_length, mask_function)):
        return None
    shape = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length}
    options = {"mask_function": mask_function, "attention_mask": attention_mask, "local_size": local_size}
    return sdpa_mask(**shape, **options, **kwargs)


def _exceeds(window: int, length: int, mask_function: Callable) -> bool:
    """Whether a row of `length` tokens has an example that is longer than the window.

    In such an example, and only there, some token sees the token before it, which itself sees as far back as the window
    reaches: no token sees another example. (This would not hold for chunked attention, but no model that supports
    variable-length kernels uses that.)
    """
    if window == 1 or window >= length:
        return window < length
    query_T = torch.arange(window, length)
    row_T = torch.zeros_like(query_T)
    sees_last_T = mask_function(row_T, row_T, query_T, query_T - 1)
    return bool((sees_last_T & mask_function(row_T, row_T, query_T - 1, query_T - window)).any())


AttentionInterface.register(BY_EXAMPLE, _attention)
AttentionMaskInterface.register(BY_EXAMPLE, _mask)
