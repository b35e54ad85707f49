"""Rows -> token ids: of prompts, for generation, and of examples, for training, both cut to the limits.

A text that is too long loses the middle of its prompt and the end of its response. A chat first loses its oldest turns,
but for the system message, and is cut like a text only when one question is left.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from arguments import DataArguments
from data_utils.prompts import ChatTemplate, Message, PromptTemplate, cut_prompts, encode_pairs, encode_prompts
from data_utils.prompts.chat import Spans, shortened
from data_utils.rows import Row


class Encoded(NamedTuple):
    """An example, and what the limits did to it.

    spans: of the response, begin and end of each part that is learnt, one after another; empty: all of it.
    cut: whether the middle of the prompt, the end of the response is missing. turns: how many are missing.
    unfinished: the response came without its end (`Row.cut`), and is not counted as cut here.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    spans: list[int]
    prompt_cut: bool
    response_cut: bool
    turns_cut: int
    unfinished: bool = False


class Question(NamedTuple):
    """cut: whether the prompt was too long."""

    ids: list[int]
    cut: bool


@dataclass(frozen=True)
class RowEncoder:
    """`prompts` for generation, `examples` for training. args: for training."""

    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    max_prompt_length: int
    args: DataArguments | None = None

    def prompts(self, rows: Sequence[Row]) -> list[Question]:
        """Of each row, the ids of its prompt."""
        prompts = [row.prompt for row in rows if not row.chat]
        texts = iter(encode_prompts(self.tokenizer, prompts) if prompts else ())
        return [self._question(row) if row.chat else self._cut(next(texts)) for row in rows]

    def examples(self, rows: Sequence[Row]) -> list[Encoded]:
        """Of each row, prompt and first response; of a chat, all answers or (--train-on last) the last one.

        Raises ValueError with the place of a chat that the template refuses.
        """
        of_texts = iter(self._texts([row for row in rows if not row.chat]))
        of_chats = iter(self._chats([row for row in rows if row.chat]))
        found = [next(of_chats if row.chat else of_texts) for row in rows]
        return [
            example._replace(response_cut=False, unfinished=True) if row.cut else example
            for row, example in zip(rows, found)
        ]

    def _question(self, row: Row) -> Question:
        template, messages = self.template, row.chat[:-1]

        def ids(messages: Sequence[Message]) -> list[int]:
            return template.ids([template.text(messages, ask=True)])[0]

        whole = template.ids([row.prompt])[0]
        if len(whole) <= self.max_prompt_length:
            return Question(whole, False)
        shorter = shortest_first_cut(messages, lambda part: len(ids(part)) <= self.max_prompt_length)
        return self._cut(ids(shorter))._replace(cut=True)

    def _texts(self, rows: Sequence[Row]) -> list[Encoded]:
        prompts, responses = [row.prompt for row in rows], [row.responses[0] for row in rows]
        pairs = zip(*encode_pairs(self.tokenizer, prompts, responses, [row.cut for row in rows])) if rows else ()
        return [self._limited(prompt, response, []) for prompt, response in pairs]

    def _chats(self, rows: Sequence[Row]) -> list[Encoded]:
        if not rows:
            return []
        template: ChatTemplate = self.template
        try:
            encoded = template.encode([row.chat for row in rows], self.args.train_on)
            encoded = [_without_end(*of_chat) if row.cut else of_chat for row, of_chat in zip(rows, encoded)]
        except ValueError:
            encoded = [self._encode_chat(row) for row in rows]  # names the row
        return [self._fitted(row, *of_chat) for row, of_chat in zip(rows, encoded)]

    def _encode_chat(self, row: Row, messages: Sequence[Message] | None = None) -> tuple[list[int], Spans]:
        try:
            (encoded,) = self.template.encode([messages or row.chat], self.args.train_on)
        except ValueError as error:
            raise ValueError(f"{row.place}: {error}") from None
        return _without_end(*encoded) if row.cut else encoded

    def _fitted(self, row: Row, ids: list[int], spans: Spans) -> Encoded:
        messages = row.chat
        if not self._fits(ids, spans):
            messages = shortest_first_cut(row.chat, lambda part: self._fits(*self._encode_chat(row, part)))
            ids, spans = self._encode_chat(row, messages)
        start = spans[0][0]
        of_response = [place - start for span in spans for place in span]
        if of_response == [0, len(ids) - start]:
            of_response = []
        example = self._limited(ids[:start], ids[start:], of_response)
        return example._replace(turns_cut=len(row.chat) - len(messages))

    def _fits(self, ids: list[int], spans: Spans) -> bool:
        return len(ids) <= self.args.max_length and spans[0][0] <= self.max_prompt_length

    def _cut(self, ids: list[int]) -> Question:
        cut = len(ids) > self.max_prompt_length
        if cut:
            (ids,) = cut_prompts(self.tokenizer, [ids], self.max_prompt_length, self.template.ending)
        return Question(ids, cut)

    def _limited(self, prompt_ids: list[int], response_ids: list[int], spans: list[int]) -> Encoded:
        prompt_ids, prompt_cut = self._cut(prompt_ids)
        room = self.args.max_length - len(prompt_ids)
        learnt = spans[-1] if spans else len(response_ids)  # what a template writes after the last answer may go
        spans = [min(place, room) for place in spans]
        return Encoded(prompt_ids, response_ids[:room], spans, prompt_cut, learnt > room, 0)


def _without_end(ids: list[int], spans: Spans) -> tuple[list[int], Spans]:
    """The chat up to the last answer, without the token that ends its turn."""
    start, end = spans[-1]
    return ids[: end - 1], [*spans[:-1], (start, end - 1)]


def shortest_first_cut(messages: Sequence[Message], fits: Callable[[list[Message]], bool]) -> list[Message]:
    """The chat without as few of its oldest turns as fit; without all but the last question if nothing fits."""
    parts = shortened(messages)
    if not parts:
        return list(messages)
    return parts[min(bisect_left(parts, True, key=fits), len(parts) - 1)]
