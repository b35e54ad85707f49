"""Attention of examples packed into one row, one example after the other, for CPUs.

PyTorch's CPU kernel takes the whole square of a row, masked or not; the examples of a row need the triangles on its
diagonal. Registered with Transformers as an attention implementation, it gets what a variable-length kernel gets,
`position_ids` that restart at each example, and calls Transformers' own `sdpa` on every example, with its part of the
row's mask where a sliding window is shorter than an example of the row. Batches of any other shape, and generation, go
to that `sdpa` as they are.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask
from transformers.utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
    is_kernels_available,
)

SDPA, BY_EXAMPLE = "sdpa", "sdpa_by_example"
FLASH = {  # kernels for fp16 and bf16 on GPUs, and whether their package is installed
    "flash_attention_2": is_flash_attn_2_available,
    "flash_attention_3": is_flash_attn_3_available,
    "flash_attention_4": is_flash_attn_4_available,
}


def check_attention(name: str | None, dtypes: dict[str, torch.dtype], device: str) -> None:
    """Raises ValueError if --attn-implementation `name` cannot run on the device, or in the dtype of one of the models.

    dtypes: of each model, by the flag that decides it. Names that are not in FLASH are Transformers' to judge.
    """
    if name not in FLASH:
        return
    otherwise = "or leave the flag out: PyTorch's sdpa is the default"
    if device == "cpu":
        raise ValueError(f"--attn-implementation {name}: runs on GPUs only; pass sdpa, {otherwise}")
    # Transformers takes the kernel from the hub where `kernels` is installed; other devices bring their own.
    if device == "cuda" and not FLASH[name]() and not is_kernels_available():
        raise ValueError(
            f"--attn-implementation {name}: its package is not installed, or not for this GPU; install flash-attn or "
            f"kernels, {otherwise}"
        )
    for flag, dtype in dtypes.items():
        if dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"--attn-implementation {name}: computes in fp16 and bf16 only, and {flag} says "
                f"{str(dtype).removeprefix('torch.')}; choose bf16 there (in the scripts PRECISION=bf16), {otherwise}"
            )


def can_attend_by_example(model: PreTrainedModel) -> bool:
    """Whether it has Transformers' `sdpa`, on a CPU, and takes its place for a variable-length kernel."""
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
    """[R, T, H, D] of the attention of each token to the tokens before it in its example."""
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
    """None for one row whose examples are all within the window; what `sdpa` gets for anything else."""
    one_row = batch_size == 1 and q_length == kv_length and attention_mask is None
    if one_row and (local_size is None or not _outgrown(local_size, q_length, mask_function)):
        return None
    shape = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length}
    options = {"mask_function": mask_function, "attention_mask": attention_mask, "local_size": local_size}
    return sdpa_mask(**shape, **options, **kwargs)


def _outgrown(window: int, length: int, mask_function: Callable) -> bool:
    """Whether an example of a row of `length` tokens is longer than the window.

    It is, where a token sees the one before it, and that one the farthest that a window shows: for a token sees nothing
    of other examples. (Attention in chunks would be another matter; it is of models that no such kernel serves.)
    """
    if window == 1 or window >= length:
        return window < length
    query_T = torch.arange(window, length)
    row_T = torch.zeros_like(query_T)
    sees_last_T = mask_function(row_T, row_T, query_T, query_T - 1)
    return bool((sees_last_T & mask_function(row_T, row_T, query_T - 1, query_T - window)).any())


AttentionInterface.register(BY_EXAMPLE, _attention)
AttentionMaskInterface.register(BY_EXAMPLE, _mask)
