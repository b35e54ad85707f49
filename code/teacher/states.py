"""Where the teacher's states come from: a live model, the cache on disk, or each where it can.

In: a batch. Out: `TeacherStates` at its response positions, without gradient.

Shapes: N response positions, C of them in a chunk, E size of a state (the teacher's hidden size, or its vocabulary if
its head is `ModelLogits`), V vocabulary of the teacher.
"""

from typing import NamedTuple, Protocol

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor

from criterions.fused import ResponsePositions
from data_utils.batches import Batch
from models.heads import LanguageModelHead, ModelLogits, SplitModel
from teacher.cache import TeacherCache


class TeacherStates(NamedTuple):
    """States at a batch's response positions, and the head that turns them into logits."""

    states_NE: Tensor
    head: LanguageModelHead | ModelLogits


class Teacher(Protocol):
    """What training needs of a teacher."""

    head: LanguageModelHead | ModelLogits

    def states(self, batch: Batch) -> TeacherStates:
        """The states at every response position of the batch."""


class LiveTeacher:
    """Runs the teacher on every batch.

    engine: holds the parameters of a sharded teacher, so it must live as long as the teacher.
    """

    def __init__(self, model: SplitModel, engine: DeepSpeedEngine | None = None):
        self.model = model
        self.head = model.head
        self.engine = engine

    @torch.no_grad()
    def states(self, batch: Batch) -> TeacherStates:
        return TeacherStates(self.model.states(batch), self.head)


class CachedTeacher:
    """Reads the states from a cache; only the teacher's head is in memory."""

    def __init__(self, cache: TeacherCache, device: torch.device, head: LanguageModelHead | None = None):
        """head: the teacher's, if it is in memory already."""
        self.cache = cache
        self.head = head or cache.head(device)
        self._device = device

    def states(self, batch: Batch) -> TeacherStates:
        if batch.examples:
            hidden_NE = self.cache.states(batch.examples)
        else:  # a rank without an example in this micro-step
            weight_VE = self.head.linear.weight
            hidden_NE = weight_VE.new_zeros(0, weight_VE.shape[1])
        if self._device.type != "cpu" and hidden_NE.is_cpu:
            hidden_NE = hidden_NE.pin_memory()  # so that the copy does not wait for the device
        return TeacherStates(hidden_NE.to(self._device, non_blocking=True), self.head)


class RoutedTeacher(LiveTeacher):
    """Reads the states of data from a cache, and runs the teacher on what the student sampled."""

    def __init__(self, model: SplitModel, engine: DeepSpeedEngine | None, cache: TeacherCache, device: torch.device):
        super().__init__(model, engine)
        self._cached = CachedTeacher(cache, device, self.head)

    def states(self, batch: Batch) -> TeacherStates:
        return self._cached.states(batch) if batch.supervised else super().states(batch)


@torch.no_grad()
def negative_log_likelihood(teacher: Teacher, batch: Batch, chunk_bytes: int) -> Tensor:
    """Of the labels, over the shared vocabulary, summed over the response positions. chunk_bytes: as below."""
    states_NE, head = teacher.states(batch)
    return ResponsePositions(states_NE, head, batch.labels_N, chunk_bytes).walk(None, ce_weight=1.0, kd_weight=0.0).ce


@torch.no_grad()
def dropped_mass(teacher: Teacher, batch: Batch, chunk_bytes: int) -> Tensor:
    """The probability that the teacher gives to ids that its head is cut by, summed over the response positions.

    An fp64 scalar on the device. chunk_bytes: size of one fp32 [C, V] chunk.
    """
    whole_head, kept = teacher.head.uncut(), teacher.head.vocabulary_size
    states_NE = teacher.states(batch).states_NE
    total = torch.zeros((), dtype=torch.float64, device=states_NE.device)
    for states_CE in states_NE.split(max(1, chunk_bytes // (4 * whole_head.vocabulary_size))):
        probabilities_CV = whole_head.finish(whole_head.project(states_CE)).softmax(-1)
        total += probabilities_CV[:, kept:].sum(dtype=torch.float64)
    return total
