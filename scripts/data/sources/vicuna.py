"""Vicuna's 80 questions (Chiang et al. 2023). The references are the answers of GPT-3.5-turbo, not of people.

Nobody wrote reference answers to these questions. The ones of GPT-3.5-turbo were published with them, for all 80; the
later `reference_answer/gpt-4.jsonl` covers the ten on coding and mathematics only. Questions and answers share a
`question_id`; a text is either `text`, or the first of `turns`, as in FastChat's llm_judge.
"""

from collections.abc import Iterator
from typing import Any

from sources.base import BadRow, DataSet, Example, example, field, read_jsonl, texts
from sources.files import Files, GitHub

TABLE = "fastchat/eval/table"
QUESTIONS = (f"{TABLE}/question.jsonl",)
ANSWERS = (f"{TABLE}/answer/answer_gpt35.jsonl", "answer/answer_gpt35.jsonl", "reference_answer/gpt-4.jsonl")


def read(files: Files) -> Iterator[Example | BadRow]:
    questions, path = files.find(*QUESTIONS), files.find(*ANSWERS)
    pairs = read_jsonl(path, lambda row, _: [(field(row, "question_id", int), answer(row))])
    answers = dict(pair for pair in pairs if not isinstance(pair, BadRow))  # the question without one is reported

    def parse(row: Any, place: str) -> Iterator[Example]:
        number = field(row, "question_id", int)
        if number not in answers:
            raise ValueError(f"{path.name} has no answer to question {number}")
        yield example(first_turn(row), "", [answers[number]], place)

    yield from read_jsonl(questions, parse)


def answer(row: Any) -> str:
    choices = field(row, "choices", list) if "choices" in row else [row]
    return first_turn(choices[0]) if choices else ""


def first_turn(row: Any) -> str:
    """The text of a question or of an answer, "" where there is none. Raises ValueError."""
    name = "turns" if isinstance(row, dict) and "turns" in row else "text"
    return next(iter(texts(row, name)), "")


VICUNA = DataSet(
    title="Vicuna's 80 questions, references by GPT-3.5-turbo",
    licence="Apache-2.0; OpenAI's terms for the answers",
    home=GitHub("lm-sys/FastChat", "v0.2.5"),
    output_dir="data/vicuna",
    read=read,
    numbers={},
)
