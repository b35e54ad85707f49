"""What the run will take: steps, memory of the fullest rank, disk. Estimates say that they are estimates.

Memory that is a matter of counting (weights, gradients, optimiser, teacher) must fit into what the device or the
machine has, or the run stops here. Activations and the loss are estimated, and what is free now changes: of these the
report only warns.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from deepspeed.accelerator import get_accelerator

from arguments import TrainConfig
from criterions.fused import chunk_bytes
from data_utils.dataset import InstructionDataset
from data_utils.epoch_plan import epoch_plan, total_steps, warmup_steps
from preflight.machine import Memory, host_memory
from preflight.report import Report, size
from preflight.skeleton import ModelFacts
from runtime.atomic import existing_part
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.ranks import Ranks
from teacher.building import teacher_dtype

FP32 = 4
ADAM = 2 * FP32  # two moments
LOSS_BLOCKS = 8  # fp32 [rows, vocabulary] blocks alive at once: logits, log-probabilities, gradient, of both models
SAMPLED_BATCHES = 64


# ---- data and steps --------------------------------------------------------------------------------------------------


def describe_data(
    config: TrainConfig, train: InstructionDataset, dev: InstructionDataset | None, report: Report
) -> None:
    """Rows, tokens, and what of them is lost to the limits."""
    args = config.data
    for name, data in (("train", train), ("dev", dev)):
        if data is None:
            report.warn(
                f"no {name}.jsonl in --data-dir {args.data_dir}, so nothing ranks the checkpoints: the latest is kept"
            )
            continue
        empty = int((data.responses == 0).sum())
        report.fact(
            name,
            f"{len(data):,} rows, {data.lengths.sum():,} tokens, {data.responses.sum():,} of responses; "
            f"{data.cut_prompts:,} prompts cut to --max-prompt-length {args.max_prompt_length}, {data.cut_responses:,} "
            f"responses to --max-length {args.max_length}; {empty:,} rows keep no response token",
        )
        for what, count, flag in (
            ("prompts", data.cut_prompts, "--max-prompt-length"),
            ("responses", data.cut_responses, "--max-length"),
        ):
            if count > 0.05 * len(data):
                loss = "" if what == "prompts" else ", so their ends and EOS are never learnt"
                report.warn(f"{name}: {count / len(data):.0%} of the {what} are cut{loss}; raise {flag}")


def check_positions(config: TrainConfig, longest: int, models: list[ModelFacts]) -> None:
    """Raises ValueError if a row, or an answer of --eval-gen, has more tokens than a model has positions."""
    needed = max(longest, config.data.max_length if config.train.eval_gen else 0)
    for model in models:
        positions = getattr(model.text_config, "max_position_embeddings", None)
        if positions is not None and needed > positions:
            raise ValueError(f"--max-length {config.data.max_length}: {model.path} has {positions} positions; lower it")


def estimate_steps(config: TrainConfig, train: InstructionDataset, ranks: Ranks, report: Report) -> None:
    """Steps, epochs, warm-up."""
    args, rows = config.train, len(train.lengths)
    plan = epoch_plan(train, args, ranks.world_size, "packed" if config.data.packing else "padded")
    of_epoch, total = len(plan), total_steps(plan, args)
    micro_batch = f"--batch-size {args.batch_size}"
    if args.tokens_per_micro_batch is not None:
        micro_batch = f"--tokens-per-micro-batch {args.tokens_per_micro_batch}"
    of_step = args.batch_size * plan.micro_batches_per_step
    micro_batches = f"--gradient-accumulation-steps {args.gradient_accumulation_steps} x {ranks.world_size} ranks"
    if args.tokens_per_micro_batch is None:
        micro_batches += f" = {of_step} examples"
    report.fact(
        "steps",
        f"{of_epoch:,} an epoch, {total:,} in all ({round(total / of_epoch, 2):,g} of {args.num_epochs:,} epochs); "
        f"a step: {micro_batch} x {micro_batches}",
    )
    if args.tokens_per_micro_batch is None and of_step > rows:
        report.warn(
            f"a step would take {of_step:,} rows, and there are {rows:,}: lower --batch-size, or use fewer ranks"
        )
    if warmup_steps(args, total) >= total:
        report.warn(
            f"the warm-up takes all {total:,} steps, so --lr {args.lr:g} is never reached; lower --warmup-iters"
        )


# ---- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank: on the device and, where offloaded, on the host.

    `estimated` is what cannot be counted; without "activations" where the architecture is none that they are known of.
    """

    device: dict[str, int]
    host: dict[str, int]
    estimated: dict[str, int]


