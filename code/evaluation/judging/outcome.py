"""From verdicts to wins, ties and losses of two runs, and to how much the order of the answers decided.

A run wins a comparison (an example under a seed) if the judge prefers it in both orders, or in one with a tie in the
other. Verdicts that contradict each other make a tie. An example counts with the mean over its seeds, as in
evaluation/comparison.py, which takes the outcome from here.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from evaluation.comparison import AVERAGE
from evaluation.judging.questions import Question, Verdict


class Shares(NamedTuple):
    """Of a run's comparisons, in per cent."""

    wins: float
    ties: float
    losses: float


@dataclass(frozen=True)
class Judged:
    """One question with its verdict. verdict: None: the judge gave none. asked: the answers were not identical."""

    question: Question
    verdict: Verdict | None
    asked: bool

    def preference(self, run: str) -> int:
        """1: for the run, -1: against it, 0: a tie."""
        sign = {"first": 1, "second": -1, "tie": 0}[self.verdict]
        return sign if self.question.first == run else -sign


@dataclass(frozen=True)
class Outcome:
    """scores: per example, in per cent, by run and set; the two runs' add up to 100.

    shares: of the first run, by set, and `AVERAGE`. comparisons: that have a result.
    unreadable: comparisons that are left out because the judge gave no verdict.
    """

    scores: dict[str, dict[str, np.ndarray]]
    shares: dict[str, Shares]
    comparisons: int
    unreadable: int


def outcome(judged: Iterable[Judged], runs: Sequence[str]) -> Outcome | None:
    """judged: both orders of each comparison together. None if no comparison has verdicts."""
    first, second = runs
    results: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # set -> row -> of each seed
    unreadable = 0
    for one, two in _both_orders(judged):
        if one.verdict is None or two.verdict is None:
            unreadable += 1
            continue
        total = one.preference(first) + two.preference(first)
        results[one.question.set][one.question.row].append((total > 0) - (total < 0))
    if not results:
        return None
    means = {name: np.array([np.mean(seeds) for seeds in rows.values()]) for name, rows in results.items()}
    scores = {
        first: {name: 50 + 50 * of_set for name, of_set in means.items()},
        second: {name: 50 - 50 * of_set for name, of_set in means.items()},
    }
    shares = {name: _shares(rows) for name, rows in results.items()}
    shares[AVERAGE] = Shares(*np.mean(list(shares.values()), axis=0).tolist())
    count = sum(len(seeds) for rows in results.values() for seeds in rows.values())
    return Outcome(scores, shares, count, unreadable)


def position_bias(judged: Iterable[Judged]) -> dict[str, float] | None:
    """In per cent. None if nothing was asked.

    flips: of the comparisons, those where both orders prefer the same position, so that the order decided.
    first, second, tie: of the verdicts, those for the answer that was shown first, for the other, for neither.
    """
    pairs = [(one, two) for one, two in _both_orders(judged) if one.asked and None not in (one.verdict, two.verdict)]
    if not pairs:
        return None
    flips = sum(one.verdict == two.verdict != "tie" for one, two in pairs)
    counts = Counter(found.verdict for pair in pairs for found in pair)
    shares = {name: 100 * counts[name] / (2 * len(pairs)) for name in ("first", "second", "tie")}
    return {"flips": 100 * flips / len(pairs), **shares}


def _both_orders(judged: Iterable[Judged]) -> list[tuple[Judged, Judged]]:
    by_comparison: dict[tuple, list[Judged]] = defaultdict(list)
    for found in judged:
        by_comparison[found.question.set, found.question.seed, found.question.row].append(found)
    return [(both[0], both[1]) for both in by_comparison.values() if len(both) == 2]


def _shares(rows: Mapping[int, Sequence[int]]) -> Shares:
    """Every example counts alike, however many of its seeds have verdicts."""
    return Shares(
        *(100 * float(np.mean([np.mean(np.equal(seeds, sign)) for seeds in rows.values()])) for sign in (1, 0, -1))
    )
