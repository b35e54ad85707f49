"""A teacher in memory: whole on every rank or, under ZeRO-3, partitioned over the ranks."""

import gc
from functools import partial

import torch
from deepspeed import DeepSpeedEngine

from arguments import TrainConfig
from models.heads import LanguageModelHead, SplitModel
from models.loading import load_teacher, place
from models.probes import split
from models.sharding import free, partitioned_loading, prefetch_for, shard, sharding_settings, whole_linear
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.ranks import all_ranks


class LoadedTeacher:
    """split: the model and its head. engine: holds the parameters of a partitioned model, so it must live as long."""

    def __init__(self, config: TrainConfig, dtype: torch.dtype, settings: DeepSpeedSettings, device: torch.device):
        args, sharding = config.model, sharding_settings(settings, dtype)
        load = partial(load_teacher, config.teacher, dtype, args.attn_implementation, args.trust_remote_code)
        self.engine: DeepSpeedEngine | None = None
        if sharding and config.teacher.teacher_peft_path is None:
            with partitioned_loading(sharding):  # collective
                model = load()
        else:  # also if there is an adapter, which is merged into whole weights
            with all_ranks():
                model = load()
        if sharding:
            self.engine = shard(model, sharding)
        else:
            place(model, device)
        self.split: SplitModel = split(model)
        if self.engine is not None and isinstance(self.split.head, LanguageModelHead):
            # The loss uses the head outside the model, a cache even without the model.
            self.split.head.linear = whole_linear(self.split.head.linear)
            prefetch_for(model.base_model, self.engine)

    def free(self) -> None:
        self.split = None
        if self.engine is not None:
            free(self.engine)
        self.engine = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
