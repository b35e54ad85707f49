"""Distiller: the student and its objective, as the one module that the DeepSpeed engine holds.

In: a batch, and the teacher's hidden states at the same response positions. Out: loss sums.
"""

from torch import nn

from criterions import Criterion
from criterions.fused import LossSums, ResponseRows, chunk_bytes
from data_utils.batches import Batch
from models.heads import SplitModel, add_input_gradient_sparsely
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
        add_input_gradient_sparsely(student)

    def forward(self, batch: Batch, teacher: TeacherStates | None = None) -> LossSums:
        """Sums over the batch's response positions: of the objective in training, of the NLL in evaluation.

        The dev loss is the NLL for every objective, so that runs can be compared. It goes through `forward` because
        ZeRO-3 gathers the head's weight on entry to the module that the engine holds.
        """
        rows = self._rows(batch, teacher)
        if not self.training:
            return rows.walk(self.criterion, ce_weight=1.0, kd_weight=0.0)
        return self.criterion.loss(rows)

    def _rows(self, batch: Batch, teacher: TeacherStates | None) -> ResponseRows:
        return ResponseRows(
            hidden_ND=self.split_student.hidden_states(batch),
            head=self.split_student.head,
            labels_N=batch.labels_N,
            chunk_bytes=self.chunk_bytes,
            teacher_hidden_NE=teacher.hidden_NE if teacher else None,
            teacher_head=teacher.head if teacher else None,
            rows_of_ranks=batch.rows_of_ranks,
            compiled=self.compile_loss,
        )
