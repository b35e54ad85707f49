"""What a run needs, counted before it starts: steps, memory per rank, disk; and what the limits cut off its rows.

In: the flags, the models' parameter counts, the rows. Out: facts and warnings in the report, or a ValueError if the
weights, gradients, optimiser states and teacher of a rank need more memory than the device or the host has in total,
or the checkpoints more disk than is free. Activations and logits depend on the kernels and are not counted.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

from arguments import TrainConfig
from data_utils.dataset import InstructionDataset
from data_utils.epoch_plan import EpochPlan, epoch_plan, total_steps, warmup_steps
from data_utils.sources import training_sources
from models.loading import positions_of
from preflight.machine import host_memory
from preflight.on_policy import sampling_bytes
from preflight.report import Report, size
from preflight.skeleton import ModelFacts
from runtime.atomic import existing_part
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.log import counted_rows
from runtime.ranks import Ranks
from teacher.building import teacher_dtype

FP32 = 4
MOMENTS = 2 * FP32  # Adam keeps two per parameter
# Bytes per quantised weight. 4 bits: an 8-bit scale per 64 weights, an fp32 scale per 256 of those.
QUANTISED = {"4": 1 / 2 + 1 / 64 + FP32 / (64 * 256), "8": 1.0}
SAMPLED_BATCHES = 64
FEW = 0.05  # of the rows may be cut without a warning


# ---- data and steps --------------------------------------------------------------------------------------------------


def describe_data(
    config: TrainConfig, train: InstructionDataset, dev: InstructionDataset | None, report: Report
) -> None:
    """Rows, tokens, and how much the length limits cut off."""
    args = config.data
    if dev is None:
        report.warn(f"no dev.jsonl in --data-dir {args.data_dir}: the latest checkpoint is kept, not the best")
    elif (part := training_sources(args)[1]) is not None and part.part == "dev":
        report.fact("data", f"no dev file: {len(dev):,} rows of {part.name} are held out as dev, by their prompts")
    for name, data in (("train", train), ("dev", dev)):
        if data is None:
            continue
        empty = int((data.responses == 0).sum())
        forms = "; ".join(f"{count:,} of {form}" for form, count in data.forms.items())
        report.fact("rows", f"{name}: {forms}")
        chats = f"{data.cut_chats:,} chats lost their oldest turns; " if data.cut_chats else ""
        unfinished = f'; {data.unfinished:,} responses are marked "cut" and get no EOS' if data.unfinished else ""
        report.fact(
            name,
            f"{counted_rows(len(data))}, {data.lengths.sum():,} tokens, {data.responses.sum():,} of them responses; "
            f"{chats}{data.cut_prompts:,} prompts cut to --max-prompt-length {args.max_prompt_length}, "
            f"{data.cut_responses:,} responses to --max-length {args.max_length}{unfinished}; {empty:,} rows keep no "
            "response token",
        )
        for cut, count, flag in (
            ("prompts are cut", data.cut_prompts, "--max-prompt-length"),
            ("responses are cut, so their ends and EOS are never learnt", data.cut_responses, "--max-length"),
            ('responses are marked "cut" and get no EOS', data.unfinished, "--max-length where they are generated"),
        ):
            if count > FEW * len(data):
                report.warn(f"{name}: {count / len(data):.0%} of the {cut}; raise {flag}")


def check_positions(config: TrainConfig, longest: int, models: list[ModelFacts], report: Report) -> None:
    """Raises ValueError if a row, or an answer made in training, may have more tokens than a model has positions.

    A warning where only an answer of a later evaluation may have, which takes the lengths of the run.
    """
    data, answer = config.data, config.generation.max_new_tokens
    answers = config.train.eval_gen or config.on_policy.samples
    needed = {f"--max-length {data.max_length}": max(longest, data.max_length if answers else 0)}
    if config.train.eval_gen and answer is not None:
        needed[f"--max-new-tokens {answer}"] = data.max_prompt_length + answer
    for model in models:
        positions = positions_of(model.config)
        for flag, tokens in needed.items():
            if positions is not None and tokens > positions:
                raise ValueError(f"{flag}: {model.path} has {positions} positions; lower it")
        if positions is not None and data.max_length > positions:
            report.warn(
                f"--max-length {data.max_length}: {model.path} has {positions} positions, enough for these rows, but "
                f"an evaluation with the lengths of this run will be refused; pass --max-length {positions}"
            )


def estimate_steps(config: TrainConfig, train: InstructionDataset, ranks: Ranks, report: Report) -> EpochPlan:
    """Steps per epoch and in all, examples or tokens per step. Returns the plan of the epochs."""
    args, rows = config.train, len(train.lengths)
    plan = epoch_plan(train, args, ranks.world_size, "packed" if config.data.packing else "padded")
    per_epoch, total = len(plan), total_steps(plan, args)
    per_step = f"--gradient-accumulation-steps {args.gradient_accumulation_steps} x {ranks.world_size} ranks"
    if args.tokens_per_micro_batch is not None:
        per_step = f"--tokens-per-micro-batch {args.tokens_per_micro_batch} x {per_step}"
    else:
        examples = args.batch_size * plan.micro_batches_per_step
        per_step = f"--batch-size {args.batch_size} x {per_step} = {examples} examples"
        if examples > rows:
            report.warn(f"a step takes {examples:,} rows and there are {rows:,}; lower --batch-size or use fewer ranks")
    report.fact(
        "steps",
        f"{per_epoch:,} per epoch, {total:,} in all ({round(total / per_epoch, 2):,g} of {args.num_epochs:,} epochs); "
        f"per step {per_step}",
    )
    if warmup_steps(args, total) >= total:
        report.warn(f"the warm-up takes all {total:,} steps, --lr {args.lr:g} is never reached; lower --warmup-iters")
    return plan


# ---- memory ----------------------------------------------------------------------------------------------------------


def estimate_memory(
    config: TrainConfig,
    settings: DeepSpeedSettings,
    student: ModelFacts,
    teacher: ModelFacts | None,
    lengths: np.ndarray,
    ranks: Ranks,
    report: Report,
) -> None:
    """What a rank needs, by part. Raises ValueError if the device or the host does not have that much."""
    on_device, on_host = bytes_per_rank(config, settings, student, teacher, ranks)
    device, host = get_accelerator().total_memory(), host_memory() // ranks.per_node
    if get_accelerator().device_name() == "cpu":  # device and host are the same memory
        on_device, on_host, device = on_device | on_host, {}, host
    tokens = config.train.tokens_per_micro_batch
    tokens = tokens or fullest_batch(lengths, config.train.batch_size, config.train.seed)
    report.fact(
        "memory",
        f"{_listed(on_device)} of {size(device)} per rank; activations and logits come on top: the fullest micro-batch "
        f"has about {tokens:,} tokens",
    )
    if on_host:
        report.fact("", f"offloaded: {_listed(on_host)} of {size(host)} per rank on the host")
    if teacher is not None and config.teacher.teacher_cache is not None:
        whole = teacher_bytes(config, settings, teacher, ranks)
        if whole > device:
            report.warn(
                f"--teacher-cache: to fill it the whole teacher is loaded, which needs {size(whole)} per rank; there "
                f"are {size(device)}: fill it on a larger machine"
            )
    for place, parts, total in (("memory", on_device, device), ("host memory", on_host, host)):
        if sum(parts.values()) > total:
            raise ValueError(
                f"{place}: a rank needs {_listed(parts)}, and has {size(total)}; use --peft lora, more GPUs, or a "
                "--deepspeed_config with a higher ZeRO stage or offload"
            )


def bytes_per_rank(
    config: TrainConfig, settings: DeepSpeedSettings, student: ModelFacts, teacher: ModelFacts | None, ranks: Ranks
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by part, on the device and, offloaded, on the host: what can be counted before anything is loaded."""
    width, stage, world_size = settings.dtype.itemsize, settings.stage, ranks.world_size
    keeps_fp32_sum = width < FP32 and settings.raw.get("data_types", {}).get("grad_accum_dtype") == "fp32"
    gradients = (width + FP32 if keeps_fp32_sum else width) * student.trainable
    parts = {
        "weights": weight_bytes(student, settings.dtype, config.model.model_bits) // (world_size if stage == 3 else 1),
        "gradients": gradients // (world_size if stage >= 2 else 1),
        "optimiser": optimiser_bytes(student, settings) // (world_size if stage >= 1 else 1),
    }
    if teacher is not None and config.teacher.teacher_cache is not None and not config.on_policy.samples:
        # its head alone stays
        parts["teacher"] = teacher.head_rows * teacher.head_columns * teacher_dtype(config, settings.dtype).itemsize
    elif teacher is not None:
        parts["teacher"] = teacher_bytes(config, settings, teacher, ranks)
    if stage and world_size > 1:
        bucket = min(settings.zero.get("reduce_bucket_size", 500_000_000), student.trainable)
        parts["ZeRO buckets"] = 2 * width * bucket
    parts |= sampling_bytes(config, settings, student)
    on_host = {
        part: parts.pop(part)
        for part, key in (("optimiser", "offload_optimizer"), ("weights", "offload_param"))
        if (settings.zero.get(key) or {}).get("device", "none") != "none"
    }
    return parts, on_host


