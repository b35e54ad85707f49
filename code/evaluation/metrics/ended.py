"""Share of the answers that end with EOS, in per cent; the others reach the limit of new tokens."""

from collections.abc import Sequence

from evaluation.metrics.base import Answer, Metric, register


@register("ended_share")
class EndedShare(Metric):
    def scores(self, answers: Sequence[Answer]) -> list[float]:
        return [100.0 * answer.ended for answer in answers]
