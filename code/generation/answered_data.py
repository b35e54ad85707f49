"""A data folder whose outputs are a model's answers, made in parts that survive a kill.

While answers are missing, OUT has only the folder `unfinished`: settings.json, and one file per part with a JSON object
per prompt. When all parts are there, OUT gets, in this order: the answered <split>.jsonl (rows of the source, with
another output), copies of dev.jsonl and valid.jsonl, and manifest.json. So training never reads an unfinished set.

Everything here is for rank 0; the other ranks only generate.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_utils.dataset import OTHER_NAMES, Row, read_rows
from data_utils.manifest import MANIFEST, read_manifest, sha256
from data_utils.prompts import PromptTemplate
from runtime.atomic import new_file, remove, remove_unfinished, write_text
from runtime.locks import Held, lock
from runtime.log import report

UNFINISHED, SETTINGS, LOCK = "unfinished", "settings.json", ".lock"
COPIED = ("dev", "valid")  # splits that stay as they are unless they are answered
OUTPUT_NAMES = ["output", *(other for name, other in OTHER_NAMES if name == "output")]
LISTED = 1000  # empty answers named in the manifest


@dataclass(frozen=True)
class Source:
    """<split>.jsonl to answer. objects: the rows as the file has them."""

    split: str
    rows: list[Row]
    objects: list[dict]

    @classmethod
    def read(cls, path: Path, template: PromptTemplate, limit: int) -> "Source":
        """limit: number of first rows; -1: all. Rows may lack an answer. Raises as `read_rows` does."""
        rows = read_rows(path, template, limit, empty_references=True)
        lines = (line for line in path.read_bytes().split(b"\n") if line.strip())
        return cls(path.stem, rows, [json.loads(line) for line, _ in zip(lines, rows)])


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

    def finish(
        self, data_dir: Path, sources: Sequence[Source], parts: Sequence[Part], notes: Mapping[str, Any]
    ) -> None:
        """Writes the data folder, of answered parts. notes: entries of the manifest, for the reader.

        Raises ValueError if a split has no answer, WriteError.
        """
        counts: dict[str, dict[str, Any]] = {}
        lines: dict[str, list[str]] = {}
        for source in sources:
            of_split = [part for part in parts if part.split == source.split]
            lines[source.split], counts[source.split] = _answered(source, list(self._records(of_split)))
            if not lines[source.split]:
                raise ValueError(f"{source.split}.jsonl: the model answers no prompt; is it a trained model?")
        for split, of_split in lines.items():
            write_text(self.folder / f"{split}.jsonl", "".join(of_split))
        copied = [name for name in COPIED if name not in lines and (data_dir / f"{name}.jsonl").is_file()]
        for name in copied:
            with new_file(self.folder / f"{name}.jsonl") as part:
                shutil.copyfile(data_dir / f"{name}.jsonl", part)
        self._write_manifest(data_dir, [*lines, *copied], counts, notes)
        self.clear()
        for split, of_split in counts.items():
            left_out = f"; {of_split['empty']} are empty and left out" if of_split["empty"] else ""
            report(f"{self.folder}/{split}.jsonl: {of_split['answers']} answers, {of_split['cut']} cut{left_out}")

    def clear(self) -> None:
        """Removes the parts, of a complete folder. Any rank may."""
        remove(self.unfinished)

    def _write_manifest(
        self, data_dir: Path, splits: Sequence[str], counts: Mapping[str, Any], notes: Mapping[str, Any]
    ) -> None:
        origin = read_manifest(data_dir) or {}
        files = [f"{split}.jsonl" for split in splits]
        manifest = {
            "made_by": "code/generate.py",
            "set": origin.get("set", data_dir.resolve().name),
            "source": {
                **{name: origin.get("source", {}).get(name) for name in ("page", "revision")},
                "folder": str(data_dir),
                "files": {name: sha256(data_dir / name) for name in files},
            },
            "answers": {"settings": self.settings, "counts": counts},
            **notes,
            "files": {name: {"sha256": sha256(self.folder / name)} for name in files},
        }
        write_text(self.folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def _records(self, parts: Sequence[Part]) -> Iterator[tuple[int, dict]]:
        """Seed and record, by seed and then in the order of the source."""
        for seed in dict.fromkeys(part.seed for part in parts):
            paths = [self.unfinished / part.name for part in parts if part.seed == seed]
            records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
            yield from ((seed, record) for record in sorted(records, key=lambda record: record["row"]))


def _answered(source: Source, records: Sequence[tuple[int, dict]]) -> tuple[list[str], dict[str, Any]]:
    """The lines of the answered file, and what it has."""
    lines, empty = [], []
    for seed, record in records:
        # The limit may have cut a character.
        text = (record["text"].rstrip("\N{REPLACEMENT CHARACTER}") if record["cut"] else record["text"]).strip()
        if text:
            lines.append(json.dumps(_with_output(source.objects[record["row"]], text, record["cut"])) + "\n")
        else:
            place = source.rows[record["row"]].place
            empty.append({"place": place.rpartition("/")[2], "seed": seed})
    return lines, {
        "prompts": len(source.rows),
        "answers": len(lines),
        "cut": sum(record["cut"] for _, record in records),
        "empty": len(empty),
        "empty_at": empty[:LISTED],
        "tokens": sum(record["tokens"] for _, record in records),
    }


def _with_output(row: dict, text: str, cut: bool) -> dict:
    """The row with this output, in the field where it has one. cut: no EOS follows it in training."""
    name = next(name for name in OUTPUT_NAMES if name in row)
    kept = {field: value for field, value in row.items() if field != "cut"}
    return kept | {name: text} | ({"cut": True} if cut else {})
