"""Builds the teacher of a run: live (whole on every rank, or sharded under ZeRO-3), or cached.

With --teacher-cache, what the cache lacks of the data is computed first, by all ranks, and the teacher's body is freed
again before the student is loaded; a run whose rows are all there loads no body at all.
"""

import gc
import hashlib
import logging
import time
from collections.abc import Sequence

import torch
from deepspeed import DeepSpeedEngine
from torch import distributed as dist
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import AutoConfig

from arguments import TrainConfig
from data_utils.batches import Layout, collate
from data_utils.dataset import InstructionDataset
from models.heads import LanguageModelHead, SplitModel
from models.loading import load_teacher
from models.probes import batch_layout, split
from models.sharding import free, partitioned_loading, prefetch_for, shard, sharding_settings, whole_linear
from teacher.states import CachedTeacher, LiveTeacher
from teacher.cache import ShardWriter, TeacherCache, fingerprint
from training.engine import training_dtype
from training.metrics import duration
from runtime.ranks import together

SECONDS_BETWEEN_LINES = 60.0  # of the log, about that pass
TOKENS_PER_BATCH = 8192  # of the pass that fills a cache: no gradient, no logits, so there is room for many

Missing = Sequence[tuple[InstructionDataset, int]]


class LoadedTeacher:
    """A teacher in memory: whole on this rank, or this rank's share of it."""

    def __init__(self, config: TrainConfig, dtype: torch.dtype, settings: dict, device: torch.device):
        args, sharding = config.model, sharding_settings(settings, dtype)

        def load():
            return load_teacher(config.teacher, dtype, args.attn_implementation, args.trust_remote_code)

        self.engine: DeepSpeedEngine | None = None
        if sharding and config.teacher.teacher_peft_path is None:
            with partitioned_loading(sharding):  # collective
                model = load()
        else:  # an adapter is merged into whole weights
            model = together(load)
        if sharding:
            self.engine = shard(model, sharding)
        else:
            model.to(device)
        self.split: SplitModel = split(model)
        if self.engine is not None and isinstance(self.split.head, LanguageModelHead):
            # The loss uses it outside the model, and a cache when there is no model.
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


def build_teacher(
    config: TrainConfig,
    settings: dict,
    datasets: Sequence[InstructionDataset],
    pad_id: int,
    device: torch.device,
    logger: logging.Logger,
) -> LiveTeacher | CachedTeacher:
    """The teacher of the run. Raises ValueError if the cache is another teacher's, or finds no room."""
    dtype = teacher_dtype(config, training_dtype(settings))
    if config.teacher.teacher_cache is None:
        loaded = LoadedTeacher(config, dtype, settings, device)
        return LiveTeacher(loaded.split, loaded.engine)
    cache = together(lambda: TeacherCache(config.teacher.teacher_cache, fingerprint(config.teacher, dtype)))
    missing = _missing(cache, datasets)
    total = sum(map(len, datasets))
    logger.info("teacher cache %s: has %d of %d examples", cache.folder, total - len(missing), total)
    if missing:
        _fill(cache, datasets, config, settings, dtype, pad_id, device, logger)
    return CachedTeacher(cache, device)


def _missing(cache: TeacherCache, datasets: Sequence[InstructionDataset]) -> Missing:
    """What the cache lacks. Raises ValueError on all ranks unless all of them find the same."""
    missing = cache.missing(datasets)
    places = repr([(datasets.index(data), index) for data, index in missing]).encode()
    of_ranks: list = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, (cache.made_by, hashlib.blake2b(places).hexdigest()))
    if any(found != of_ranks[0] for found in of_ranks):
        raise ValueError(
            f"--teacher-cache {cache.folder}: the ranks find different states there; pass a folder that all nodes "
            "share, or start again when no other run is filling it"
        )
    return missing


def teacher_dtype(config: TrainConfig, of_student: torch.dtype) -> torch.dtype:
    """--teacher-dtype; as the student's by default, or (auto) as the teacher was stored."""
    name = config.teacher.teacher_dtype
    if name is None:
        return of_student
    if name == "auto":
        return _teacher_config(config).dtype or torch.float32
    return getattr(torch, name)


