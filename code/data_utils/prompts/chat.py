"""The tokenizer's own chat template, and the tokens of a chat that are learnt.

The ids are those of the tokenizer's `apply_chat_template`: the template writes BOS and all other special tokens. An
answer is learnt from where the generation prompt ends up to and including the token that ends its turn.

A template that writes today's date (Llama 3.2, SmolLM3, Mistral Small) writes DATE instead: otherwise token ids, and
with them caches and evaluations, would differ from day to day.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from data_utils.prompts.base import Message, PromptTemplate

PROBE = "answer"  # looked for in what a template writes
SHIPPED = "configs/chat.jinja"  # a template for any tokenizer
DATE = datetime(2024, 7, 26)  # as Llama 3's templates write it where they are given none
TODAY = re.compile(r"""strftime_now\s*\(\s*(["'])([^"']*)\1\s*\)""")  # Transformers' function, with the date's format
OTHER_USE = re.compile(r"strftime_now(?!\s+is\s+(not\s+)?defined)")

Spans = list[tuple[int, int]]  # first token, and the one after the last


class ChatTemplate(PromptTemplate):
    """The chat template of `tokenizer`, whose EOS becomes the token that ends a turn: generation stops there.

    source: as the tokenizer has it. Raises ValueError if it has none, or one that does not end an answer with a special
    token.
    """

    takes_chats = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str = "chat"):
        self.name, self.tokenizer = name, tokenizer
        if not tokenizer.chat_template:
            raise ValueError(
                f"--prompt-template {name}: the tokenizer of {tokenizer.name_or_path} has no chat template; pass "
                f"{SHIPPED}, or the teacher's chat_template.jinja if it has one, or train with alpaca"
            )
        self.source = tokenizer.get_chat_template()
        self._dated = dated(self.source, name)
        question = [{"role": "user", "content": "question"}]
        self.ending = self.text(question, ask=True).removeprefix(self.text(question))
        self.end_of_turn = self._end_of_turn(question)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(self.end_of_turn)

    @property
    def identity(self) -> str:
        return f"chat {hashlib.sha256(self._dated.encode()).hexdigest()[:12]}"

    def save(self, folder: Path) -> str:
        return "chat"  # the tokenizer is saved with it

    def text(self, messages: Sequence[Message], ask: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), chat_template=self._dated, tokenize=False, add_generation_prompt=ask
            )
        except (TemplateError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"--prompt-template {self.name}: the template refuses this chat ({reason})") from None

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def encode(
        self, chats: Sequence[Sequence[Message]], train_on: Literal["all", "last"] = "all"
    ) -> list[tuple[list[int], Spans]]:
        """Token ids of each chat, and of them the answers that are learnt.

        Raises ValueError if the template writes an answer elsewhere than it asks for one.
        """
        wholes = [self.text(messages) for messages in chats]
        answers = [learnt_answers(messages, train_on) for messages in chats]
        before = [
            self._before(whole, messages, answer)
            for whole, messages, of_chat in zip(wholes, chats, answers)
            for answer in of_chat
        ]
        ids_before = iter(self.ids(before))
        encoded = []
        for ids, of_chat in zip(self.ids(wholes), answers):
            starts = [common_prefix(next(ids_before), ids) for _ in of_chat]
            encoded.append((ids, [(start, self._end(ids, start)) for start in starts]))
        return encoded

    def _before(self, whole: str, messages: Sequence[Message], answer: int) -> str:
        text = self.text(messages[:answer], ask=True)
        if not whole.startswith(text):
            last = answer == len(messages) - 1
            raise ValueError(
                f"--prompt-template {self.name}: the template writes turn {answer + 1}, an answer, otherwise than it "
                f"asks for it; {'pass another one as FILE.jinja' if last else 'pass --train-on last'}"
            )
        return text

    def _end(self, ids: list[int], start: int) -> int:
        try:
            return ids.index(self.end_of_turn, start) + 1
        except ValueError:
            token = self.tokenizer.convert_ids_to_tokens(self.end_of_turn)
            raise ValueError(
                f"--prompt-template {self.name}: an answer without {token} at its end; pass another template"
            ) from None

    def _end_of_turn(self, question: list[Message]) -> int:
        """The first special token after an answer."""
        text = self.text([*question, {"role": "assistant", "content": PROBE}])
        tail = text.rpartition(PROBE)[2]
        special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        found = [id for id in self.ids([tail])[0] if id in special]
        if not found:
            raise ValueError(
                f"--prompt-template {self.name}: no special token ends an answer (what follows it is {tail!r}), so "
                "generation could not stop; write {{ eos_token }} there, in a FILE.jinja"
            )
        return found[0]


def dated(source: str, name: str) -> str:
    """The template with DATE in place of today's date. Raises ValueError if it takes the date in an unknown way."""
    source = TODAY.sub(lambda call: f"{call[1]}{DATE.strftime(call[2])}{call[1]}", source)
    if OTHER_USE.search(source):
        raise ValueError(
            f"--prompt-template {name}: the template writes today's date, so token ids would change every day; write a "
            "fixed date in place of strftime_now, in a FILE.jinja"
        )
    return source


def learnt_answers(messages: Sequence[Message], train_on: Literal["all", "last"]) -> list[int]:
    """Places of the assistant's turns, without those before the first question."""
    roles = [message["role"] for message in messages]
    first = roles.index("user") if "user" in roles else len(roles)
    answers = [i for i, role in enumerate(roles) if role == "assistant" and i > first] or [len(roles) - 1]
    return answers if train_on == "all" else answers[-1:]


def shortened(messages: Sequence[Message]) -> list[list[Message]]:
    """The chat without its oldest turns, more and more of them, each time up to a question; a system message stays."""
    system = [message for message in messages[:1] if message["role"] in ("system", "developer")]
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return [[*system, *messages[i:]] for i in questions[1:]]


def common_prefix(some: Sequence[int], others: Sequence[int]) -> int:
    """How many ids both begin with: a token that spans the end of a question is the answer's."""
    length = min(len(some), len(others))
    differs = np.asarray(some[:length]) != np.asarray(others[:length])
    return int(differs.argmax()) if differs.any() else length
