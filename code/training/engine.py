"""DeepSpeed: process group, configuration, and the engine around the student.

The engine holds the distiller (student and criterion) only. Batch size, accumulation and clipping come from the flags,
ZeRO stage and dtype from the JSON file.
"""

import difflib
import json
import os
import random
import socket
import warnings
from pathlib import Path

import deepspeed
import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError
from torch import distributed as dist

from arguments import TrainArguments
from distiller import Distiller
from training.optimizer import build_optimizer, build_scheduler

# What the flags decide; a file that sets it too would contradict them silently.
SET_BY_FLAGS = {
    "optimizer": "the optimiser is AdamW with --lr and --weight-decay",
    "scheduler": "the schedule is --lr-decay-style with --warmup-iters",
    "train_batch_size": "it is --batch-size x --gradient-accumulation-steps x ranks",
    "train_micro_batch_size_per_gpu": "it is --batch-size",
    "gradient_accumulation_steps": "it is --gradient-accumulation-steps",
    "gradient_clipping": "it is --clip-grad",
}


PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# What DeepSpeed would take a misspelt section for: nothing at all.
SECTIONS = "zero_optimization zero_force_ds_cpu_optimizer zero_allow_untested_optimizer bf16 fp16 data_types".split()


def read_deepspeed_config(args: TrainArguments) -> dict:
    """The JSON file with what the flags decide filled in. Raises FileNotFoundError, ValueError."""
    settings = {"zero_optimization": {"stage": 0}}
    if args.deepspeed_config is not None:
        path = Path(args.deepspeed_config)
        if not path.is_file():
            raise FileNotFoundError(f"--deepspeed_config {path}: no such file; see configs/deepspeed/")
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, not UTF-8
            raise ValueError(f"--deepspeed_config {path}: not JSON ({error}); see configs/deepspeed/") from None
        _check_settings(f"--deepspeed_config {path}", settings)
    for name, remedy in SET_BY_FLAGS.items():
        if settings.get(name, "auto") != "auto":
            raise ValueError(f"--deepspeed_config {args.deepspeed_config}: remove {name!r}; {remedy}")
        settings.pop(name, None)
    for group, name in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if settings.get(group, {}).get(name, True) is not True:
            raise ValueError(
                f"--deepspeed_config {args.deepspeed_config}: remove {name!r} from {group!r}; without it a gradient "
                "that is not finite would reach the parameters"
            )
    if training_dtype(settings) == torch.float16 and settings.get("zero_optimization", {}).get("stage", 0) == 0:
        # DeepSpeed's engine scales the loss only for its ZeRO optimisers.
        raise ValueError(
            f"--deepspeed_config {args.deepspeed_config}: fp16 needs ZeRO-1 or higher; see ds_config_fp16.json"
        )
    return settings | {
        # For DeepSpeed's own statistics only: what a step holds, and what its loss is divided by, is the plan's.
        "train_micro_batch_size_per_gpu": 1 if args.tokens_per_micro_batch else args.batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "gradient_clipping": args.clip_grad,
        "zero_force_ds_cpu_optimizer": False,  # the optimiser is torch's AdamW wherever it runs
        "steps_per_print": 2**31,
    }


