"""One row as it stands in the data -> a prompt and its responses, or a chat.

In: JSON text, its place and the prompt template. The form is recognised by the row's fields:

    instruction, input, output          Alpaca; with the names of OTHER_NAMES: Dolly, TRL
    prompt, output                      the prompt is used as it is, without a template
    messages                            turns of role and content
    conversations                       ShareGPT: turns of from and value

Out: `Row`; or a ValueError that names place and remedy.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_utils.fields import CHATS, ROLES, chat_of, fields_of
from data_utils.prompts import Message, PromptTemplate
from data_utils.prompts.chat import SHIPPED
from data_utils.sources import Source, as_source

FORMS = ("instruction, input, output", "prompt, output", *CHATS)


@dataclass(frozen=True)
class Row:
    """prompt: the whole text before the answer. responses: all that count as right; training uses the first.

    chat: the turns up to the answer, where a template writes chats; a row with a prompt of its own has none.
    form: index into FORMS. place: where the row stands, for messages.
    cut: the (last) answer stops before its end, so nothing ends it in training.
    """

    prompt: str
    responses: tuple[str, ...]
    place: str = field(default="", compare=False)
    chat: tuple[Message, ...] = ()
    form: int = field(default=0, compare=False)
    cut: bool = False


def read_rows(
    source: Path | Source, template: PromptTemplate, limit: int = -1, empty_references: bool = False
) -> list[Row]:
    """Rows as text. Raises FileNotFoundError or ValueError with place and remedy.

    template: for rows without a `prompt`. limit: number of first rows to use; -1: all.
    empty_references: allows rows without an answer, whose one response is then ""; an evaluation scores them 0.
    """
    rows = as_source(source).rows(limit)
    return [parse(text, place, template, empty_references) for place, text in rows]


def parse(text: str, place: str, template: PromptTemplate, empty_references: bool = False) -> Row:
    """The row that `text` holds. Raises ValueError."""
    fields = fields_of(text, place)
    row = _row(fields, place, template, empty_references)
    return replace(row, cut=True) if fields.get("cut") is True else row


def _row(row: dict[str, Any], place: str, template: PromptTemplate, empty_references: bool) -> Row:
    if (chat := chat_of(row)) is not None:
        return _chat_row(row, chat, place, template, empty_references)
    for name in ("instruction", "input", "prompt"):
        if not isinstance(row.get(name), str | None):
            raise ValueError(f"{place}: {name} is {type(row[name]).__name__}; write a string")
    instruction, input_text, prompt = (row.get(name) or "" for name in ("instruction", "input", "prompt"))
    if not (prompt or instruction):
        raise ValueError(
            f"{place}: neither instruction nor prompt nor {' nor '.join(CHATS)}; it has {', '.join(row) or 'nothing'}; "
            "rename the column of the questions to instruction, and that of the answers to output"
        )
    if "output" not in row:
        raise ValueError(f"{place}: no output; write the response as a string, or several as a list")
    responses = _responses(row["output"], place, empty_references)
    _check_text("".join((prompt, instruction, input_text, *responses)), place)
    if prompt:
        return Row(prompt, responses, place, form=1)
    if not template.takes_chats:
        return Row(template.render(instruction, input_text), responses, place)
    question = f"{instruction}\n\n{input_text}" if input_text else instruction
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": responses[0]}]
    return Row(_rendered(messages[:-1], place, template), responses, place, tuple(messages))


def _responses(output: object, place: str, may_be_empty: bool) -> tuple[str, ...]:
    responses = output if isinstance(output, list) else [output]
    if may_be_empty and all(isinstance(response, str | None) for response in responses):
        return tuple(response for response in responses if response and response.strip()) or ("",)
    if not responses or not all(isinstance(response, str) and response.strip() for response in responses):
        raise ValueError(f"{place}: output is empty or not text; write a response or remove the row")
    return tuple(responses)


def _check_text(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, which tokenizers refuse
        raise ValueError(f"{place}: not text ({error.reason}); write whole characters") from None


# ---- chats -----------------------------------------------------------------------------------------------------------


def _chat_row(row: dict[str, Any], name: str, place: str, template: PromptTemplate, empty_references: bool) -> Row:
    """The chat up to its last answer; turns after it are left out."""
    messages = _messages(row[name], f"{place}: {name}")
    if isinstance(system := row.get("system"), str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    while messages[-1]["role"] != "assistant":
        messages.pop()
        if not messages:
            raise ValueError(f"{place}: {name} has no turn of the assistant; add the answer or remove the row")
    for number, message in enumerate(messages, start=1):
        _check_text(message["content"], place)
        last = number == len(messages)
        if message["role"] == "assistant" and not message["content"].strip() and not (last and empty_references):
            raise ValueError(f"{place}: {name}: turn {number}, an answer, is empty; write one or remove the row")
    form, answer = FORMS.index(name), messages[-1]["content"]
    if template.takes_chats:
        return Row(_rendered(messages[:-1], place, template), (answer,), place, tuple(messages), form)
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise ValueError(
            f"{place}: {name} has {len(messages)} turns ({', '.join(message['role'] for message in messages[:3])}"
            f"{', ...' if len(messages) > 3 else ''}), and --prompt-template {template.name} writes one instruction "
            f"and its answer; pass --prompt-template chat, or {SHIPPED} for a tokenizer without a chat template"
        )
    return Row(template.render(messages[0]["content"], ""), (answer,), place, form=form)


def _messages(turns: object, place: str) -> list[Message]:
    """role and content of each turn, and what else it has."""
    if not isinstance(turns, list):
        raise ValueError(f"{place} is {type(turns).__name__}; write a list of turns")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise ValueError(f"{place}: turn {number} is {type(turn).__name__}; write an object of role and content")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"{place}: turn {number} is of {role!r}; write system, user, assistant or tool")
        if not isinstance(content, str):
            raise ValueError(f"{place}: turn {number} has {type(content).__name__} as its text; write a string")
        others = {key: value for key, value in turn.items() if key not in ("from", "value") and value is not None}
        messages.append(others | {"role": ROLES[role], "content": content})
    return messages


def _rendered(messages: list[Message], place: str, template: PromptTemplate) -> str:
    try:
        return template.text(messages, ask=True)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
