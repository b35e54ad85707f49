"""DistiLLM-2's pair of objectives: one for the responses in the data, one for the student's own. arXiv 2503.07067.

The paper's pair is sfkl on the teacher's answers and srkl on the student's, to the same prompts.
"""

from criterions.base import Criterion
from criterions.fused import LossSums, ResponsePositions


class Pair(Criterion):
    """(2 - b) * data's objective + b * the objective of sampled rows; each is a sum over its own positions.

    weight: b. The loop divides both by the tokens of the step, where the paper takes a mean per sequence.
    """

    def __init__(self, data: Criterion, student: Criterion, weight: float):
        """Raises ValueError if an objective selects positions: its share would follow the losses of both kinds."""
        for flag, criterion in (("--kd-objective", data), ("--student-kd-objective", student)):
            if criterion.selects or not criterion.needs_teacher:
                what = "chooses its positions" if criterion.selects else "has no teacher"
                raise ValueError(f"{flag}: this objective {what}; --gen-schedule pair takes plain divergences")
        super().__init__(data.args)
        self._data, self._student, self._weight = data, student, weight

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        return self._data.token_loss(student_logits_NV, teacher_logits_NV, labels_N)

    def loss(self, positions: ResponsePositions) -> LossSums:
        if positions.supervised:
            sums, weight = self._data.loss(positions), 2 - self._weight
        else:
            sums, weight = self._student.loss(positions), self._weight
        return sums._replace(loss=weight * sums.loss)

    def used_arguments(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._data.used_arguments(), *self._student.used_arguments())))

    def folder_names(self, name: str) -> tuple[str, str]:
        return self._data.folder_names(name)
