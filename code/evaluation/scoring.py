"""From rows to answers to scores: for `code/evaluate.py`, and for the dev scores of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from data_utils.encoding import Question, RowEncoder
from data_utils.prompts import PromptTemplate
from data_utils.rows import Row
from evaluation.metrics import Answer, Metric
from generation.base import Generator
from runtime.ranks import from_main_process, is_main_process


@dataclass(frozen=True)
class EvaluationSet:
    """Rows to answer; prompts of more than `max_prompt_length` tokens are cut (`data_utils.encoding`)."""

    rows: Sequence[Row]
    tokenizer: PreTrainedTokenizerBase
    max_prompt_length: int
    template: PromptTemplate

    @cached_property
    def prompts(self) -> list[Question]:
        return RowEncoder(self.tokenizer, self.template, self.max_prompt_length).prompts(self.rows)

    @property
    def cut_prompts(self) -> int:
        return sum(prompt.cut for prompt in self.prompts)

    def answers(self, generator: Generator, seeds: Sequence[int]) -> dict[int, list[Answer]]:
        """Per seed, the answer to each row, on rank 0; every rank generates."""
        ids_of_seeds = generator.generate([prompt.ids for prompt in self.prompts], seeds)
        if not is_main_process():
            return {}
        return {seed: self._read(ids_of_answers) for seed, ids_of_answers in ids_of_seeds.items()}

    def scores(
        self, generator: Generator, seeds: Sequence[int], metrics: Mapping[str, Metric]
    ) -> dict[int, dict[str, float]]:
        """Per seed, each metric over all answers, on every rank; every rank generates, rank 0 scores."""
        answers_of_seeds = self.answers(generator, seeds)
        return from_main_process({seed: score(answers, metrics).overall for seed, answers in answers_of_seeds.items()})

    def _read(self, ids_of_answers: Sequence[list[int]]) -> list[Answer]:
        texts = self.tokenizer.batch_decode(ids_of_answers, skip_special_tokens=True)
        return [
            Answer(
                row.prompt,
                text.strip(),
                row.responses,
                tokens=len(ids),
                ended=ids[-1:] == [self.tokenizer.eos_token_id],
                cut=prompt.cut,
            )
            for row, prompt, text, ids in zip(self.rows, self.prompts, texts, ids_of_answers)
        ]


@dataclass(frozen=True)
class Scores:
    """Scores of the same answers by several metrics: `each` has one per answer, `overall` one for all answers."""

    each: dict[str, list[float]]
    overall: dict[str, float]


def score(answers: Sequence[Answer], metrics: Mapping[str, Metric]) -> Scores:
    each = {name: metric.scores(answers) for name, metric in metrics.items()}
    return Scores(each, {name: metric.aggregate(answers, each[name]) for name, metric in metrics.items()})


def warnings(metrics: Mapping[str, Metric], texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Warnings about texts that a metric cannot judge, at most one per metric. texts: by kind, such as "answers"."""
    found = []
    for metric in metrics.values():
        of_metric = (metric.warning(what, of_what) for what, of_what in texts.items())
        found += [*filter(None, of_metric)][:1]
    return found
