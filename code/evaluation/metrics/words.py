"""Length of the answers in words, as separated by white space."""

from collections.abc import Sequence

from evaluation.metrics.base import Answer, Metric, register


@register("words_per_answer")
class WordsPerAnswer(Metric):
    def scores(self, answers: Sequence[Answer]) -> list[float]:
        return [len(answer.text.split()) for answer in answers]
