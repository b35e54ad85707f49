"""ROUGE-L with the rouge_score package: stemmed, F-measure, the best of the references, times 100."""

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """One score an answer, 0 to 100."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        100 * max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in right)
        for answer, right in zip(answers, references, strict=True)
    ]
