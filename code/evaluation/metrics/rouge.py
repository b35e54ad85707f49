"""ROUGE-L with the rouge_score package: stemmed, F-measure, the best of the references, times 100.

Its own tokenizer ("ascii", the default, whose scores compare with those of other programs) keeps only the letters a-z
and digits, and so nothing of a Chinese or Russian text. "unicode" takes words in any script, and single characters in
scripts without spaces (Chinese, Japanese, Thai, ...); English text gets the same tokens from both.
"""

import os
import unicodedata
from collections.abc import Sequence

import datasets
import regex
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

from evaluation.metrics.base import Answer, Metric, register

ANSWERS_PER_PROCESS = 256  # below, a further process costs more than it saves
NOTABLE_LOSS = 0.5  # share of letters and digits that a tokenizer drops
WITHOUT_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"


@register("rougeL")
class RougeL(Metric):
    def scores(self, answers: Sequence[Answer]) -> list[float]:
        texts, references = [answer.text for answer in answers], [answer.references for answer in answers]
        return rouge_l(texts, references, self.args.rouge_tokenizer)

    def warning(self, what: str, texts: Sequence[str]) -> str | None:
        """A warning if the tokenizer drops more than half of the letters and digits."""
        if self.args.rouge_tokenizer != "ascii":
            return None
        letters = [char for text in texts for char in text if char.isalnum()]
        lost = sum(not char.isascii() for char in letters) / max(len(letters), 1)
        if lost <= NOTABLE_LOSS:
            return None
        unseen = f"{lost:.0%} of the letters of the {what}"
        return f"ROUGE-L does not see {unseen}, which are not a-z: --rouge-tokenizer unicode"


class UnicodeTokenizer(Tokenizer):
    """Lower-case words of letters, marks and digits after NFKC; single characters in scripts without spaces."""

    TOKEN = regex.compile(
        rf"[[{WITHOUT_SPACES}]&&[\p{{L}}\p{{N}}]]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{WITHOUT_SPACES}]]+", regex.V1
    )

    def __init__(self):
        self._ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        words = self.TOKEN.findall(unicodedata.normalize("NFKC", text).lower())
        return [token for word in words for token in (self._ascii.tokenize(word) if word.isascii() else [word])]


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = "ascii") -> list[float]:
    """One score per answer, 0 to 100; many answers are shared among processes."""
    processes = min(os.cpu_count() or 1, len(answers) // ANSWERS_PER_PROCESS)
    if processes < 2:
        return _scores(answers, references, tokenizer)
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict({"answers": list(answers), "references": list(map(list, references))})
    scored = table.map(
        lambda part: {"score": _scores(part["answers"], part["references"], tokenizer)},
        batched=True,
        num_proc=processes,
        remove_columns=table.column_names,
        keep_in_memory=True,
    )
    return list(scored["score"])


def _scores(answers: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> list[float]:
    scorer = RougeScorer(["rougeL"], use_stemmer=True, tokenizer=UnicodeTokenizer() if tokenizer == "unicode" else None)
    return [
        100 * max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in right)
        for answer, right in zip(answers, references)
    ]
