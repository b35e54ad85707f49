"""BERTScore F1 with the bert_score package and its model for English, times 100. Zhang et al. 2020, arXiv 1904.09675.

Slow, and not in requirements.txt: `pip install bert_score`, then `--metrics bertscore`.
"""

import importlib.util
from collections.abc import Sequence

from arguments import GenerationArguments
from evaluation.metrics.base import Answer, Metric, register


@register("bertscore")
class BertScore(Metric):
    optional = True

    def __init__(self, args: GenerationArguments):
        super().__init__(args)
        if importlib.util.find_spec("bert_score") is None:
            raise ValueError("--metrics bertscore: bert_score is not installed; pip install bert_score")

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        from bert_score import score

        texts, references = [answer.text for answer in answers], [list(answer.references) for answer in answers]
        _, _, f1 = score(texts, references, lang="en")
        return [100 * value for value in f1.tolist()]
