"""What the flags of a training run leave open: best checkpoints, precision, accumulation steps, the run's folder.

In: the parsed flags. Out: the same flags with these filled in, so that args.json and the resume state say what the run
is made of. What was given is kept.
"""

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from deepspeed.accelerator import get_accelerator

from arguments import (
    SHORTHANDS,
    KDArguments,
    ModelArguments,
    OnPolicyArguments,
    TeacherArguments,
    TrainArguments,
    TrainConfig,
)
from criterions import Criterion
from models.folders import ROOT, find_checkpoint, run_arguments
from preflight.report import Report
from runtime.deepspeed_settings import DeepSpeedSettings, read_deepspeed_settings
from runtime.ranks import Ranks

Models = TypeVar("Models", ModelArguments, TeacherArguments)
CONFIGS = {"bf16": "ds_config_bf16.json", "fp16": "ds_config_fp16.json", "fp32": "ds_config_zero1_fp32.json"}
SHORT = {"kd_rate": "kd^rate", "kd_temperature": "kd^temp", "kd_temperature_scaling": "kd^scale"}
LONGEST_NAME = 200  # bytes; a file name has at most 255


def with_checkpoints(config: TrainConfig, needs_teacher: bool = True) -> TrainConfig:
    """Replaces run folders by their best checkpoint, and names models after their run or their folder.

    Raises ValueError with one line per path that holds several runs.
    """
    report = Report()
    config = config._replace(model=_with_checkpoints(config.model, "", report))
    if needs_teacher:
        config = config._replace(teacher=_with_checkpoints(config.teacher, "teacher_", report))
    report.stop_on_errors()
    return config


def _with_checkpoints(group: Models, prefix: str, report: Report) -> Models:
    """prefix: of the group's flags."""
    model, adapter, label = f"{prefix}model_path", f"{prefix}peft_path", f"{prefix}ckpt_name"
    found = {}
    for name in (model, adapter):
        if (path := getattr(group, name)) is not None:
            with report.collect_errors():
                found[name] = find_checkpoint(f"--{name.replace('_', '-')}", path)
    if model in found and getattr(group, label) is None:
        of_folder = Path(getattr(group, model)).absolute().name
        found[label] = run_arguments(found[model]).get("ckpt_name") or of_folder
    return replace(group, **found)


def with_precision(config: TrainConfig) -> TrainConfig:
    """Chooses the DeepSpeed file of --precision. Raises ValueError if --deepspeed_config has another precision."""
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
    """bf16 if the device has it, else fp16; fp32 on a CPU, where half precision gains only with AMX."""
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        return "fp32"
    # On GPUs before Ampere PyTorch emulates bf16 and calls that support.
    emulated = accelerator.device_name() == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator.is_bf16_supported() and not emulated:
        return "bf16"
    return "fp16" if accelerator.is_fp16_supported() else "fp32"


