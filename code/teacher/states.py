"""Where the teacher's hidden states come from: a live model, or the cache that one has written.

In: a batch. Out: `TeacherStates` at its response positions, without gradient.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data_utils.batches import Batch
from models.heads import LanguageModelHead, ModelLogits, SplitModel
from teacher.cache import TeacherCache


class TeacherStates(NamedTuple):
    """hidden_NE at a batch's response positions, and the head that makes logits of them."""

    hidden_NE: Tensor
    head: LanguageModelHead | ModelLogits


class Teacher(Protocol):
    """What the loop needs of a teacher."""

    head: LanguageModelHead | ModelLogits

    def states(self, batch: Batch) -> TeacherStates:
        """Of every response position of the batch."""


class LiveTeacher:
    """Runs the teacher on every batch.

    engine: of a sharded teacher; it has to live as long.
    """

    def __init__(self, model: SplitModel, engine: object | None = None):
        self.model = model
        self.head = model.head
        self.engine = engine

    @torch.no_grad()
    def states(self, batch: Batch) -> TeacherStates:
        return TeacherStates(self.model.hidden_states(batch), self.head)


class CachedTeacher:
    """Reads what the teacher said; of the model only the head is in memory."""

    def __init__(self, cache: TeacherCache, device: torch.device):
        self.cache = cache
        self.head = cache.head(device)
        self._device = device

    def states(self, batch: Batch) -> TeacherStates:
        if batch.examples:
            hidden_NE = self.cache.states(batch.examples)
        else:  # a rank without an example in this micro-step
            weight_VE = self.head.linear.weight
            hidden_NE = weight_VE.new_zeros(0, weight_VE.shape[1])
        if self._device.type != "cpu" and hidden_NE.is_cpu:
            hidden_NE = hidden_NE.pin_memory()  # or the copy would wait for the device
        return TeacherStates(hidden_NE.to(self._device, non_blocking=True), self.head)


@torch.no_grad()
def dropped_mass(teacher: Teacher, batch: Batch, chunk_bytes: int) -> Tensor:
    """Sum over the response positions of the probability that the teacher gives to ids that its head is cut by.

    An fp64 scalar on the device. chunk_bytes: size of one fp32 [positions, vocabulary] block.
    """
    head, shared = teacher.head, teacher.head.vocabulary_size
    head.vocabulary_size = head.whole_size
    try:
        hidden_NE = teacher.states(batch).hidden_NE
        total = torch.zeros((), dtype=torch.float64, device=hidden_NE.device)
        for hidden_CE in hidden_NE.split(max(1, chunk_bytes // (4 * head.whole_size))):
            logits_CV = head.finish(head.project(hidden_CE))
            total += logits_CV.softmax(-1)[:, shared:].sum(dtype=torch.float64)
    finally:
        head.vocabulary_size = shared
    return total