def memory_plan(
    config: TrainConfig,
    settings: DeepSpeedSettings,
    student: ModelFacts,
    teacher: ModelFacts | None,
    tokens: int,
    ranks: Ranks,
) -> MemoryPlan:
    """tokens: of the fullest micro-batch."""
    dtype = settings.dtype
    width, half = dtype.itemsize, dtype != torch.float32
    zero, stage, world = settings.zero, settings.stage, ranks.world_size
    accumulates_fp32 = half and settings.raw.get("data_types", {}).get("grad_accum_dtype") == "fp32"
    gradient = (width + FP32 if accumulates_fp32 else width) * student.trainable
    parts = {
        "weights": student.parameters * width // (world if stage == 3 else 1),
        "gradients": gradient // (world if stage >= 2 else 1),
        "optimiser": optimiser_bytes(student, dtype) // (world if stage >= 1 else 1),
        "teacher": teacher_bytes(config, teacher, dtype, world if stage == 3 else 1) if teacher else 0,
        "ZeRO buckets": 2 * width * zero.get("reduce_bucket_size", 500_000_000) if stage and world > 1 else 0,
    }
    parts["ZeRO buckets"] = min(parts["ZeRO buckets"], 2 * width * student.trainable)
    offloaded = [
        part
        for part, key in (("optimiser", "offload_optimizer"), ("weights", "offload_param"))
        if (zero.get(key) or {}).get("device", "none") != "none"
    ]
    host = {part: parts.pop(part) for part in offloaded}
    if get_accelerator().device_name() != "cpu":
        host["loading"] = max(student.parameters, teacher.parameters if teacher else 0) * width
    block = chunk_bytes(config.kd.loss_chunk_mb, on_cpu=get_accelerator().device_name() == "cpu")
    head = student.head_rows * student.head_columns if student.head_trains else 0
    hidden = tokens * sum(model.head_columns for model in (student, teacher) if model)
    estimated = {
        "loss": LOSS_BLOCKS * block
        + hidden * width
        + head * (FP32 + (width if half else 0)),  # its gradient: the sum of the chunks and, at last, its cast
    }
    activations = activation_bytes(student, tokens, width, config.model.gradient_checkpointing)
    if activations is not None:
        estimated = {"activations": activations} | estimated
    return MemoryPlan({name: n for name, n in parts.items() if n}, host, estimated)


def optimiser_bytes(student: ModelFacts, dtype: torch.dtype) -> int:
    """Both moments and, in half precision, the fp32 weights."""
    return (ADAM + (FP32 if dtype != torch.float32 else 0)) * student.trainable


def teacher_bytes(config: TrainConfig, teacher: ModelFacts, of_student: torch.dtype, shares: int) -> int:
    """The teacher, of which a cache leaves the head; under ZeRO-3 a live one is sharded among the ranks."""
    width = teacher_dtype(config, of_student).itemsize
    if config.teacher.teacher_cache is not None:
        return teacher.head_rows * teacher.head_columns * width
    return teacher.parameters * width // shares


