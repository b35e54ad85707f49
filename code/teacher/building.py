"""Builds the teacher of a run: live (whole on every rank, or sharded under ZeRO-3), or cached.

With --teacher-cache, what the cache lacks of the data is computed first (`filling.py`), and the teacher's body is freed
again before the student is loaded; a run whose examples are all there loads no body at all.
"""

from collections.abc import Sequence

import torch
from transformers import AutoConfig, PretrainedConfig

from arguments import TrainConfig
from data_utils.batches import ExampleTable
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.ranks import all_ranks
from teacher.cache import TeacherCache, fingerprint
from teacher.filling import CacheFiller
from teacher.loading import LoadedTeacher
from teacher.states import CachedTeacher, LiveTeacher


def build_teacher(
    config: TrainConfig,
    settings: DeepSpeedSettings,
    datasets: Sequence[ExampleTable],
    pad_id: int,
    device: torch.device,
) -> LiveTeacher | CachedTeacher:
    """The teacher of the run. Raises ValueError if the cache is another teacher's, or finds no room."""
    dtype = teacher_dtype(config, settings.dtype)

    def load() -> LoadedTeacher:
        return LoadedTeacher(config, dtype, settings, device)

    if config.teacher.teacher_cache is None:
        loaded = load()
        return LiveTeacher(loaded.split, loaded.engine)
    with all_ranks():
        cache = TeacherCache(config.teacher.teacher_cache, fingerprint(config.teacher, dtype))
    filler = CacheFiller(cache, datasets, load, config.data, pad_id, device)
    if filler.log_missing():
        model = _teacher_config(config)
        filler.fill(config.teacher.teacher_model_path, model.hidden_size, model.vocab_size, dtype)
    return CachedTeacher(cache, device)


def teacher_dtype(config: TrainConfig, of_student: torch.dtype) -> torch.dtype:
    """--teacher-dtype; as the student's by default, or (auto) as the teacher was stored."""
    name = config.teacher.teacher_dtype
    if name is None:
        return of_student
    if name == "auto":
        return _teacher_config(config).dtype or torch.float32
    return getattr(torch, name)


def _teacher_config(config: TrainConfig) -> PretrainedConfig:
    teacher, trust = config.teacher, config.model.trust_remote_code
    return AutoConfig.from_pretrained(
        teacher.teacher_model_path, trust_remote_code=trust, revision=teacher.teacher_revision
    ).get_text_config()