def _teacher_config(config: TrainConfig):
    teacher, trust = config.teacher, config.model.trust_remote_code
    return AutoConfig.from_pretrained(
        teacher.teacher_model_path, trust_remote_code=trust, revision=teacher.teacher_revision
    ).get_text_config()


def _fill(
    cache: TeacherCache,
    datasets: Sequence[InstructionDataset],
    config: TrainConfig,
    settings: dict,
    dtype: torch.dtype,
    pad_id: int,
    device: torch.device,
    logger: logging.Logger,
) -> None:
    """Computes what is missing and frees the teacher."""
    main = dist.get_rank() == 0
    lock = together(cache.lock, only=main)
    together(cache.refresh)  # another run may have filled it until just now
    missing = _missing(cache, datasets)
    model = _teacher_config(config)
    tokens = sum(int(data.responses[index]) for data, index in missing)
    size = (tokens + (0 if cache.exists else model.vocab_size)) * model.hidden_size * dtype.itemsize
    logger.info("teacher cache: %d response tokens to compute, %.3f GB on disk", tokens, size / 1e9)
    together(lambda: cache.check_room(size), only=main)
    loaded = LoadedTeacher(config, dtype, settings, device)
    if not isinstance(loaded.split.head, LanguageModelHead):
        raise ValueError(
            "--teacher-cache: this teacher's head is not one matrix, so its hidden states are not all it knows; "
            "drop the flag"
        )
    if not cache.exists:
        dist.barrier()  # all have looked
        together(lambda: cache.start(loaded.split.head, config.teacher.teacher_model_path), only=main)
    layout = batch_layout([loaded.split.model]) if config.data.packing else "padded"
    in_step = loaded.engine is not None
    compute_states(cache, loaded.split, missing, layout, config.data.max_length, pad_id, device, in_step, logger)
    loaded.free()
    del lock


@torch.no_grad()
def compute_states(
    cache: TeacherCache,
    teacher: SplitModel,
    missing: Missing,
    layout: Layout,
    max_length: int,
    pad_id: int,
    device: torch.device,
    in_step: bool,
    logger: logging.Logger,
) -> None:
    """The pass: batches of like lengths, dealt to the ranks, each of which writes what it computed.

    in_step: ranks without a batch of their own run an empty one, as a sharded teacher needs.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    batches = token_batches(missing, TOKENS_PER_BATCH)
    tokens = [sum(int(data.lengths[index]) for data, index in batch) for batch in batches]
    writer, started = ShardWriter(cache), time.perf_counter()
    said = started
    hidden = True if rank else None  # None: without a terminal
    bar = tqdm(total=sum(tokens), desc="teacher cache", unit="token", disable=hidden, leave=False)
    with bar as progress, logging_redirect_tqdm([logger] if rank == 0 else []):
        for first in range(0, len(batches), world_size):
            mine = batches[first + rank] if first + rank < len(batches) else []
            if mine or in_step:
                batch = collate([data[index] for data, index in mine], pad_id, max_length, layout).to(device)
                writer.add(batch.examples, teacher.hidden_states(batch))
            progress.update(sum(tokens[first : first + world_size]))
            now, done = time.perf_counter(), sum(tokens[: first + world_size])
            if first == 0 or now - said > SECONDS_BETWEEN_LINES:
                said = now
                eta = duration((now - started) * (sum(tokens) / done - 1))
                logger.info("teacher cache: %d of %d tokens, eta %s", done, sum(tokens), eta)
    together(writer.close)
    logger.info("teacher cache: made in %.1f s", time.perf_counter() - started)
    together(lambda: _check_complete(cache, missing))


def _check_complete(cache: TeacherCache, missing: Missing) -> None:
    cache.refresh()
    if cache.missing(list({id(data): data for data, _ in missing}.values())):
        raise ValueError(
            f"--teacher-cache {cache.folder}: a rank does not see what the others wrote; pass a folder that all nodes "
            "share"
        )


def token_batches(missing: Missing, budget: int) -> list[Missing]:
    """Runs of the (longest-first) examples with at most `budget` tokens, or one example."""
    batches, fill = [], budget
    for data, index in missing:
        length = int(data.lengths[index])
        if fill + length > budget:
            batches.append([])
            fill = 0
        batches[-1].append((data, index))
        fill += length
    return batches
