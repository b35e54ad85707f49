"""The command line of every entry point: dataclass fields become flags; errors name the flag, its value and a remedy.

In: an argument list and the dataclasses of `arguments.py`. Out: their instances. Each field is a flag, spelled with
dashes (as in --help) or underscores; type, default, bounds and help come from the field. Nothing slow is imported here,
so that --help and a mistyped flag are answered in a fraction of a second.
"""

import argparse
import dataclasses
import difflib
import inspect
import math
import operator
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from foreign_flags import HARMLESS_VALUES, IGNORED_FLAGS, LAUNCHER_FLAGS, RENAMED_FLAGS, REPLACED_FLAGS

WORDS_FOR_TRUE, WORDS_FOR_FALSE = {"true", "yes", "t", "y", "1"}, {"false", "no", "f", "n", "0"}
COMPARISONS = {"of at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}
HELP_COLUMN = 34
NOTE = "A flag may be spelled with dashes or underscores. A switch also takes true or false, or has a --no- form."


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    aliases: Sequence[str] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    also: dict[int, str] | None = None,
    positional: bool = False,
) -> Any:
    """A field of a `Group`: a flag with its default (none: required), help, other names and, of a number, bounds.

    also: values outside the bounds that are allowed, and what each is for: {-1: "for all of them"}.
    positional: the values stand together on the command line, without a flag.
    """
    bounds = {"of at least": at_least, "above": above, "at most": at_most, "below": below}
    bounds = {word: limit for word, limit in bounds.items() if limit is not None}
    metadata = {"help": help, "aliases": aliases, "bounds": bounds, "also": also or {}, "positional": positional}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raises ValueError unless `condition`. name: of the flag's field."""
    if not condition:
        raise ValueError(f"--{name.replace('_', '-')} {value}: {remedy}")


class Group:
    """Base of the dataclasses whose fields are flags. Numbers are checked when an instance is made."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, bounds, also = getattr(self, field.name), field.metadata["bounds"], field.metadata["also"]
            if not isinstance(value, int | float) or value in also:
                continue
            remedy = " and ".join(f"{word} {limit}" for word, limit in bounds.items())
            remedy += "".join(f", or {allowed} {purpose}" for allowed, purpose in also.items())
            within = all(COMPARISONS[word](value, limit) for word, limit in bounds.items())
            require(within, field.name, value, f"pass a number {remedy}")
            require(math.isfinite(value), field.name, value, "pass a finite number")


class Flag(NamedTuple):
    """A field as a flag. kind: type of one value; choices: the allowed values, empty if any; many: takes several."""

    field: dataclasses.Field
    kind: type
    choices: tuple[str, ...]
    many: bool

    @classmethod
    def of(cls, field: dataclasses.Field, annotation: object) -> "Flag":
        if get_origin(annotation) in (UnionType, Union):
            (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
        many = get_origin(annotation) is list
        if many:
            (annotation,) = get_args(annotation)
        choices = get_args(annotation) if get_origin(annotation) is Literal else ()
        return cls(field, str if choices else annotation, choices, many)

    @property
    def positional(self) -> bool:
        return self.field.metadata["positional"]

    @property
    def option(self) -> str:
        name = self.field.name
        return name.upper() if self.positional else f"--{name.replace('_', '-')}"

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def default(self) -> Any:
        factory = self.field.default_factory
        return self.field.default if factory is dataclasses.MISSING else factory()

    @property
    def spellings(self) -> dict[str, str]:
        """Every spelling of the flag -> the one that argparse knows."""
        if self.positional:
            return {}
        names = [self.option, *self.field.metadata["aliases"]]
        spellings = {spelling: self.option for name in names for spelling in (name, f"--{_underscored(name)}")}
        if self.kind is bool:
            off = f"--no-{self.option[2:]}"
            spellings |= dict.fromkeys((off, f"--{_underscored(off)}"), f"{self.option}=false")
        return spellings

    def value(self, text: str) -> Any:
        """Raises ValueError with flag, value and remedy."""
        if self.choices and text not in self.choices:
            raise ValueError(f"{self.option} {text}: choose {' or '.join(self.choices)}")
        if self.kind is bool:
            if text.lower() not in WORDS_FOR_TRUE | WORDS_FOR_FALSE:
                raise ValueError(f"{self.option} {text}: pass true or false, or the flag alone")
            return text.lower() in WORDS_FOR_TRUE
        try:
            return self.kind(text)
        except ValueError:
            whole = "whole " if self.kind is int else ""
            raise ValueError(f"{self.option} {text}: pass a {whole}number") from None

    @property
    def usage(self) -> str:
        if self.positional:
            return f"{self.option}{' ...' if self.many else ''}"
        values = "|".join(self.choices) or self.field.name.split("_")[-1].upper()
        if self.kind is bool:
            values = "true|false" if self.default else ""
        return f"{self.option} {values}{' ...' if self.many else ''}".rstrip()

    def help(self, width: int) -> list[str]:
        """The lines of --help."""
        text = self.field.metadata["help"]
        if self.required:
            text += " (required)"
        elif self.default is not None and self.default is not False:
            default = " ".join(map(str, self.default)) if self.many else str(self.default)
            text += f" (default: {default.lower() if self.kind is bool else default})"
        margin = " " * HELP_COLUMN
        lines = textwrap.wrap(text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
        words = f"  {self.usage}"
        if len(words) < HELP_COLUMN - 1:
            return [words + lines[0][len(words) :], *lines[1:]]
        return [words, *lines]


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would exit, so that the entry points report every mistake in the same way."""

    def __init__(self, program: str, groups: dict[type, list[Flag]]):
        super().__init__(prog=program, allow_abbrev=False)
        self.groups = groups
        for flag in (flag for flags in groups.values() for flag in flags):
            count = {"nargs": "+"} if flag.many else {"nargs": "?", "const": "true"} if flag.kind is bool else {}
            if flag.positional:
                self.add_argument(flag.field.name, metavar=flag.option, **count)
                continue
            default = argparse.SUPPRESS
            self.add_argument(flag.option, dest=flag.field.name, required=flag.required, default=default, **count)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))

    def format_help(self) -> str:
        width = min(shutil.get_terminal_size().columns, 120)
        needed = [flag.usage for flags in self.groups.values() for flag in flags if flag.required]
        lines = [f"usage: python {self.prog} {' '.join(needed)} [FLAGS]", "", *textwrap.wrap(NOTE, width)]
        for group, flags in self.groups.items():
            lines += ["", inspect.getdoc(group).splitlines()[0]]
            lines += [line for flag in flags for line in flag.help(width)]
        return "\n".join(lines) + "\n"


