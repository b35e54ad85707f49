"""Distinct-2: different bigrams of words per bigram, in per cent; low where answers repeat phrases. Li et al. 2016.

Of all answers: over their bigrams together, so an answer that repeats another one counts too.
"""

from collections.abc import Sequence
from itertools import pairwise

from evaluation.metrics.base import Answer, Metric, register


@register("distinct_2")
class Distinct2(Metric):
    def scores(self, answers: Sequence[Answer]) -> list[float]:
        return [_distinct([answer]) for answer in answers]

    def aggregate(self, answers: Sequence[Answer], scores: Sequence[float]) -> float:
        return _distinct(answers)


def _distinct(answers: Sequence[Answer]) -> float:
    """0 without any bigram."""
    bigrams = [pair for answer in answers for pair in pairwise(answer.text.split())]
    return 100 * len(set(bigrams)) / max(len(bigrams), 1)
