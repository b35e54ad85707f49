"""BLEU with the sacrebleu package (its tokenizer 13a): of all answers that of the corpus, per answer sentence BLEU.

Papineni et al. 2002; Post 2018, arXiv 1804.08771. The sentence score leaves out n-grams longer than the answer.
"""

from collections.abc import Sequence

from sacrebleu.metrics import BLEU
from sacrebleu.metrics.base import Metric as Scorer

from evaluation.metrics.base import Answer, Metric, register


class SacreBleuMetric(Metric):
    """Base of the metrics that sacrebleu computes. A subclass defines both scorers."""

    sentence: Scorer
    corpus: Scorer

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        return [self.sentence.sentence_score(answer.text, answer.references).score for answer in answers]

    def aggregate(self, answers: Sequence[Answer], scores: Sequence[float]) -> float:
        most = max(len(answer.references) for answer in answers)
        padded = [(*answer.references, *[None] * (most - len(answer.references))) for answer in answers]
        return self.corpus.corpus_score([answer.text for answer in answers], list(zip(*padded))).score


@register("bleu")
class Bleu(SacreBleuMetric):
    sentence = BLEU(effective_order=True)
    corpus = BLEU(force=True)  # no advice about detokenising in the log