def parse(argv: Sequence[str], groups: Sequence[type], program: str) -> list:
    """An instance of each group, then the names of the accepted flags that have no effect.

    Raises ValueError with the flag, its value and the remedy; prints the help and exits for --help.
    """
    flags = {group: _flags(group) for group in groups}
    by_name = {flag.field.name: flag for group in flags.values() for flag in group}
    spellings = _spellings([flag for group in flags.values() for flag in group])
    words, ignored = _without_ignored(argv, spellings)
    given, unknown = _Parser(program, flags).parse_known_args([_respelled(word, spellings) for word in words])
    if unknown:
        raise ValueError(_refusal(unknown[0], spellings))
    values: dict[str, Any] = {}
    for name, text in vars(given).items():
        flag = by_name[name]
        values[name] = [flag.value(word) for word in text] if flag.many else flag.value(text)
    given_names = [[flag.field.name for flag in flags[group] if flag.field.name in values] for group in groups]
    return [*(group(**{name: values[name] for name in names}) for group, names in zip(groups, given_names)), ignored]


def answer_early(parse_arguments: Callable[[Sequence[str]], object]) -> None:
    """Exits after --help, and with 2 after a wrong flag. Entries call it before their slow imports."""
    try:
        parse_arguments(sys.argv[1:])
    except ValueError as error:
        show_error(error)
        sys.exit(2)


def show_error(error: Exception) -> None:
    """Prints the error's lines, each a mistake of the user, from one process per node."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr, flush=True)


def _flags(group: type) -> list[Flag]:
    hints = get_type_hints(group)
    return [Flag.of(field, hints[field.name]) for field in dataclasses.fields(group)]


def _underscored(option_string: str) -> str:
    return option_string.removeprefix("--").replace("-", "_")


def _spellings(flags: Sequence[Flag]) -> dict[str, str]:
    """Every way to write a flag -> the way that argparse knows. Raises ValueError if two flags share one."""
    spellings: dict[str, str] = {}
    for flag in flags:
        if taken := flag.spellings.keys() & spellings.keys():
            raise ValueError(f"{flag.option}: {min(taken)} is a flag already; give the option another name or alias")
        spellings |= flag.spellings
    return spellings


def _respelled(word: str, spellings: dict[str, str]) -> str:
    flag, equals, value = word.partition("=")
    return spellings.get(flag, flag) + equals + value


def _without_ignored(argv: Sequence[str], known: dict[str, str]) -> tuple[list[str], tuple[str, ...]]:
    """The words for the parser, and the flags that are accepted without effect; those are dropped with their value."""
    words: list[str] = []
    ignored: list[str] = []
    taker = ""  # the flag that the next word may be the value of
    previous = ""
    for word in argv:
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("_", "-")
        is_value = not word.startswith("-") or word[1:2].isdigit()
        if (previous == "--deepspeed" and is_value) or word.startswith("--deepspeed="):
            raise ValueError(f"--deepspeed {word}: takes no value; pass the file with --deepspeed_config")
        previous = word
        if taker and is_value and not _is_variable(word):
            _check_value(taker, word)
            taker = ""
        elif flag.startswith("--") and flag not in known and name in IGNORED_FLAGS | LAUNCHER_FLAGS:
            taker = "" if equals else flag
            if equals:
                _check_value(flag, value)
            if name not in LAUNCHER_FLAGS:
                ignored.append(flag)
        else:
            taker = ""
            words.append(word)
    return words, tuple(ignored)


def _check_value(flag: str, value: str) -> None:
    """Raises ValueError if the flag must not be ignored with this value."""
    harmless, remedy = HARMLESS_VALUES.get(flag[2:].replace("_", "-"), (".*", ""))
    if not re.fullmatch(harmless, value):
        raise ValueError(f"{flag} {value}: not supported; {remedy}")


def _is_variable(word: str) -> bool:
    return re.match(r"[A-Z][A-Z0-9_]*=", word) is not None


def _refusal(word: str, known: dict[str, str]) -> str:
    """The error message for a word that no flag takes."""
    if _is_variable(word):
        return f"{word}: a variable behind the command; put it in front: {word} bash SCRIPT"
    if not word.startswith("--"):
        return f"{word!r}: a value without a flag; quote values that contain spaces"
    flag = word.split("=")[0]
    name = flag[2:].replace("_", "-")
    renamed = RENAMED_FLAGS.get(name)
    if renamed is not None and f"--{renamed.split()[0]}" in known:
        return f"{flag}: a flag of other trainers; here it is --{renamed}"
    if name in REPLACED_FLAGS:
        return f"{flag}: not supported; {REPLACED_FLAGS[name]}"
    close = difflib.get_close_matches(name, [option[2:] for option in known if "_" not in option], n=1)
    return f"{flag}: unknown flag; " + (
        f"did you mean --{close[0]}?" if close else "see --help for the flags there are"
    )