def weight_bytes(model: ModelFacts, dtype: torch.dtype, bits: str | None) -> int:
    """All weights in `dtype` or, with `bits`, those of the linear layers before the head in so many."""
    if bits is None:
        return model.parameters * dtype.itemsize
    return (model.parameters - model.linear) * dtype.itemsize + round(model.linear * QUANTISED[bits])


def optimiser_bytes(student: ModelFacts, settings: DeepSpeedSettings) -> int:
    """Both moments and, in half precision, the fp32 weights."""
    return (MOMENTS + (FP32 if settings.dtype != torch.float32 else 0)) * student.trainable


def teacher_bytes(config: TrainConfig, settings: DeepSpeedSettings, teacher: ModelFacts, ranks: Ranks) -> int:
    """A live teacher's bytes per rank: whole, or under ZeRO-3 a share."""
    whole = weight_bytes(teacher, teacher_dtype(config, settings.dtype), config.teacher.teacher_bits)
    return whole // (ranks.world_size if settings.stage == 3 else 1)


def fullest_batch(lengths: np.ndarray, batch_size: int, seed: int) -> int:
    """Tokens of the fullest of some random micro-batches."""
    draw = np.random.default_rng(seed)
    count = min(batch_size, len(lengths))
    return int(max(lengths[draw.choice(len(lengths), count, replace=False)].sum() for _ in range(SAMPLED_BATCHES)))


