"""The DeepSpeed settings of a run: ZeRO stage and dtype from the JSON file, the rest from the flags.

In: the flags. Out: `DeepSpeedSettings`; or a ValueError that names the file, the entry and the remedy.
"""

import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from arguments import TrainArguments

# Set by flags only: a value in the file would silently contradict them.
SET_BY_FLAGS = {
    "optimizer": "the optimiser is AdamW with --lr and --weight-decay",
    "scheduler": "the schedule is --lr-decay-style with --warmup-iters",
    "train_batch_size": "it is --batch-size x --gradient-accumulation-steps x ranks",
    "train_micro_batch_size_per_gpu": "it is --batch-size",
    "gradient_accumulation_steps": "it is --gradient-accumulation-steps",
    "gradient_clipping": "it is --clip-grad",
}
# DeepSpeed ignores a section whose name is misspelt, so close misspellings of these are errors.
SECTIONS = "zero_optimization zero_force_ds_cpu_optimizer zero_allow_untested_optimizer bf16 fp16 data_types".split()
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class DeepSpeedSettings:
    """stage: of ZeRO. dtype: of the parameters. raw: the argument of `deepspeed.initialize`."""

    stage: int
    dtype: torch.dtype
    raw: dict

    @classmethod
    def of(cls, raw: dict) -> "DeepSpeedSettings":
        return cls(raw.get("zero_optimization", {}).get("stage", 0), _dtype(raw), raw)

    @property
    def zero(self) -> dict:
        """The section `zero_optimization`."""
        return self.raw.get("zero_optimization", {})

    @property
    def precision(self) -> str:
        return PRECISIONS[self.dtype]

    @property
    def from_file(self) -> dict:
        """The settings that the flags do not decide."""
        return {name: value for name, value in self.raw.items() if name not in SET_BY_FLAGS}


def read_deepspeed_settings(args: TrainArguments) -> DeepSpeedSettings:
    """The settings of --deepspeed_config; without the flag, ZeRO-0 in fp32. Raises FileNotFoundError, ValueError."""
    raw = {"zero_optimization": {"stage": 0}}
    flag = f"--deepspeed_config {args.deepspeed_config}"
    if args.deepspeed_config is not None:
        raw = _read(Path(args.deepspeed_config))
        _check_sections(flag, raw)
    for name, remedy in SET_BY_FLAGS.items():
        if raw.get(name, "auto") != "auto":
            raise ValueError(f"{flag}: remove {name!r}; {remedy}")
        raw.pop(name, None)
    for group, name in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if raw.get(group, {}).get(name, True) is not True:
            raise ValueError(
                f"{flag}: remove {name!r} from {group!r}; without it a non-finite gradient would update the parameters"
            )
    settings = DeepSpeedSettings.of(raw)
    if settings.dtype == torch.float16 and settings.stage == 0:
        # DeepSpeed scales the loss only in its ZeRO optimisers.
        raise ValueError(f"{flag}: fp16 needs ZeRO-1 or higher; see ds_config_fp16.json")
    by_flags = {
        # For DeepSpeed's own statistics only: the plan of the epoch decides what a step contains.
        "train_micro_batch_size_per_gpu": 1 if args.tokens_per_micro_batch else args.batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "gradient_clipping": args.clip_grad,
        "zero_force_ds_cpu_optimizer": False,  # the optimiser is torch's AdamW wherever it runs
        "steps_per_print": 2**31,
    }
    return replace(settings, raw=raw | by_flags)


def dtype_name(dtype: torch.dtype) -> str:
    """bfloat16, float16 or float32."""
    return str(dtype).removeprefix("torch.")


def supported_dtypes() -> list[torch.dtype]:
    """The dtypes that a DeepSpeed engine accepts on this machine: fp32 and what the accelerator supports."""
    accelerator = get_accelerator()
    half = {torch.bfloat16: accelerator.is_bf16_supported, torch.float16: accelerator.is_fp16_supported}
    return [*(dtype for dtype, is_supported in half.items() if is_supported()), torch.float32]


def slow_on_this_cpu(dtype: torch.dtype) -> bool:
    """Whether training runs on a CPU without instructions for this dtype: PyTorch then multiplies number by number."""
    if get_accelerator().device_name() != "cpu" or dtype == torch.float32:
        return False
    if not torch.backends.mkldnn.is_available():  # a build without oneDNN, which alone uses these instructions
        return True
    ops = torch.ops.mkldnn
    return not (ops._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else ops._is_mkldnn_fp16_supported)()


def check_precision(args: TrainArguments, settings: DeepSpeedSettings) -> None:
    """Raises ValueError if the accelerator cannot train in the precision of the settings."""
    supported = supported_dtypes()
    if settings.dtype not in supported:
        remedies = " or ".join(f"PRECISION={PRECISIONS[possible]}" for possible in supported)
        raise ValueError(
            f"--deepspeed_config {args.deepspeed_config}: {settings.precision} is not supported by this machine's "
            f"{get_accelerator().device_name()} device; pass a file of another precision from configs/deepspeed/ (in "
            f"the scripts {remedies})"
        )


def _read(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"--deepspeed_config {path}: no such file; see configs/deepspeed/")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, not UTF-8
        raise ValueError(f"--deepspeed_config {path}: not JSON ({error}); see configs/deepspeed/") from None


def _check_sections(flag: str, raw: object) -> None:
    """Raises ValueError for what DeepSpeed would reject late or ignore silently."""
    if not isinstance(raw, dict):
        raise ValueError(f"{flag}: {type(raw).__name__}, not an object; see configs/deepspeed/")
    for name, value in raw.items():
        close = difflib.get_close_matches(name, SECTIONS, n=1, cutoff=0.75)
        if name not in SECTIONS and close:
            raise ValueError(f"{flag}: {name!r} is not a section of a DeepSpeed file; did you mean {close[0]!r}?")
        if name in ("zero_optimization", "bf16", "fp16", "data_types") and not isinstance(value, dict):
            raise ValueError(f"{flag}: {name!r} is {json.dumps(value)}, not an object; see configs/deepspeed/")
    try:
        DeepSpeedZeroConfig(**raw.get("zero_optimization", {}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{flag}: zero_optimization.{place}: {first['msg']} ({first['input']!r}); see configs/deepspeed/"
        ) from None


def _dtype(raw: dict) -> torch.dtype:
    if raw.get("bf16", {}).get("enabled"):
        return torch.bfloat16
    return torch.float16 if raw.get("fp16", {}).get("enabled") else torch.float32
