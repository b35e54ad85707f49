"""What a run is made from: its flags, command, versions, commit and machine, in args.json and the first log lines.

No environment variable is recorded: some hold access tokens.
"""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch
from deepspeed.accelerator import get_accelerator

from arguments import TrainConfig
from criterions import Criterion
from data_utils.dataset import InstructionDataset
from runtime.atomic import write_text
from runtime.deepspeed_settings import DeepSpeedSettings, dtype_name
from runtime.log import logger
from runtime.ranks import is_main_process, world_size

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "torch deepspeed transformers peft datasets tokenizers".split()


def record_start(
    config: TrainConfig, criterion: Criterion, settings: DeepSpeedSettings, argv: Sequence[str], device: torch.device
) -> None:
    """Writes args.json and the first lines of train.log."""
    objective = config.kd.objective
    if is_main_process():
        everything = config.flags | {"deepspeed": settings.raw, "run": provenance(argv)}
        write_text(Path(config.train.save_dir) / "args.json", json.dumps(everything, indent=2) + "\n")
    logger.info("run folder %s", config.train.save_dir)
    dtype = dtype_name(settings.dtype)
    logger.info("objective %s, %d ranks, device %s, %s", objective, world_size(), device.type, dtype)
    if config.ignored_flags:
        logger.info("without effect here: %s", " ".join(config.ignored_flags))
    if not criterion.needs_teacher and config.teacher.teacher_model_path is not None:
        logger.info("%s needs no teacher: %s is not loaded", objective, config.teacher.teacher_model_path)


def record_rows(save_dir: Path, datasets: Mapping[str, InstructionDataset | None]) -> None:
    """Adds to args.json how many rows of which form each split has, once they are read. On rank 0."""
    path = save_dir / "args.json"
    everything = json.loads(path.read_text())
    everything["run"]["rows"] = {split: data.forms for split, data in datasets.items() if data is not None}
    write_text(path, json.dumps(everything, indent=2) + "\n")


def provenance(argv: Sequence[str], entry: str = "code/distillation.py") -> dict:
    """What args.json has under "run": this start, as seen from this rank."""
    return {
        "command": [entry, *argv],
        "ranks": world_size(),
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
    """The commit of the code and whether tracked files differ from it; None outside its own git checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):  # no git, no commit, or another user's folder
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
    """The processor's model, or its architecture where /proc/cpuinfo does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
