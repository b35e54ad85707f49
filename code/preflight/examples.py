"""Examples of the data as the model reads them, with marks around the tokens that are learnt."""

from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from data_utils.batches import Example
from data_utils.dataset import InstructionDataset
from preflight.report import Report

LONGEST = 240  # characters of a part; the middle of a longer one is left out


def show_examples(data: InstructionDataset, tokenizer: PreTrainedTokenizerBase, report: Report, count: int) -> None:
    """The first `count` examples, each a fact of the report."""
    for number in range(min(count, len(data))):
        report.fact("example" if number == 0 else "", marked(data[number], tokenizer))


def marked(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of an example in one line; what is learnt is in «»."""
    ids = np.concatenate([example.prompt_ids, example.response_ids]).astype(int)
    learnt = np.zeros(len(ids), dtype=bool)
    learnt[example.targets] = True
    borders = [0, *(np.flatnonzero(np.diff(learnt)) + 1).tolist(), len(ids)]
    return "".join(
        f"«{text}»" if learnt[begin] else text
        for begin, end in pairwise(borders)
        for text in [_shortened(tokenizer.decode(ids[begin:end].tolist()))]
    )


def _shortened(text: str) -> str:
    text = text.encode("unicode_escape").decode() if text.isascii() else text.replace("\n", "\\n")
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
