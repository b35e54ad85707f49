"""Prompts: templates by name, one file each, and the token ids of a prompt and its response.

Every file in this folder is imported, so a file is all that a new template needs.
"""

import importlib
import json
import pkgutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data_utils.prompts.base import REGISTRY, Message, PromptTemplate, register
from data_utils.prompts.chat import ChatTemplate
from data_utils.prompts.encoding import cut_prompts, encode_pairs, encode_prompts
from data_utils.prompts.file import file_template, read_template
from runtime.atomic import write_text

RECORD = "prompt_template.json"  # in a checkpoint

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ChatTemplate",
    "Message",
    "PromptTemplate",
    "check_template",
    "cut_prompts",
    "encode_pairs",
    "encode_prompts",
    "prompt_template",
    "record_template",
    "recorded_template",
    "register",
]


def prompt_template(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> PromptTemplate:
    """The template that --prompt-template names: a registered one, `chat`, or a jinja file.

    tokenizer: needed by `chat` and files; a chat template makes the end of a turn its EOS, a file over `messages` also
    becomes its chat template. Raises ValueError naming the flag and what it takes.
    """
    check_template(name)
    if name in REGISTRY:
        return REGISTRY[name]()
    if tokenizer is None:
        raise ValueError(f"--prompt-template {name}: needs a tokenizer; choose one of {', '.join(REGISTRY)}")
    return ChatTemplate(tokenizer) if name == "chat" else file_template(name, tokenizer)


def check_template(name: str) -> None:
    """Raises ValueError unless --prompt-template `name` is a known template or a readable file."""
    if name in REGISTRY or name == "chat":
        return
    if not (name.endswith((".jinja", ".j2")) or Path(name).is_file()):
        known = ", ".join(REGISTRY)
        raise ValueError(f"--prompt-template {name}: unknown template; choose one of {known}, chat, or a FILE.jinja")
    read_template(name)


def record_template(template: PromptTemplate, folder: Path) -> None:
    """Writes into a checkpoint which template it was trained with, and the template itself if it is a file."""
    write_text(folder / RECORD, json.dumps({"prompt_template": template.save(folder)}) + "\n")


def recorded_template(folder: Path) -> str | None:
    """What --prompt-template takes to get the template that a checkpoint was trained with; None without a record."""
    if not (folder / RECORD).is_file():
        return None
    try:
        name = json.loads((folder / RECORD).read_text(encoding="utf-8"))["prompt_template"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RECORD}: {error}; restore or delete the file") from None
    return str(folder / name) if (folder / name).is_file() else name