def _listed(parts: dict[str, int]) -> str:
    """The sum, and each part."""
    return f"{size(sum(parts.values()))} ({', '.join(f'{name} {size(n)}' for name, n in parts.items() if n)})"


# ---- disk ------------------------------------------------------------------------------------------------------------


def estimate_disk(config: TrainConfig, settings: DeepSpeedSettings, student: ModelFacts, report: Report) -> None:
    """Raises ValueError if --save-dir cannot be written, or has no room for what the run will keep there."""
    args, folder = config.train, Path(config.train.save_dir)
    free = shutil.disk_usage(check_writable(folder)).free
    width = settings.dtype.itemsize
    checkpoint = width * (student.parameters if config.model.peft is None else student.trainable)
    saves = -(-args.num_epochs // max(1, args.save_interval))
    # A new checkpoint is complete before the worst one is deleted.
    count = saves if args.keep_best_n_checkpoints == -1 else min(saves, args.keep_best_n_checkpoints + 1)
    # Frozen weights are in neither: they come from --model-path again.
    state = width * student.trainable + optimiser_bytes(student, settings)
    needed = count * checkpoint + 2 * state
    text = (
        f"{size(needed)} of {size(free)} free: checkpoints {count:,} x {size(checkpoint)}, resume state and its next "
        f"version 2 x {size(state)}"
    )
    report.fact("disk", text)
    if needed > free:
        raise ValueError(
            f"--save-dir {folder}: the disk is too small: the run needs {text}; make room, pass another --save-dir, or "
            "keep less with --keep-best-n-checkpoints and --save-interval"
        )


def estimate_cache(
    config: TrainConfig, settings: DeepSpeedSettings, teacher: ModelFacts, response_tokens: int, report: Report
) -> None:
    """The size of a complete teacher cache; how much of it exists already is known only when it is read."""
    if config.teacher.teacher_cache is None:
        return
    folder = Path(config.teacher.teacher_cache)
    free = shutil.disk_usage(check_writable(folder, "--teacher-cache")).free
    width = teacher_dtype(config, settings.dtype).itemsize
    needed = response_tokens * teacher.head_columns * width
    report.fact(
        "cache", f"at most {size(needed)} of {size(free)} free, for {response_tokens:,} response tokens, in {folder}"
    )


def check_writable(folder: Path, flag: str = "--save-dir") -> Path:
    """The folder itself, or its nearest parent that exists. Raises ValueError if nothing can be written there."""
    existing = existing_part(folder.absolute())
    try:
        if not existing.is_dir():
            raise NotADirectoryError(f"{existing} is a file")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{flag} {folder}: cannot be written ({reason}); pass a writable folder") from None
    return existing
