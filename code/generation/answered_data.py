"""A data folder whose outputs are a model's answers, made in parts that survive a kill.

While answers are missing, OUT has only the folder `unfinished`: settings.json, and one file per part with a JSON object
per prompt. When all parts are there, OUT gets, in this order: the answered <split>.jsonl (rows of the source, with
another output), the dev and valid rows as they are, as jsonl, and manifest.json. So training never reads an unfinished
set.

Everything here is for rank 0; the other ranks only generate.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_utils.fields import CHATS, OTHER_NAMES, ROLES
from data_utils.manifest import MANIFEST, read_manifest, sha256
from data_utils.prompts import PromptTemplate
from data_utils.rows import FORMS, Row, parse
from data_utils.sources import DEV_NAMES, Source, find_source
from runtime.atomic import remove, remove_unfinished, write_text
from runtime.locks import Held, lock
from runtime.log import report

UNFINISHED, SETTINGS, LOCK = "unfinished", "settings.json", ".lock"
COPIED = (*DEV_NAMES, "valid")  # splits that stay as they are unless they are answered
OUTPUT_NAMES = ["output", *(other for name, other in OTHER_NAMES if name == "output")]
QUESTIONS = [other for other, role in ROLES.items() if role != "assistant"]
LISTED = 1000  # empty answers named in the manifest


@dataclass(frozen=True)
class Split:
    """Rows to answer. objects: the rows as the data have them."""

    name: str
    source: Source
    rows: list[Row]
    objects: list[dict]

    @classmethod
    def read(cls, data_dir: str, name: str, template: PromptTemplate, limit: int) -> "Split":
        """limit: number of first rows; -1: all. Rows may lack an answer. Raises as `parse` and `find_source` do."""
        source = find_source(data_dir, name)
        found = list(source.rows(limit))
        rows = [parse(text, place, template, empty_references=True) for place, text in found]
        return cls(name, source, rows, [json.loads(text) for _, text in found])


@dataclass(frozen=True)
class Part:
    """Prompts that are answered together. rows: their places in the split."""

    split: str
    seed: int
    number: int
    rows: list[int]

    @property
    def name(self) -> str:
        return f"{self.split}-seed{self.seed}-{self.number:05}.jsonl"


@dataclass(frozen=True)
class AnsweredData:
    """The folder. settings: all that decides the answers, as JSON has it."""

    folder: Path
    settings: Mapping[str, Any]

    @property
    def unfinished(self) -> Path:
        return self.folder / UNFINISHED

    def stored_settings(self) -> dict[str, Any] | None:
        """Those of the answers in the folder; None if it is empty. Raises ValueError if it has other files."""
        if (self.unfinished / SETTINGS).is_file():
            return json.loads((self.unfinished / SETTINGS).read_text(encoding="utf-8"))
        present = sorted(path.name for path in self.folder.glob("*") if path.name != UNFINISHED)
        manifest = read_manifest(self.folder) or {}
        if present and "settings" not in manifest.get("answers", {}):
            raise ValueError(
                f"--save-dir {self.folder}: {', '.join(present[:3])} there, which code/generate.py did not write; "
                "pass another folder"
            )
        return manifest["answers"]["settings"] if present else None

    @property
    def is_complete(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    @cached_property
    def _lock(self):
        try:
            return lock(self.unfinished / LOCK)
        except Held as holder:
            raise ValueError(
                f"--save-dir {self.folder}: another process writes there ({holder}); wait for it, or pass another "
                "folder"
            ) from None

    def start(self, parts: Sequence[Part]) -> list[Part]:
        """The parts without answers. Raises ValueError if another process makes them, WriteError."""
        _ = self._lock  # until the process ends
        for folder in (self.folder, self.unfinished):
            remove_unfinished(folder)
        write_text(self.unfinished / SETTINGS, json.dumps(self.settings, indent=2) + "\n")
        return [part for part in parts if not (self.unfinished / part.name).is_file()]

    def write(self, part: Part, records: Sequence[dict]) -> None:
        """Raises WriteError."""
        write_text(self.unfinished / part.name, "".join(json.dumps(record) + "\n" for record in records))

    def finish(self, data_dir: str, splits: Sequence[Split], parts: Sequence[Part], notes: Mapping[str, Any]) -> None:
        """Writes the data folder, of answered parts. notes: entries of the manifest, for the reader.

        Raises ValueError if a split has no answer, WriteError.
        """
        counts: dict[str, dict[str, Any]] = {}
        lines: dict[str, list[str]] = {}
        for split in splits:
            of_split = [part for part in parts if part.split == split.name]
            lines[split.name], counts[split.name] = _answered(split, list(self._records(of_split)))
            if not lines[split.name]:
                raise ValueError(f"{split.source.name}: the model answers no prompt; is it a trained model?")
        sources = {split.name: split.source for split in splits} | _copied(data_dir, lines)
        for name, source in sources.items():
            of_split = lines[name] if name in lines else (f"{text.strip()}\n" for _, text in source.rows())
            write_text(self.folder / f"{name}.jsonl", "".join(of_split))
        self._write_manifest(data_dir, sources, counts, notes)
        self.clear()
        for name, of_split in counts.items():
            left_out = f"; {of_split['empty']} are empty and left out" if of_split["empty"] else ""
            report(f"{self.folder}/{name}.jsonl: {of_split['answers']} answers, {of_split['cut']} cut{left_out}")

    def clear(self) -> None:
        """Removes the parts, of a complete folder. Any rank may."""
        remove(self.unfinished)

    def _write_manifest(
        self, data_dir: str, sources: Mapping[str, Source], counts: Mapping[str, Any], notes: Mapping[str, Any]
    ) -> None:
        origin = read_manifest(Path(data_dir)) or {}
        manifest = {
            "made_by": "code/generate.py",
            "set": origin.get("set", Path(data_dir).resolve().name),
            "source": {
                **{name: origin.get("source", {}).get(name) for name in ("page", "revision")},
                "folder": data_dir,
                "files": {file.name: sha256(file) for source in sources.values() for file in source.files},
            },
            "answers": {"settings": self.settings, "counts": counts},
            **notes,
            "files": {f"{name}.jsonl": {"sha256": sha256(self.folder / f"{name}.jsonl")} for name in sources},
        }
        write_text(self.folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def _records(self, parts: Sequence[Part]) -> Iterator[tuple[int, dict]]:
        """Seed and record, by seed and then in the order of the source."""
        for seed in dict.fromkeys(part.seed for part in parts):
            paths = [self.unfinished / part.name for part in parts if part.seed == seed]
            records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
            yield from ((seed, record) for record in sorted(records, key=lambda record: record["row"]))


def _answered(split: Split, records: Sequence[tuple[int, dict]]) -> tuple[list[str], dict[str, Any]]:
    """The lines of the answered file, and what it has."""
    lines, empty = [], []
    for seed, record in records:
        row = split.rows[record["row"]]
        # The limit may have cut a character.
        text = (record["text"].rstrip("\N{REPLACEMENT CHARACTER}") if record["cut"] else record["text"]).strip()
        if text:
            lines.append(json.dumps(_with_output(split.objects[record["row"]], row.form, text, record["cut"])) + "\n")
        else:
            empty.append({"place": row.place.rpartition("/")[2], "seed": seed})
    return lines, {
        "prompts": len(split.rows),
        "answers": len(lines),
        "cut": sum(record["cut"] for _, record in records),
        "empty": len(empty),
        "empty_at": empty[:LISTED],
        "tokens": sum(record["tokens"] for _, record in records),
    }


def _with_output(row: dict, form: int, text: str, cut: bool) -> dict:
    """The row with this output, in the field where it has one; of a chat, as its last turn.

    form: as `Row.form`: a chat may have an output field that training does not read. cut: no EOS follows the output.
    """
    kept = {field: value for field, value in row.items() if field != "cut"} | ({"cut": True} if cut else {})
    if (name := FORMS[form]) not in CHATS:
        return kept | {next(name for name in OUTPUT_NAMES if name in row): text}
    turns = list(row[name])
    while turns[-1].get("role", turns[-1].get("from")) in QUESTIONS:
        turns.pop()  # after the last answer, as in training
    return kept | {name: [*turns[:-1], turns[-1] | {"content" if "content" in turns[-1] else "value": text}]}


def _copied(data_dir: str, answered: Iterable[str]) -> dict[str, Source]:
    """The other splits of a folder, in any form."""
    found = {}
    for name in COPIED:
        with suppress(FileNotFoundError):
            if name not in answered and Path(data_dir).is_dir():
                found[name] = find_source(data_dir, name)
    return found
