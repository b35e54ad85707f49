"""What the flags of a training run leave open: checkpoints of run folders, precision, accumulation, the run's folder.

In: the parsed flags. Out: the same with those filled in, so that checks, args.json and the resume state see what the
run is made of. Each function leaves alone what was given.
"""

import hashlib
from dataclasses import fields, replace
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator

from arguments import KDArguments, TrainConfig
from criterions import Criterion
from models.folders import ROOT, find_checkpoint, run_arguments
from runtime.deepspeed_settings import DeepSpeedSettings, read_deepspeed_settings
from runtime.ranks import Ranks

CONFIGS = {"bf16": "ds_config_bf16.json", "fp16": "ds_config_fp16.json", "fp32": "ds_config_zero1_fp32.json"}
SHORT = {"kd_rate": "kd^rate", "kd_temperature": "kd^temp", "kd_temperature_scaling": "kd^scale"}
LONGEST_NAME = 200  # bytes; a file name has at most 255


def with_checkpoints(config: TrainConfig, needs_teacher: bool = True) -> TrainConfig:
    """Run folders become their best checkpoint, and models get the name of their run or of their folder.

    Raises ValueError, a line for each path that holds several runs.
    """
    found, errors = {}, []
    for group in (config.model, config.teacher) if needs_teacher else (config.model,):
        for name, path in vars(group).items():
            if name.endswith(("model_path", "peft_path")) and path is not None:
                try:
                    found[name] = find_checkpoint(f"--{name.replace('_', '-')}", path)
                except ValueError as error:
                    errors.append(str(error))
    if errors:
        raise ValueError("\n".join(errors))
    for prefix, group in (("", config.model), ("teacher_", config.teacher)):
        if f"{prefix}model_path" in found:
            given, checkpoint = getattr(group, f"{prefix}model_path"), found[f"{prefix}model_path"]
            default = run_arguments(checkpoint).get("ckpt_name") or Path(given).absolute().name
            found[f"{prefix}ckpt_name"] = getattr(group, f"{prefix}ckpt_name") or default
    groups = {
        name: replace(group, **{key: value for key, value in found.items() if hasattr(group, key)})
        for name, group in (("model", config.model), ("teacher", config.teacher))
    }
    return config._replace(**groups)


def with_precision(config: TrainConfig) -> TrainConfig:
    """--precision becomes the DeepSpeed file of that precision. Raises ValueError if the given file has another."""
    args = config.train
    if args.precision is None:
        return config
    if args.deepspeed_config is None:
        precision = precision_of_machine() if args.precision == "auto" else args.precision
        file = ROOT / "configs" / "deepspeed" / CONFIGS[precision]
        return config._replace(train=replace(args, deepspeed_config=str(file)))
    dtype = read_deepspeed_settings(args).precision
    if args.precision not in ("auto", dtype):
        raise ValueError(
            f"--precision {args.precision}: --deepspeed_config {args.deepspeed_config} is {dtype}; pass one of the two"
        )
    return config


def precision_of_machine() -> str:
    """bf16 where the device computes in it, else fp16; fp32 on a CPU, where half precision gains only with AMX."""
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        return "fp32"
    # PyTorch also says yes where it emulates bf16, on GPUs before Ampere.
    emulated = accelerator.device_name() == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator.is_bf16_supported() and not emulated:
        return "bf16"
    return "fp16" if accelerator.is_fp16_supported() else "fp32"


def with_accumulation(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """--global-batch-size becomes --gradient-accumulation-steps. Raises ValueError if it cannot be divided."""
    args = config.train
    wanted, at_once = args.global_batch_size, args.batch_size * ranks.world_size
    if wanted is None:
        return config
    given, split = args.gradient_accumulation_steps, f"--batch-size {args.batch_size} x {ranks.world_size} ranks"
    if given not in (1, wanted / at_once):
        raise ValueError(
            f"--global-batch-size {wanted}: {split} x --gradient-accumulation-steps {given} is {at_once * given}; pass "
            "one of the two (in front of a script: GRAD_ACC without GLOBAL_BATCH)"
        )
    if wanted % at_once:
        nearest = sorted({max(at_once, wanted // at_once * at_once), (wanted // at_once + 1) * at_once})
        remedy = f"pass {' or '.join(map(str, nearest))}"
        if wanted % ranks.world_size == 0:
            of_rank = wanted // ranks.world_size
            remedy += f", or --batch-size {max(n for n in range(1, args.batch_size + 1) if of_rank % n == 0)}"
        raise ValueError(f"--global-batch-size {wanted}: is not a multiple of {split} = {at_once}; {remedy}")
    return config._replace(train=replace(args, gradient_accumulation_steps=wanted // at_once))


def with_save_dir(config: TrainConfig, criterion: Criterion, settings: DeepSpeedSettings, ranks: Ranks) -> TrainConfig:
    """--save-dir, named by what is trained and how: outputs/<model type>/<student>/<objective>/<setting>."""
    if config.train.save_dir is not None:
        return config
    task, _ = criterion.folder_names(config.kd.objective)
    parents = [config.model.model_type, config.model.ckpt_name, task]
    folder = Path("outputs", *filter(None, parents), setting_name(config, criterion, settings, ranks))
    return config._replace(train=replace(config.train, save_dir=str(folder)))


def setting_name(config: TrainConfig, criterion: Criterion, settings: DeepSpeedSettings, ranks: Ranks) -> str:
    """What tells a run from others of the same models; of the objective's hyper-parameters those that it uses."""
    model, train = config.model, config.train
    tuning = "default"
    if model.peft is not None:
        tuning = (
            f"{model.peft}-rank={model.peft_lora_r}-alpha={model.peft_lora_alpha}-dropout={model.peft_lora_dropout}"
        )
    unit, size = "bsz", train.batch_size
    if train.tokens_per_micro_batch is not None:
        unit, size = "tokens", train.tokens_per_micro_batch
    batch = f"{size}x{train.gradient_accumulation_steps}x{ranks.per_node}"
    if ranks.world_size > ranks.per_node:
        batch += f"x{ranks.world_size // ranks.per_node}"
    _, objective = criterion.folder_names(config.kd.objective)
    parts = [f"criterion={objective}", f"{tuning}-{settings.precision}"]
    parts += [f"teacher={config.teacher.teacher_ckpt_name}"] if criterion.needs_teacher else []
    parts += _hyper_parameters(config.kd, criterion, objective)
    parts.append(f"epoch={train.num_epochs}")
    parts.append(f"{unit}={batch}={size * train.gradient_accumulation_steps * ranks.world_size}")
    parts.append(f"lr={train.lr}")
    if train.seed != _default(train, "seed"):
        parts.append(f"seed={train.seed}")
    name = "__".join(parts)
    if len(name.encode()) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 50]}__{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def _hyper_parameters(args: KDArguments, criterion: Criterion, objective: str) -> list[str]:
    """Rate and temperature always, the others if they were changed."""
    parts = []
    for name in criterion.used_arguments():
        value = getattr(args, name)
        told = objective.endswith(f"+{value}")  # the objective that another one wraps
        if name in ("kd_rate", "kd_temperature") or (value != _default(args, name) and not told):
            parts.append(f"{SHORT.get(name, name.replace('_', '-'))}={value}")
    return parts


def _default(group: object, name: str) -> object:
    return next(field.default for field in fields(group) if field.name == name)
