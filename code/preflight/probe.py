"""Packing and heads of the models themselves, loaded in the run's dtype and probed as training probes them."""

from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator
from transformers import PreTrainedModel

from arguments import TrainConfig
from models.heads import LanguageModelHead
from models.loading import load_student, load_teacher
from models.probes import batch_layout, split
from preflight.machine import host_memory
from preflight.report import Report, size
from preflight.skeleton import ModelFacts
from runtime.deepspeed_settings import DeepSpeedSettings
from teacher.building import teacher_dtype

STUDENT, TEACHER = "--model-path", "--teacher-model-path"


def probe(config: TrainConfig, settings: DeepSpeedSettings, models: dict[str, ModelFacts], report: Report) -> None:
    """Facts; a warning where training will fall back to something slower; or why nothing was tried.

    models: by flag. Raises ValueError if one cannot be loaded.
    """
    dtypes = {STUDENT: settings.dtype}
    if TEACHER in models:
        dtypes[TEACHER] = teacher_dtype(config, dtypes[STUDENT])
    reason = "correct the errors first" if report.errors else _obstacle(config, models, dtypes)
    if reason is not None:
        report.fact("probes", f"not tried: {reason}; training tries packing and heads when it has loaded the models")
        return
    loaded = {flag: _load(flag, config, dtypes[flag]) for flag in models}
    for flag, model in loaded.items():
        head = split(model).head
        packs = config.data.packing and batch_layout([model]) != "padded"
        tried = f"can{'' if packs else 'not'} be packed, " if config.data.packing else ""
        report.fact("probes", f"{flag}: {tried}{head.kind}")
        if config.data.packing and not packs:
            report.warn(
                f"{flag}: it does not see where a packed example ends, so batches will be padded: right, but slower"
            )
        if not isinstance(head, LanguageModelHead):
            report.warn(
                f"{flag}: its head is more than a linear layer, so whole logits are made: right, but it takes memory"
            )
    if config.data.packing:
        live = [model for flag, model in loaded.items() if flag == STUDENT or not config.teacher.teacher_cache]
        report.fact("", f"batches {batch_layout(live)}")


def _obstacle(config: TrainConfig, models: dict[str, ModelFacts], dtypes: dict[str, torch.dtype]) -> str | None:
    """Why the models cannot be loaded here."""
    attention, device = config.model.attn_implementation, get_accelerator().device_name()
    if attention and attention.startswith("flash") and device == "cpu":
        return f"{attention} runs on GPUs only"
    for flag, model in models.items():
        if not Path(model.path).is_dir():
            return f"{flag} {model.path} is a hub id, of which the doctor loads no weights"
    needed = sum(model.parameters * dtypes[flag].itemsize for flag, model in models.items())
    free = host_memory().free if device == "cpu" else get_accelerator().available_memory()
    return f"the weights take {size(needed)}, and {size(free)} are free" if needed > free else None


def _load(flag: str, config: TrainConfig, dtype: torch.dtype) -> PreTrainedModel:
    args = config.model
    if flag == STUDENT:
        model = load_student(args, dtype)
    else:
        model = load_teacher(config.teacher, dtype, args.attn_implementation, args.trust_remote_code)
    return model.to(get_accelerator().device_name())
