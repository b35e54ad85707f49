"""A template of the user's own: a jinja file over `instruction` and `input`, or over `messages`.

A file over `messages` becomes the tokenizer's chat template, so that it is saved with every checkpoint and other
programs find it. Both kinds are rendered in jinja's sandbox.
"""

import hashlib
import re
from itertools import takewhile
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from data_utils.prompts.base import PromptTemplate
from data_utils.prompts.chat import ChatTemplate
from runtime.atomic import write_text

FILE = "prompt_template.jinja"  # in a checkpoint

ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, extensions=["jinja2.ext.loopcontrols"]
)
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # a tag that only Transformers knows


class FileTemplate(PromptTemplate):
    """A prompt over `instruction` and `input`; `bos_token` and `eos_token` are the tokenizer's.

    Raises ValueError if the file cannot be rendered.
    """

    def __init__(self, path: str, source: str, tokenizer: PreTrainedTokenizerBase):
        self.name, self.source = path, source
        self._template = ENVIRONMENT.from_string(source)
        self._tokens = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
        self.ending = self._ending()

    @property
    def identity(self) -> str:
        return f"file {hashlib.sha256(self.source.encode()).hexdigest()[:12]}"

    def render(self, instruction: str, input_text: str) -> str:
        try:
            return self._template.render(instruction=instruction, input=input_text, **self._tokens)
        except (TemplateError, TypeError, ValueError) as error:
            raise ValueError(f"--prompt-template {self.name}: {error}; correct the file") from None

    def _ending(self) -> str:
        """What two prompts that share nothing end with."""
        some, others = self.render("instruction", ""), self.render("task", "input ")
        same = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(some), reversed(others)))
        return "".join(character for character, _ in same)[::-1]

    def save(self, folder: Path) -> str:
        write_text(folder / FILE, self.source)
        return FILE


def file_template(path: str, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """Raises ValueError if the file is missing, or is no template."""
    source, variables = read_template(path)
    if "messages" in variables:
        tokenizer.chat_template = source
        return ChatTemplate(tokenizer, path)
    return FileTemplate(path, source, tokenizer)


def read_template(path: str) -> tuple[str, set[str]]:
    """Text and variables of a template. Raises ValueError."""
    try:
        source = Path(path).read_text(encoding="utf-8")
        variables = meta.find_undeclared_variables(ENVIRONMENT.parse(GENERATION.sub("", source)))
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--prompt-template {path}: {reason}; pass a jinja file, or a template's name") from None
    if not variables & {"messages", "instruction"}:
        raise ValueError(f"--prompt-template {path}: uses neither `messages` nor `instruction`; write one of them")
    return source, variables
