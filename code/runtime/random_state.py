"""The random numbers of a process: seeded, and kept over a restart."""

import random

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch. Ranks differ in `seed` where they should draw differently (dropout)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict:
    """Of every generator that a step may draw from: Python, NumPy, torch on the CPU and on the device."""
    accelerator = get_accelerator()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "device": None if accelerator.device_name() == "cpu" else accelerator.get_rng_state(),
    }


def set_random_state(state: dict) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None:
        get_accelerator().set_rng_state(state["device"])
