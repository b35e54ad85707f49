"""What a prompt template is, and the registry of those that have a name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Message = dict[str, Any]  # role, content, and whatever a chat template knows besides

REGISTRY: dict[str, type["PromptTemplate"]] = {}


class PromptTemplate:
    """Writes the prompt of a row that has none of its own.

    name: as --prompt-template knows it. ending: the text that ends every prompt and must survive the cut of a long one.
    takes_chats: it writes chats of several turns (`prompts/chat.py`) instead of an instruction and its input.
    """

    name: str = ""
    ending: str = ""
    takes_chats: bool = False

    def render(self, instruction: str, input_text: str) -> str:
        """The text that the response follows directly. input_text: empty where the row has none."""
        raise NotImplementedError

    def text(self, messages: Sequence[Message], ask: bool = False) -> str:
        """A chat as text. ask: with the beginning of the next answer. Raises ValueError if the template refuses it."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """Tells it from other templates, in the settings of an evaluation."""
        return self.name

    def save(self, folder: Path) -> str:
        """Keeps in a checkpoint what the template needs; returns what --prompt-template takes to find it there."""
        return self.name


def register(name: str) -> Callable[[type[PromptTemplate]], type[PromptTemplate]]:
    """Class decorator: makes a template known to --prompt-template as `name`."""

    def add(template: type[PromptTemplate]) -> type[PromptTemplate]:
        if name in REGISTRY:
            raise ValueError(f"prompt template {name!r} is already registered by {REGISTRY[name].__name__}")
        for input_text in ("", "input"):
            prompt = template().render("instruction", input_text)
            if not prompt.endswith(template.ending):
                raise ValueError(
                    f"prompt template {name!r}: {prompt!r} does not end with its ending {template.ending!r}"
                )
        template.name = name
        REGISTRY[name] = template
        return template

    return add
