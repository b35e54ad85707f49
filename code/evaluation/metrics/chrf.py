"""chrF2 with the sacrebleu package: F-score of character n-grams; of all answers that of the corpus. Popović 2015."""

from sacrebleu.metrics import CHRF

from evaluation.metrics.base import register
from evaluation.metrics.bleu import SacreBleuMetric


@register("chrf")
class ChrF(SacreBleuMetric):
    sentence = corpus = CHRF()
