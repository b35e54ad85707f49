"""ROUGE-L with the rouge_score package: stemmed, F-measure, the best of the references, times 100."""

import os
from collections.abc import Sequence

import datasets
from rouge_score.rouge_scorer import RougeScorer

ANSWERS_PER_PROCESS = 256  # below, a further process costs more than it saves


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """One score an answer, 0 to 100; many answers are shared among processes."""
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers and references for {len(references)}")
    processes = min(os.cpu_count() or 1, len(answers) // ANSWERS_PER_PROCESS)
    if processes < 2:
        return _scores(list(answers), references)
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict({"answers": list(answers), "references": list(map(list, references))})
    scored = table.map(
        lambda part: {"score": _scores(part["answers"], part["references"])},
        batched=True,
        num_proc=processes,
        remove_columns=table.column_names,
        keep_in_memory=True,
    )
    return list(scored["score"])


def _scores(answers: list[str], references: Sequence[Sequence[str]]) -> list[float]:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        100 * max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in right)
        for answer, right in zip(answers, references)
    ]
