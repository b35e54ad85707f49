"""Fills the teacher cache: one pass of the teacher, shared by all ranks, over the examples that the cache lacks."""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import distributed as dist
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PretrainedConfig

from arguments import DataArguments
from data_utils.batches import ExampleTable, Layout, collate
from models.heads import LanguageModelHead, SplitModel
from models.probes import batch_layout
from runtime.log import duration, logger
from runtime.ranks import all_ranks, is_main_process, rank, world_size
from teacher.cache import ShardWriter, TeacherCache
from teacher.loading import LoadedTeacher

SECONDS_BETWEEN_LINES = 60.0  # of progress in the log
TOKENS_PER_BATCH = 8192  # large batches fit, since there are no gradients and no logits

Missing = Sequence[tuple[ExampleTable, int]]


@dataclass(frozen=True)
class CacheFiller:
    """Adds the states of `datasets` that `cache` lacks. args, pad_id, device: of the batches that the teacher reads."""

    cache: TeacherCache
    datasets: Sequence[ExampleTable]
    args: DataArguments
    pad_id: int
    device: torch.device

    def is_complete(self) -> bool:
        """Whether the cache lacks no example; also logs how many it has. Raises ValueError as `missing` does."""
        missing, total = self.missing(), sum(map(len, self.datasets))
        logger.info("teacher cache %s: has %d of %d examples", self.cache.folder, total - len(missing), total)
        return not missing

    def missing(self) -> Missing:
        """What the cache lacks, longest first. Raises ValueError on every rank if the ranks find different examples."""
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

    def fill(self, load: Callable[[], LoadedTeacher], model: PretrainedConfig, dtype: torch.dtype) -> None:
        """Computes what is missing, with a teacher that is freed again. Raises ValueError, WriteError.

        load: collective. model, dtype: the teacher's, known before it is loaded.
        """
        with ExitStack() as held:
            with all_ranks():
                if is_main_process():
                    held.enter_context(self.cache.lock())
            with all_ranks():
                self.cache.refresh()  # another run may just have filled it
            missing = self.missing()
            self._check_room(missing, model, dtype)
            teacher = load()
            self._start(teacher.split)
            layout = batch_layout([teacher.split.model]) if self.args.packing else "padded"
            self.compute(teacher.split, missing, layout)
            teacher.free()

    @torch.no_grad()
    def compute(self, teacher: SplitModel, missing: Missing, layout: Layout) -> None:
        """The pass: batches of similar lengths are dealt to the ranks, each of which writes what it computed."""
        batches = token_batches(missing, TOKENS_PER_BATCH)
        tokens = [sum(int(data.lengths[index]) for data, index in batch) for batch in batches]
        writer, progress = ShardWriter(self.cache), _Progress(sum(tokens))
        with progress.bar, logging_redirect_tqdm([logger] if is_main_process() else []):
            for first in range(0, len(batches), world_size()):
                # A rank left without a batch runs an empty one: a sharded teacher needs all ranks in every forward.
                mine = batches[first + rank()] if first + rank() < len(batches) else []
                examples = [data[index] for data, index in mine]
                batch = collate(examples, self.pad_id, self.args.max_length, layout).to(self.device)
                writer.add(batch.examples, teacher.states(batch))
                progress.add(sum(tokens[first : first + world_size()]))
        with all_ranks():
            writer.close()
        logger.info("teacher cache: made in %.1f s", progress.seconds)
        with all_ranks():
            self._check_complete()

    def _check_room(self, missing: Missing, model: PretrainedConfig, dtype: torch.dtype) -> None:
        tokens = sum(int(data.responses[index]) for data, index in missing)
        head_size = 0 if self.cache.exists else model.vocab_size
        size = (tokens + head_size) * model.hidden_size * dtype.itemsize
        logger.info("teacher cache: %d response tokens to compute, %.3f GB on disk", tokens, size / 1e9)
        with all_ranks():
            if is_main_process():
                self.cache.check_room(size)

    def _start(self, teacher: SplitModel) -> None:
        if not isinstance(teacher.head, LanguageModelHead):
            raise ValueError(
                "--teacher-cache: this teacher's head is not one matrix, so its hidden states do not determine its "
                "logits; drop the flag"
            )
        with all_ranks():
            if is_main_process() and not self.cache.exists:
                self.cache.start(teacher.head, teacher.causal_lm.name_or_path)

    def _check_complete(self) -> None:
        self.cache.refresh()
        if self.cache.missing(self.datasets):
            raise ValueError(
                f"--teacher-cache {self.cache.folder}: a rank does not see what the others wrote; pass a folder that "
                "all nodes share"
            )


class _Progress:
    """Progress of the pass: a bar on a terminal, one line per minute in the log."""

    def __init__(self, total: int):
        hidden = None if is_main_process() else True  # None: hidden if there is no terminal
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
    """The examples, in their order, in batches of at most `budget` tokens, or of one example that is longer."""
    batches, tokens = [], budget
    for data, index in missing:
        length = int(data.lengths[index])
        if tokens + length > budget:
            batches.append([])
            tokens = 0
        batches[-1].append((data, index))
        tokens += length
    return batches