def _check_settings(flag: str, settings: object) -> None:
    """What would fail late, or silently do nothing. Raises ValueError."""
    if not isinstance(settings, dict):
        raise ValueError(f"{flag}: {type(settings).__name__}, not an object; see configs/deepspeed/")
    for name, value in settings.items():
        close = difflib.get_close_matches(name, SECTIONS, n=1, cutoff=0.75)
        if name not in SECTIONS and close:
            raise ValueError(f"{flag}: {name!r} is no section of DeepSpeed's; did you mean {close[0]!r}?")
        if name in ("zero_optimization", "bf16", "fp16", "data_types") and not isinstance(value, dict):
            raise ValueError(f"{flag}: {name!r} is {json.dumps(value)}, not an object; see configs/deepspeed/")
    try:
        DeepSpeedZeroConfig(**settings.get("zero_optimization", {}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{flag}: zero_optimization.{place}: {first['msg']} ({first['input']!r}); see configs/deepspeed/"
        ) from None


def training_dtype(settings: dict) -> torch.dtype:
    """What the parameters are held in."""
    if settings.get("bf16", {}).get("enabled"):
        return torch.bfloat16
    return torch.float16 if settings.get("fp16", {}).get("enabled") else torch.float32


def supported_dtypes() -> list[torch.dtype]:
    """What a DeepSpeed engine accepts on this machine: it asks its accelerator the same; fp32 everywhere."""
    accelerator = get_accelerator()
    asked = {torch.bfloat16: accelerator.is_bf16_supported, torch.float16: accelerator.is_fp16_supported}
    return [*(dtype for dtype, is_supported in asked.items() if is_supported()), torch.float32]


def check_precision(args: TrainArguments, settings: dict) -> None:
    """Raises ValueError if the accelerator cannot train in the precision of the settings."""
    dtype, supported = training_dtype(settings), supported_dtypes()
    if dtype not in supported:
        remedies = " or ".join(f"PRECISION={PRECISIONS[possible]}" for possible in supported)
        raise ValueError(
            f"--deepspeed_config {args.deepspeed_config}: {PRECISIONS[dtype]} is not supported by this machine's "
            f"{get_accelerator().device_name()} device; pass a file of another precision from configs/deepspeed/ (in "
            f"the scripts {remedies})"
        )


def init_distributed() -> torch.device:
    """Joins the process group of `deepspeed` or `torchrun`, or makes one of this process alone. Returns the device.

    Raises ValueError if there are more processes than devices, OSError if the port is taken.
    """
    # DeepSpeed calls collectives by names that torch is about to retire: nothing a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    accelerator = get_accelerator()
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if accelerator.device_name() == "cpu":
        # DeepSpeed would compile its shared-memory collectives: that takes a compiler and a minute; gloo needs neither.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        _check_devices(accelerator.device_count(), local_rank)
        accelerator.set_device(local_rank)
    try:
        deepspeed.init_distributed(
            dist_backend=accelerator.communication_backend_name(), auto_mpi_discovery=False, verbose=False
        )
    except dist.DistNetworkError as error:
        place = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')} MASTER_PORT={os.environ.get('MASTER_PORT')}"
        raise OSError(
            f"{place}: {str(error).splitlines()[0]}; another run may have the port: set MASTER_PORT to a free one"
        ) from None
    return torch.device(accelerator.device_name(local_rank) if accelerator.device_name() != "cpu" else "cpu")


def _check_devices(devices: int, local_rank: int) -> None:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", local_rank + 1)))
    if processes > devices:
        raise ValueError(
            f"{processes} processes on a machine with {devices} visible devices; set GPUS={devices} (or --num_gpus, "
            "--nproc_per_node), or show more of them in CUDA_VISIBLE_DEVICES"
        )


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch. Ranks differ in `seed` where they should draw differently (dropout)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_engine(
    distiller: Distiller, settings: dict, args: TrainArguments, total_steps: int
) -> deepspeed.DeepSpeedEngine:
    """The engine with optimiser and schedule; the student's parameters are cast, moved and partitioned in place."""
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    guarded = stage == 0 and training_dtype(settings) == torch.float32
    optimizer = build_optimizer(distiller, args, guarded)
    engine, *_ = deepspeed.initialize(
        model=distiller,
        optimizer=optimizer,
        lr_scheduler=build_scheduler(optimizer, args, total_steps),
        config=settings | ({"gradient_clipping": 0.0} if guarded else {}),  # then the optimiser clips
    )
    if engine.zero_optimization_stage() == 3:
        # The chunked loss reads the head's parameters outside the head's own forward.
        for parameter in distiller.split_student.head.parameters():
            if parameter is not None:
                deepspeed.zero.register_external_parameter(distiller, parameter)
    return engine


def is_main_process() -> bool:
    return dist.get_rank() == 0
