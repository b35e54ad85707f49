"""Length of the answers in tokens, EOS included."""

from collections.abc import Sequence

from evaluation.metrics.base import Answer, Metric, register


@register("tokens_per_answer")
class TokensPerAnswer(Metric):
    def scores(self, answers: Sequence[Answer]) -> list[float]:
        return [answer.tokens for answer in answers]
