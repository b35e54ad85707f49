"""Where the teacher's hidden states come from: a live model.

In: a batch. Out: `TeacherStates` at its response positions, without gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data_utils.batches import Batch
from models.heads import LanguageModelHead, ModelLogits, SplitModel


class TeacherStates(NamedTuple):
    """hidden_NE at a batch's response positions, and the head that makes logits of them."""

    hidden_NE: Tensor
    head: LanguageModelHead | ModelLogits


class LiveTeacher:
    """Runs the teacher on every batch."""

    def __init__(self, model: SplitModel):
        self.model = model

    @torch.no_grad()
    def states(self, batch: Batch) -> TeacherStates:
        return TeacherStates(self.model.hidden_states(batch), self.model.head)
