"""What a run was made by: command, versions, commit, machine; goes into args.json under "run".

No value of the environment is read: tokens live there.
"""

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from deepspeed.accelerator import get_accelerator
from torch import distributed as dist

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "torch deepspeed transformers peft datasets tokenizers".split()


def provenance(argv: Sequence[str]) -> dict:
    """Everything that JSON can hold about this start, seen from this rank."""
    return {
        "command": ["code/distillation.py", *argv],
        "ranks": dist.get_world_size(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": _git(),
        "hardware": _hardware(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict | None:
    """The commit of the code, and whether tracked files differ from it; None outside a checkout of its own."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):  # no git, no commit, a folder of another user
        return None


def _hardware() -> dict:
    name, devices = get_accelerator().device_name(), []
    if name != "cpu":
        module = torch.get_device_module(name)
        devices = [module.get_device_name(i) for i in range(module.device_count())]
    return {
        "device": name,
        "devices_of_first_node": devices,
        "cpu": _cpu(),
        "cpu_cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
    }


def _cpu() -> str:
    """The processor's model; where Linux does not tell, its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
