"""Distiller: the student and its objective, as the one module that the DeepSpeed engine holds.

In: a batch, and the teacher's hidden states at the same response positions. Out: loss sums.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from criterions import Criterion
from criterions.fused import LossSums, ResponsePositions, chunk_bytes
from data_utils.batches import Batch
from models.cpu import add_input_gradient_sparsely
from models.heads import SplitModel
from teacher.states import TeacherStates


class Distiller(nn.Module):
    """Student and criterion. The teacher stays outside: the engine must neither partition nor train it."""

    def __init__(
        self, student: SplitModel, criterion: Criterion, loss_chunk_mb: int | None = None, compile_loss: bool = False
    ):
        super().__init__()
        self.student = student.model
        self.split_student = student
        self.criterion = criterion
        self.chunk_bytes = chunk_bytes(loss_chunk_mb, on_cpu=student.model.device.type == "cpu")
        self.compile_loss = compile_loss
        self._observers: tuple[Callable[[ResponsePositions], None], ...] = ()
        add_input_gradient_sparsely(student.causal_lm, student.head.parameters()[0])

    def forward(self, batch: Batch, teacher: TeacherStates | None = None) -> LossSums:
        """Sums over the batch's response positions: of the objective in training, of the NLL in evaluation.

        The dev loss is the NLL for every objective, so that runs can be compared. It goes through `forward` because
        ZeRO-3 gathers the head's weight on entry to the module that the engine holds.
        """
        positions = self._positions(batch, teacher)
        for observer in self._observers:
            observer(positions)
        if not self.training:
            return positions.walk(self.criterion.token_loss, ce_weight=1.0, kd_weight=0.0)
        return self.criterion.loss(positions)

    @contextmanager
    def observed_by(self, *observers: Callable[[ResponsePositions], None]) -> Iterator[None]:
        """In the block, the observers see the positions of every batch; under ZeRO-3 heads are whole only then.

        They must change nothing: neither parameters nor gradients nor random numbers.
        """
        self._observers = observers
        try:
            yield
        finally:
            self._observers = ()

    def _positions(self, batch: Batch, teacher: TeacherStates | None) -> ResponsePositions:
        return ResponsePositions(
            hidden_ND=self.split_student.states(batch),
            head=self.split_student.head,
            labels_N=batch.labels_N,
            chunk_bytes=self.chunk_bytes,
            teacher_hidden_NE=teacher.states_NE if teacher else None,
            teacher_head=teacher.head if teacher else None,
            positions_per_rank=batch.positions_per_rank,
            compiled=self.compile_loss,
            supervised=batch.supervised,
        )
