"""The fields of a row, under the names that other data sets give them, and the prompt that they hold.

In: JSON text, as it stands in the data. Out: a dictionary that `data_utils.rows` checks and renders; or, for comparing
prompts without a template, `prompt_key`.
"""

import json
from typing import Any

# Rows of Dolly as published (instruction, context, response) and of TRL (prompt, completion).
OTHER_NAMES = (("input", "context"), ("output", "response"), ("output", "completion"))
CHATS = ("messages", "conversations")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"} | {
    role: role for role in ("system", "developer", "user", "assistant", "tool")
}


def fields_of(text: str, place: str) -> dict[str, Any]:
    """The row that `text` holds. Raises ValueError."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # bad syntax, a number of too many digits, too many brackets
        raise ValueError(f"{place}: not JSON ({error}); write one JSON object per line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: {type(row).__name__}, not an object; write {{'instruction': ..., 'output': ...}}")
    for name, other in OTHER_NAMES:
        if name not in row and other in row:
            row[name] = row[other]
    return row


def chat_of(row: dict[str, Any]) -> str | None:
    """The field that holds the row's chat; None where the row is a prompt and its output, whatever else it has."""
    if "output" in row and (row.get("prompt") or row.get("instruction")):
        return None
    return next((name for name in CHATS if row.get(name)), None)


def prompt_key(text: str) -> str:
    """Equal for rows of one prompt, or of chats that are equal up to their first question. A refused row is its own."""
    try:
        row = fields_of(text, "")
    except ValueError:
        return text
    if (chat := chat_of(row)) is not None:
        return json.dumps([row.get("system"), *_up_to_question(row[chat])])
    return json.dumps(row.get("prompt") or [row.get("instruction"), row.get("input") or ""])


def _up_to_question(chat: object) -> list[tuple[str | None, Any]]:
    """Roles and texts; other fields of a turn do not tell questions apart."""
    turns = [turn for turn in chat if isinstance(turn, dict)] if isinstance(chat, list) else []
    said = [
        (ROLES.get(str(turn.get("role", turn.get("from")))), turn.get("content", turn.get("value"))) for turn in turns
    ]
    first = next((i for i, (role, _) in enumerate(said) if role == "user"), len(said))
    return said[: first + 1]