def activation_bytes(model: ModelFacts, tokens: int, width: int, checkpointing: bool) -> int | None:
    """What autograd keeps of a forward, without dropout masks and without attention matrices, as sdpa does it.

    A layer keeps the inputs of its norms (in fp32 beside the dtype) and of its matrix products, query, key, value and
    the attention's output, and of the MLP its inner activations; under gradient checkpointing its input only. None for
    architectures whose configuration does not describe such layers: state spaces, sizes that differ by layer.
    """
    hidden, layers, heads = (_size(model, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    if None in (hidden, layers, heads):
        return None
    inner = _size(model, "intermediate_size", "n_inner", default=4 * hidden)
    key_value_heads = _size(model, "num_key_value_heads", default=heads)
    if None in (inner, key_value_heads):
        return None
    gated = getattr(model.text_config, "hidden_act", None) in ("silu", "swish", "gelu_pytorch_tanh")
    norm = hidden * width + 2 * hidden * FP32
    key_value = hidden * key_value_heads // heads
    layer = 2 * norm + width * (4 * hidden + 2 * key_value + (4 if gated else 3) * inner)
    return tokens * (norm + (layers * hidden * width + layer if checkpointing else layers * layer))


def _size(model: ModelFacts, *names: str, default: int | None = None) -> int | None:
    """The first of the names that the configuration sets; None where that is no positive number."""
    found = (getattr(model.text_config, name, None) for name in names)
    size = next((value for value in found if value), default)
    return size if isinstance(size, int) and size > 0 else None


def estimate_memory(
    config: TrainConfig,
    settings: DeepSpeedSettings,
    student: ModelFacts,
    teacher: ModelFacts | None,
    lengths: np.ndarray,
    ranks: Ranks,
    report: Report,
) -> None:
    """Raises ValueError if what can be counted exceeds the memory there is; warns if all exceeds what is free now."""
    tokens = config.train.tokens_per_micro_batch
    tokens = tokens or fullest_batch(lengths, config.train.batch_size, config.train.seed)
    plan = memory_plan(config, settings, student, teacher, tokens, ranks)
    on_cpu = get_accelerator().device_name() == "cpu"
    host = host_memory().share(ranks.per_node)
    counted, estimated = plan.device, plan.estimated
    if on_cpu:  # offloading is from memory to the same memory
        counted = counted | plan.host
        estimated = estimated | {"libraries": psutil.Process().memory_info().rss}
    needed, about = sum(counted.values()), sum(estimated.values())
    device = host if on_cpu else Memory(get_accelerator().total_memory(), get_accelerator().available_memory())
    report.fact(
        "memory",
        f"a rank needs {size(needed)} ({_listed(counted)}) and about {size(about)} ({_listed(estimated)}) of the "
        f"{size(device.free)} that are free for it; the fullest micro-batch has {tokens:,} tokens",
    )
    if "activations" not in estimated:
        report.fact("", "activations are not estimated for this architecture")
    if not on_cpu:
        report.fact("", f"and on the host {_listed(plan.host)} of the {size(host.free)} that are free for it")
    remedy = (
        "--gradient-checkpointing; a smaller --batch-size with more --gradient-accumulation-steps; a smaller "
        "--loss-chunk-mb; a higher ZeRO stage or offload in --deepspeed_config; --peft lora"
    )
    of_host = 0 if on_cpu else sum(plan.host.values())
    for place, least, whole, memory in (
        ("memory", needed, needed + about, device),
        ("host memory", of_host, of_host, host),
    ):
        if least > memory.total:
            raise ValueError(
                f"{place}: weights, gradients, optimiser and teacher need {size(least)} a rank, which has "
                f"{size(memory.total)}; {remedy}"
            )
        if whole > memory.free:
            report.warn(
                f"{place} may run out: about {size(whole)} are needed, and {size(memory.free)} of "
                f"{size(memory.total)} are free now; {remedy}"
            )
    if teacher and config.teacher.teacher_cache is not None:
        whole = teacher.parameters * teacher_dtype(config, settings.dtype).itemsize
        if whole > device.free:
            report.warn(f"--teacher-cache: while it is filled, the whole teacher's {size(whole)} have to fit")


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {size(n)}" for name, n in parts.items())


def fullest_batch(lengths: np.ndarray, batch_size: int, seed: int) -> int:
    """Tokens of the fullest of some random micro-batches."""
    draw = np.random.default_rng(seed)
    count = min(batch_size, len(lengths))
    return int(max(lengths[draw.choice(len(lengths), count, replace=False)].sum() for _ in range(SAMPLED_BATCHES)))


# ---- disk ------------------------------------------------------------------------------------------------------------


def estimate_disk(config: TrainConfig, settings: DeepSpeedSettings, student: ModelFacts, report: Report) -> None:
    """Raises ValueError if --save-dir cannot be written, or has no room for what the run will keep there."""
    args, folder = config.train, Path(config.train.save_dir)
    existing = check_writable(folder)
    dtype = settings.dtype
    width = dtype.itemsize
    checkpoint = width * (student.parameters if config.model.peft is None else student.trainable)
    saves = -(-args.num_epochs // max(1, args.save_interval))
    # The next one is complete before the worst is deleted.
    count = saves if args.keep_best_n_checkpoints == -1 else min(saves, args.keep_best_n_checkpoints + 1)
    # Under LoRA the state has no frozen weights either: they come from --model-path again.
    state = width * student.trainable + optimiser_bytes(student, dtype)
    needed = count * checkpoint + 2 * state
    free = shutil.disk_usage(existing).free
    text = (
        f"{size(needed)} of {size(free)}: {count:,} checkpoints of {size(checkpoint)}, resume state of {size(state)} "
        "and its next version"
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
    """The teacher cache, if all rows are still missing; what is there already is known only when it is read."""
    if config.teacher.teacher_cache is None:
        return
    folder = Path(config.teacher.teacher_cache)
    free = shutil.disk_usage(check_writable(folder, "--teacher-cache")).free
    width = teacher_dtype(config, settings.dtype).itemsize
    needed = response_tokens * teacher.head_columns * width
    report.fact("cache", f"at most {size(needed)} of {size(free)} for {response_tokens:,} response tokens in {folder}")


def check_writable(folder: Path, flag: str = "--save-dir") -> Path:
    """The first folder on the way up that exists. Raises ValueError if nothing can be written there."""
    existing = existing_part(folder.absolute())
    try:
        if not existing.is_dir():
            raise NotADirectoryError(f"{existing} is a file")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{flag} {folder}: cannot be written ({reason}); pass a folder that can") from None
    return existing
