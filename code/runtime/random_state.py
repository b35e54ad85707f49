"""The random number generators of a process: seeded at the start, saved and restored when a run is resumed."""

import random

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch. Ranks pass different seeds if they should draw differently (dropout)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict:
    """The state of Python's, NumPy's and torch's generators (CPU and device)."""
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
