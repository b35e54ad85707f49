"""Fills the teacher cache: one pass of the teacher over the examples that it lacks, shared by all ranks."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import distributed as dist
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from arguments import DataArguments
from data_utils.batches import Layout, collate
from data_utils.dataset import InstructionDataset
from models.heads import LanguageModelHead, SplitModel
from models.probes import batch_layout
from runtime.log import duration, logger
from runtime.ranks import all_ranks, is_main_process, rank, world_size
from teacher.cache import ShardWriter, TeacherCache
from teacher.loading import LoadedTeacher

SECONDS_BETWEEN_LINES = 60.0  # of the log, about the pass
TOKENS_PER_BATCH = 8192  # of the pass: no gradient and no logits, so there is room for many

Missing = Sequence[tuple[InstructionDataset, int]]


@dataclass(frozen=True)
class CacheFiller:
    """load: of the teacher, collective. pad_id, device: of the batches."""

    cache: TeacherCache
    datasets: Sequence[InstructionDataset]
    load: Callable[[], LoadedTeacher]
    args: DataArguments
    pad_id: int
    device: torch.device

    def log_missing(self) -> bool:
        """Whether the cache lacks an example. Raises as `missing` does."""
        missing, total = self.missing(), sum(map(len, self.datasets))
        logger.info("teacher cache %s: has %d of %d examples", self.cache.folder, total - len(missing), total)
        return bool(missing)

    def missing(self) -> Missing:
        """What the cache lacks, longest first. Raises ValueError on all ranks unless all of them find the same."""
        missing = self.cache.missing(self.datasets)
        places = repr([(self.datasets.index(data), index) for data, index in missing]).encode()
        found_by_ranks: list = [None] * world_size()
        dist.all_gather_object(found_by_ranks, (self.cache.made_by, hashlib.blake2b(places).hexdigest()))
        if any(found != found_by_ranks[0] for found in found_by_ranks):
            raise ValueError(
                f"--teacher-cache {self.cache.folder}: the ranks find different states there; pass a folder that all "
                "nodes share, or start again when no other run is filling it"
            )
        return missing

    def fill(self, teacher: str, hidden_size: int, vocabulary_size: int, dtype: torch.dtype) -> None:
        """Computes what is missing, with a teacher that is freed again.

        teacher: its path, for the manifest. The others decide the size on disk. Raises ValueError, WriteError.
        """
        cache, main = self.cache, is_main_process()
        with all_ranks():
            lock = cache.lock() if main else None
        with all_ranks():
            cache.refresh()  # another run may have filled it until just now
        missing = self.missing()
        tokens = sum(int(data.responses[index]) for data, index in missing)
        size = (tokens + (0 if cache.exists else vocabulary_size)) * hidden_size * dtype.itemsize
        logger.info("teacher cache: %d response tokens to compute, %.3f GB on disk", tokens, size / 1e9)
        with all_ranks():
            if main:
                cache.check_room(size)
        loaded = self.load()
        if not isinstance(loaded.split.head, LanguageModelHead):
            raise ValueError(
                "--teacher-cache: this teacher's head is not one matrix, so its hidden states do not determine its "
                "logits; drop the flag"
            )
        is_new = not cache.exists
        dist.barrier()  # all have looked
        with all_ranks():
            if is_new and main:
                cache.start(loaded.split.head, teacher)
        layout = batch_layout([loaded.split.model]) if self.args.packing else "padded"
        self.compute(loaded.split, missing, layout, in_step=loaded.engine is not None)
        loaded.free()
        del lock

    @torch.no_grad()
    def compute(self, teacher: SplitModel, missing: Missing, layout: Layout, in_step: bool = False) -> None:
        """The pass: batches of like lengths, dealt to the ranks, each of which writes what it computed.

        in_step: ranks without a batch of their own run an empty one, as a sharded teacher needs.
        """
        batches = token_batches(missing, TOKENS_PER_BATCH)
        tokens = [sum(int(data.lengths[index]) for data, index in batch) for batch in batches]
        writer, progress = ShardWriter(self.cache), _Progress(sum(tokens))
        with progress.bar, logging_redirect_tqdm([logger] if is_main_process() else []):
            for first in range(0, len(batches), world_size()):
                mine = batches[first + rank()] if first + rank() < len(batches) else []
                if mine or in_step:
                    examples = [data[index] for data, index in mine]
                    batch = collate(examples, self.pad_id, self.args.max_length, layout).to(self.device)
                    writer.add(batch.examples, teacher.states(batch))
                progress.add(sum(tokens[first : first + world_size()]))
        with all_ranks():
            writer.close()
        logger.info("teacher cache: made in %.1f s", progress.seconds)
        with all_ranks():
            self._check_complete(missing)

    def _check_complete(self, missing: Missing) -> None:
        self.cache.refresh()
        if self.cache.missing(list({id(data): data for data, _ in missing}.values())):
            raise ValueError(
                f"--teacher-cache {self.cache.folder}: a rank does not see what the others wrote; pass a folder that "
                "all nodes share"
            )


class _Progress:
    """A bar on a terminal, and a line of the log per minute."""

    def __init__(self, total: int):
        hidden = None if is_main_process() else True  # None: without a terminal
        self.bar = tqdm(total=total, desc="teacher cache", unit="token", disable=hidden, leave=False)
        self._total, self._done = total, 0
        self._started, self._logged = time.perf_counter(), -SECONDS_BETWEEN_LINES

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def add(self, tokens: int) -> None:
        self.bar.update(tokens)
        self._done += tokens
        seconds = self.seconds
        if seconds - self._logged > SECONDS_BETWEEN_LINES:
            self._logged = seconds
            eta = duration(seconds * (self._total / self._done - 1))
            logger.info("teacher cache: %d of %d tokens, eta %s", self._done, self._total, eta)


def token_batches(missing: Missing, budget: int) -> list[Missing]:
    """Runs of the (longest-first) examples with at most `budget` tokens, or one example."""
    batches, tokens = [], budget
    for data, index in missing:
        length = int(data.lengths[index])
        if tokens + length > budget:
            batches.append([])
            tokens = 0
        batches[-1].append((data, index))
        tokens += length
    return batches
