"""Cross-entropy: supervised fine-tuning (SFT), and the CE term beside every other objective."""

from torch.nn import functional as F

from criterions.base import Criterion, register


@register("cross_entropy", "sft")
class CrossEntropy(Criterion):
    """-log q(y). Without labels, the teacher's most likely token stands for y (hard-label distillation)."""

    needs_teacher = False

    def folder_names(self, name):
        return "sft", "cross_entropy"

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        if labels_N is None:
            labels_N = teacher_logits_NV.argmax(-1)
        return F.cross_entropy(student_logits_NV, labels_N, reduction="none")
