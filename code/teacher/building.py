"""Builds the teacher of a run: live (whole on every rank, or sharded under ZeRO-3) or cached.

With --teacher-cache, examples that the cache lacks are computed first (`filling.py`), and the model is freed before the
student is loaded. If the cache has all examples, the model is not loaded at all. In a run that samples it is loaded
again to stay, for the samples.
"""

from collections.abc import Sequence
from functools import partial

import torch
from transformers import AutoConfig, PretrainedConfig

from arguments import TrainConfig
from data_utils.batches import ExampleTable
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.ranks import all_ranks
from teacher.cache import TeacherCache, fingerprint
from teacher.filling import CacheFiller
from teacher.loading import LoadedTeacher
from teacher.states import CachedTeacher, LiveTeacher, RoutedTeacher


def build_teacher(
    config: TrainConfig,
    settings: DeepSpeedSettings,
    datasets: Sequence[ExampleTable],
    pad_id: int,
    device: torch.device,
) -> LiveTeacher | CachedTeacher:
    """Raises ValueError if the cache is another teacher's, or does not fit the disk."""
    dtype = teacher_dtype(config, settings.dtype)
    load = partial(LoadedTeacher, config, dtype, settings, device)
    if config.teacher.teacher_cache is None:
        loaded = load()
        return LiveTeacher(loaded.split, loaded.engine)
    with all_ranks():
        cache = TeacherCache(config.teacher.teacher_cache, fingerprint(config.teacher, dtype))
    filler = CacheFiller(cache, datasets, config.data, pad_id, device)
    if not filler.is_complete():
        filler.fill(load, _teacher_config(config), dtype)
    if config.on_policy.samples:
        loaded = load()
        with all_ranks():
            return RoutedTeacher(loaded.split, loaded.engine, cache, device)
    with all_ranks():
        return CachedTeacher(cache, device)


def teacher_dtype(config: TrainConfig, student_dtype: torch.dtype) -> torch.dtype:
    """--teacher-dtype: by default the student's; `auto`: that of the teacher's checkpoint."""
    name = config.teacher.teacher_dtype
    if name is None:
        return student_dtype
    if name == "auto":
        return _teacher_config(config).dtype or torch.float32
    return getattr(torch, name)


def _teacher_config(config: TrainConfig) -> PretrainedConfig:
    teacher, trust = config.teacher, config.model.trust_remote_code
    return AutoConfig.from_pretrained(
        teacher.teacher_model_path, trust_remote_code=trust, revision=teacher.teacher_revision
    ).get_text_config()
