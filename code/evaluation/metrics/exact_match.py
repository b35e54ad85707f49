"""Exact match: 100 if the answer equals one of the references, else 0; case and surrounding space are ignored."""

from collections.abc import Sequence

from evaluation.metrics.base import Answer, Metric, register


@register("exact_match")
class ExactMatch(Metric):
    def scores(self, answers: Sequence[Answer]) -> list[float]:
        return [100.0 * _matches(answer) for answer in answers]


def _matches(answer: Answer) -> bool:
    """An empty answer never matches: an empty reference stands for a missing one."""
    text = _normalised(answer.text)
    return text != "" and text in map(_normalised, answer.references)


def _normalised(text: str) -> str:
    return text.strip().lower()
