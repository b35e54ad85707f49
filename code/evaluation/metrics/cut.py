"""Share of the prompts that were cut, in per cent: those of more tokens than --max-prompt-length."""

from collections.abc import Sequence

from evaluation.metrics.base import Answer, Metric, register


@register("cut_share")
class CutShare(Metric):
    def scores(self, answers: Sequence[Answer]) -> list[float]:
        return [100.0 * answer.cut for answer in answers]
