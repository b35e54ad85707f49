"""Attention kernels by name: whether this machine can run the one that --attn-implementation asks for."""

import torch
from transformers.utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
    is_kernels_available,
)

from runtime.deepspeed_settings import dtype_name

FLASH = {  # kernels for fp16 and bf16 on GPUs, each with a function that tells whether its package is installed
    "flash_attention_2": is_flash_attn_2_available,
    "flash_attention_3": is_flash_attn_3_available,
    "flash_attention_4": is_flash_attn_4_available,
}


def check_attention(name: str | None, dtypes: dict[str, torch.dtype], device: str) -> None:
    """Raises ValueError if the kernel cannot run on the device or in the dtype of one of the models.

    name: --attn-implementation; Transformers checks names that are not in FLASH.
    dtypes: the dtype of each model, by the flag that sets it.
    """
    if name not in FLASH:
        return
    otherwise = "or leave the flag out: PyTorch's sdpa is the default"
    if device == "cpu":
        raise ValueError(f"--attn-implementation {name}: runs on GPUs only; pass sdpa, {otherwise}")
    # With `kernels` installed, Transformers downloads the kernel from the hub. Devices other than CUDA bring their own.
    if device == "cuda" and not FLASH[name]() and not is_kernels_available():
        raise ValueError(
            f"--attn-implementation {name}: its package is not installed, or not for this GPU; install flash-attn or "
            f"kernels, {otherwise}"
        )
    for flag, dtype in dtypes.items():
        if dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"--attn-implementation {name}: computes in fp16 and bf16 only, and {flag} says "
                f"{dtype_name(dtype)}; choose bf16 there (in the scripts PRECISION=bf16), {otherwise}"
            )