def with_accumulation(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """Derives --gradient-accumulation-steps from --global-batch-size. Raises ValueError if none fits."""
    args = config.train
    wanted, at_once = args.global_batch_size, args.batch_size * ranks.world_size
    if wanted is None:
        return config
    given, split = args.gradient_accumulation_steps, f"--batch-size {args.batch_size} x {ranks.world_size} ranks"
    if given not in (1, wanted / at_once):
        raise ValueError(
            f"--global-batch-size {wanted}: {split} x --gradient-accumulation-steps {given} is {at_once * given}; pass "
            "one of the two (in the scripts GLOBAL_BATCH or GRAD_ACC)"
        )
    if wanted % at_once:
        nearest = sorted({max(at_once, wanted // at_once * at_once), (wanted // at_once + 1) * at_once})
        remedy = f"pass {' or '.join(map(str, nearest))}"
        if wanted % ranks.world_size == 0:
            per_rank = wanted // ranks.world_size
            remedy += f", or --batch-size {max(n for n in range(1, args.batch_size + 1) if per_rank % n == 0)}"
        raise ValueError(f"--global-batch-size {wanted}: is not a multiple of {split} = {at_once}; {remedy}")
    return config._replace(train=replace(args, gradient_accumulation_steps=wanted // at_once))


def with_rows(config: TrainConfig) -> TrainConfig:
    """Spells out --gkd and its like, and fills in how answers are sampled. Without them, changes nothing."""
    args, data = config.on_policy, config.data
    if not args.enabled:
        return config
    longest, at_once = args.gen_max_new_tokens, args.gen_tokens_per_batch
    args = replace(
        args,
        student_gen=True,
        gen_schedule=args.schedule,
        **dict.fromkeys(SHORTHANDS, False),
        gen_max_new_tokens=longest or data.max_length - data.max_prompt_length,
        gen_tokens_per_batch=at_once or config.train.eval_batch_size * data.max_length,
    )
    return config._replace(on_policy=args)


def with_save_dir(config: TrainConfig, criterion: Criterion, settings: DeepSpeedSettings, ranks: Ranks) -> TrainConfig:
    """Names --save-dir after the run: outputs/<model type>/<student>/<objective>/<setting>."""
    if config.train.save_dir is not None:
        return config
    task, _ = criterion.folder_names(config.kd.objective)
    parents = [config.model.model_type, config.model.ckpt_name, task]
    folder = Path("outputs", *filter(None, parents), setting_name(config, criterion, settings, ranks))
    return config._replace(train=replace(config.train, save_dir=str(folder)))


def setting_name(config: TrainConfig, criterion: Criterion, settings: DeepSpeedSettings, ranks: Ranks) -> str:
    """Tells a run from others of the same models and objective."""
    model, train = config.model, config.train
    tuning = "default"
    if model.peft is not None:
        tuning = (
            f"{model.peft}-rank={model.peft_lora_r}-alpha={model.peft_lora_alpha}-dropout={model.peft_lora_dropout}"
        )
    _, objective = criterion.folder_names(config.kd.objective)
    if model.model_bits is not None:
        tuning += f"-bits={model.model_bits}"
    parts = [f"criterion={objective}", f"{tuning}-{settings.precision}"]
    if criterion.needs_teacher:
        parts.append(f"teacher={config.teacher.teacher_ckpt_name}")
    parts += _hyper_parameters(config.kd, criterion, objective) + _rows(config.on_policy)
    parts += [f"epoch={train.num_epochs}", _batch(train, ranks), f"lr={train.lr}"]
    if train.seed != _default(train, "seed"):
        parts.append(f"seed={train.seed}")
    name = "__".join(parts)
    if len(name.encode()) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 50]}__{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def _batch(args: TrainArguments, ranks: Ranks) -> str:
    """Micro-batch x accumulation steps x ranks per node (x nodes) = examples, or tokens, per step."""
    unit, micro_batch = "bsz", args.batch_size
    if args.tokens_per_micro_batch is not None:
        unit, micro_batch = "tokens", args.tokens_per_micro_batch
    factors, nodes = [micro_batch, args.gradient_accumulation_steps, ranks.per_node], ranks.world_size // ranks.per_node
    if nodes > 1:
        factors.append(nodes)
    total = micro_batch * args.gradient_accumulation_steps * ranks.world_size
    return f"{unit}={'x'.join(map(str, factors))}={total}"


def _hyper_parameters(args: KDArguments, criterion: Criterion, objective: str) -> list[str]:
    """name=value of what the objective uses: rate and temperature always, others if changed from the default."""
    parts = []
    for name in criterion.used_arguments():
        value = getattr(args, name)
        is_named = objective.endswith(f"+{value}")  # adakd+todi: the base objective
        if name in ("kd_rate", "kd_temperature") or (value != _default(args, name) and not is_named):
            parts.append(f"{SHORT.get(name, name.replace('_', '-'))}={value}")
    return parts


def _rows(args: OnPolicyArguments) -> list[str]:
    """The schedule of sampled rows, and what of it and of the sampling was changed from the default."""
    if not args.enabled:
        return []
    filled_in = ("student_gen", "gen_schedule", "gen_engine", "gen_max_new_tokens", "gen_tokens_per_batch")
    names = [field.name for field in fields(args) if field.name not in filled_in]
    changed = {name: value for name in names if (value := getattr(args, name)) != _default(args, name)}
    return [f"gen={args.schedule}", *(f"{name.replace('_', '-')}={value}" for name, value in changed.items())]


def _default(group: object, name: str) -> object:
    return next(field.default for field in fields(group) if field.name == name)
