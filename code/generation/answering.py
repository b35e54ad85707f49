"""Answers the prompts of a data set part by part, so that a kill loses one part.

In: the rows of each split, a generator, the folder that keeps the parts. Out: the folder, complete.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from data_utils.encoding import RowEncoder
from data_utils.prompts import PromptTemplate
from generation.answered_data import AnsweredData, Part, Split
from generation.base import Generator
from runtime.log import report
from runtime.ranks import all_ranks, from_main_process, is_main_process


@dataclass(frozen=True)
class Prompts:
    """Token ids per split, cut as in training. too_long: how many were cut."""

    ids: Mapping[str, list[list[int]]]
    too_long: Mapping[str, int]

    @classmethod
    def encode(
        cls,
        splits: Sequence[Split],
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_length: int,
        template: PromptTemplate,
    ) -> "Prompts":
        encoder = RowEncoder(tokenizer, template, max_prompt_length)
        questions = {split.name: encoder.prompts(split.rows) for split in splits}
        return cls(
            {name: [question.ids for question in of_split] for name, of_split in questions.items()},
            {name: sum(question.cut for question in of_split) for name, of_split in questions.items()},
        )

    def parts(self, seeds: Sequence[int], size: int) -> list[Part]:
        """Of `size` prompts each, the longest first: what does not fit into memory fails early."""
        found = []
        for split, prompts in self.ids.items():
            order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
            rows = [order[first : first + size] for first in range(0, len(order), size)]
            found += [Part(split, seed, number, rows[number]) for seed in seeds for number in range(len(rows))]
        return found


def answer_all(
    data: AnsweredData,
    prompts: Prompts,
    parts: Sequence[Part],
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Answers the parts that `data` lacks. Collective. Raises ValueError if another process does it, WriteError."""
    with all_ranks():
        missing = data.start(parts) if is_main_process() else []
    missing = from_main_process(missing)
    for split, count in prompts.too_long.items():
        if count:
            report(f"{split}: {count} of {len(prompts.ids[split])} prompts are too long and were cut")
    if len(missing) < len(parts):
        report(f"{len(parts) - len(missing)} of {len(parts)} parts are there already")
    for place, part in enumerate(missing, start=len(parts) - len(missing) + 1):
        started = time.perf_counter()
        records = _answer(part, prompts.ids[part.split], generator, tokenizer)
        with all_ranks():
            if is_main_process():
                data.write(part, records)
        speed = sum(record["tokens"] for record in records) / (time.perf_counter() - started)
        report(f"part {place} of {len(parts)}: {part.split}, {len(records)} prompts, {speed:.0f} tokens/s")


def _answer(
    part: Part, prompts: Sequence[list[int]], generator: Generator, tokenizer: PreTrainedTokenizerBase
) -> list[dict]:
    """One record per prompt."""
    # A generator counts its rows from 0: with one seed for all parts, the same rows of each would draw the same noise.
    seed = int(np.random.SeedSequence((part.seed, part.number)).generate_state(1)[0])
    (answers,) = generator.generate([prompts[i] for i in part.rows], [seed]).values()
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [
        {"row": row, "text": text, "tokens": len(ids), "cut": ids[-1:] != [tokenizer.eos_token_id]}
        for row, text, ids in zip(part.rows, texts, answers)
    ]
