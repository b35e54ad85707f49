"""What the sets share: an example, a bad row, the description of a set, and the reading of JSON lines."""

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from sources.files import Files, GitHub, Hub


@dataclass(frozen=True)
class Example:
    """A task and the answers that count as right. place: where it stands in the source."""

    instruction: str
    input: str
    references: tuple[str, ...]
    place: str

    def row(self) -> dict[str, str | list[str]]:
        """What is written: the framework's schema, with a list of answers only where there are several."""
        output = self.references[0] if len(self.references) == 1 else list(self.references)
        return {"instruction": self.instruction, "input": self.input, "output": output}


@dataclass(frozen=True)
class BadRow:
    """A row that is no example, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class DataSet:
    """How one set is made.

    output_dir: may hold the name of a number, as in `data/sinst/{min_response_tokens}_`.
    read: its files -> examples and bad rows, in their order.
    numbers: the flags of this set with their defaults, by the names of prepare.NUMBERS.
    """

    title: str
    licence: str
    home: GitHub | Hub
    output_dir: str
    read: Callable[[Files], Iterable[Example | BadRow]]
    numbers: Mapping[str, int]


def example(instruction: str, input_text: str, references: Sequence[str], place: str) -> Example:
    """Without surrounding white space, empty references and repeated ones."""
    kept = dict.fromkeys(reference.strip() for reference in references if reference.strip())
    return Example(instruction.strip(), input_text.strip(), tuple(kept), place)


def field(row: Any, name: str, kind: type | UnionType = str) -> Any:
    """`row[name]`. Raises ValueError unless the row is an object whose field `name` is of this kind."""
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object")
    if not isinstance(row.get(name), kind):
        found = type(row[name]).__name__ if name in row else "missing"
        raise ValueError(f'"{name}" is {found}, not {getattr(kind, "__name__", kind)}')
    return row[name]


def texts(row: Any, name: str) -> list[str]:
    """`row[name]`, which is a list of texts, or one text. Raises ValueError."""
    values = field(row, name, str | list)
    values = [values] if isinstance(values, str) else values
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f'"{name}" holds something other than text')
    return values


def read_jsonl(path: Path, parse: Callable[[Any, str], Iterable[Any]]) -> Iterator[Any]:
    """What `parse` makes of each line's object and place; a BadRow where it, or json, raises ValueError."""
    for number, line in enumerate(_lines(path), start=1):
        place = f"{path.name}:{number}"
        if line.strip():
            try:
                yield from list(parse(json.loads(line), place))
            except ValueError as error:
                yield BadRow(place, str(error))


def _lines(path: Path) -> Iterator[bytes]:
    if path.suffix != ".zip":
        with path.open("rb") as file:
            yield from file
        return
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".jsonl") and not name.startswith("__MACOSX")]
        if len(members) != 1:
            raise ValueError(f"{path}: {len(members)} jsonl files in it; unpack it, and pass the one to read")
        with archive.open(members[0]) as file:
            yield from file
