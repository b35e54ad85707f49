"""Where rows come from: files (jsonl, json, csv, parquet) in a folder, one file, or a data set of the hub.

In: --data-dir and the name of a split. Out: `Source`, which yields one row after another, as JSON text with its place.
Files are streamed, but for a json array, which is read whole. jsonl, json and csv are read by the standard library: the
datasets library guesses types there, so that an answer "NA" would become a missing value and "1.0" a number.
"""

import csv
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from arguments import DataArguments
from data_utils.fields import prompt_key
from data_utils.manifest import sha256

DEV_NAMES = ("dev", "validation")  # the hub's sets say validation
HELD_OUT_SHARE, MOST_HELD_OUT = 0.05, 1000  # rows for dev where a set has none
HELD_OUT_BY = "prompt"  # part of the digest: other rows would be held out by another rule
ROWS_AT_ONCE = 1000  # of a parquet file
RawRow = tuple[str, str]  # place (FILE:LINE, or FILE, row NUMBER), JSON text


@dataclass(frozen=True)
class Source:
    """The rows of one split, in order.

    files: read one after the other. hub: instead of files, name, split and revision of a data set on the hub.
    part: of a set without dev rows: "dev" are those held out for it, "train" the others; None: all rows.
    """

    files: tuple[Path, ...] = ()
    hub: tuple[str, str, str | None] | None = None
    part: Literal["train", "dev"] | None = None

    @property
    def name(self) -> str:
        """For messages."""
        if self.hub is not None:
            return f"{self.hub[0]} ({self.hub[1]})"
        return str(self.files[0] if len(self.files) == 1 else self.files[0].parent)

    @property
    def label(self) -> str:
        """For file names."""
        parts = self.hub[0].split("/") if self.hub is not None else (self.files[0].parent.name, self.files[0].stem)
        return "-".join((*parts, *filter(None, [self.part])))

    def rows(self, limit: int = -1) -> Iterator[RawRow]:
        """The first `limit` rows; -1: all. Raises ValueError with the place of what cannot be read, or without rows."""
        rows = self._all() if self.part is None else self._of_part()
        found = 0
        for row in rows if limit == -1 else islice(rows, limit):
            found += 1
            yield row
        if not found:
            raise ValueError(
                f"{self.name}: no rows; every line holds one JSON object with instruction, input and output"
            )

    def digest(self) -> str:
        """A hash of the rows: of one whole file, its sha256."""
        if self.hub is not None:
            digests = [_from_hub(*self.hub)._fingerprint]
        else:
            digests = [_file_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        if len(digests) == 1 and self.part is None:
            return digests[0]
        split = (self.part, HELD_OUT_BY, HELD_OUT_SHARE, MOST_HELD_OUT)
        return hashlib.sha256(repr((digests, *split)).encode()).hexdigest()

    def _all(self) -> Iterator[RawRow]:
        if self.hub is not None:
            for number, row in enumerate(_from_hub(*self.hub), start=1):
                yield f"{self.name}, row {number}", json.dumps(row, default=str)
        for path in self.files:
            yield from READERS[path.suffix](path)

    def _of_part(self) -> Iterator[RawRow]:
        """Prompts whose hash is among the smallest are held out: all rows of one are on one side, on every machine."""
        held_out = _held_out(np.fromiter((_hash(prompt_key(text)) for _, text in self._all()), dtype=np.uint64))
        for place, text in self._all():
            if (_hash(prompt_key(text)) in held_out) == (self.part == "dev"):
                yield place, text


def training_sources(args: DataArguments) -> tuple[Source, Source | None]:
    """train and dev of --data-dir. Without a dev file, prompts of train are held out; None for fewer than two of them.

    Raises FileNotFoundError, or ValueError if the first rows cannot be read.
    """
    train = find_source(args.data_dir, "train", args)
    if (files := _files_of(Path(args.data_dir), DEV_NAMES)) is not None:
        return train, Source(files)
    distinct: set[str] = set()
    for _, text in train.rows():
        distinct.add(prompt_key(text))
        if len(distinct) == 2:
            return replace(train, part="train"), replace(train, part="dev")
    return train, None


def find_source(data_dir: str, split: str, args: DataArguments | None = None) -> Source:
    """The rows of a split: `<split>.jsonl`, .json, .csv or .parquet of a folder, `split-*.parquet` as the hub has it, a
    file, or a data set of the hub. args: its split and revision there; by default `split` and the newest one.

    Raises FileNotFoundError that names --data-dir and what is there.
    """
    path = Path(data_dir)
    if path.is_file():
        if path.suffix not in READERS:
            raise ValueError(f"--data-dir {path}: not a {', '.join(READERS)} file; convert it, or pass a folder")
        return Source((path,))
    if (files := _files_of(path, (split,))) is not None:
        return Source(files)
    if _is_hub_id(data_dir):
        return Source(hub=(data_dir, split, None) if args is None else (data_dir, args.data_split, args.data_revision))
    raise _missing(path, f"{split}.jsonl")


def as_source(source: Source | Path) -> Source:
    """A file as a source. Raises FileNotFoundError."""
    if isinstance(source, Source):
        return source
    if not source.is_file():
        raise _missing(source.parent, source.name)
    return Source((source,))


def _files_of(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...] | None:
    for name in names:
        for ending in READERS:
            if (path := folder / f"{name}{ending}").is_file():
                return (path,)
        for ending in READERS:  # as the hub keeps them
            if found := sorted([*folder.glob(f"{name}-*{ending}"), *folder.glob(f"data/{name}-*{ending}")]):
                return tuple(found)
    return None


def _missing(folder: Path, name: str) -> FileNotFoundError:
    if folder.suffix in READERS:
        return FileNotFoundError(f"--data-dir {folder}: no such file; pass a file or a folder that exists")
    others = [file for file in sorted(folder.glob("*")) if file.suffix in READERS and file.is_file()]
    found = ", ".join(file.name for file in others[:5])
    there = f" (found: {found})" if found else ""
    return FileNotFoundError(f"--data-dir {folder}: no {name} there{there}; see data/README.md")


def _is_hub_id(name: str) -> bool:
    """Whether it looks like org/name, and not like a folder that is missing here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).parent.exists()


@lru_cache(maxsize=2)
def _from_hub(name: str, split: str, revision: str | None) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, split=split, revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--data-dir {name}: neither a folder or file here nor a data set with the split {split} on the hub "
            f"({reason}); see --data-split and --data-revision, or download it and pass the folder"
        ) from None


# ---- files -----------------------------------------------------------------------------------------------------------


def _jsonl(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: {_not_utf8(error)}") from None
            if text := text.strip():
                yield f"{path}:{number}", text


def _json(path: Path) -> Iterator[RawRow]:
    """An array of rows; or what jsonl has, under another name."""
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _jsonl(path)
        return
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {_not_utf8(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not JSON ({error}); write an array of objects, or one JSON object per line"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", json.dumps(row)


def _csv(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader, line = csv.DictReader(file), 2
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"{path}:{line}: not as many fields as the header; quote those with commas")
                yield f"{path}:{line}", json.dumps(row)
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{line}: {_not_utf8(error)}") from None
        except csv.Error as error:
            raise ValueError(f"{path}:{line}: not CSV ({error}); write the file again, with quoted fields") from None


def _parquet(path: Path) -> Iterator[RawRow]:
    try:
        file, number = parquet.ParquetFile(path), 0
        for batch in file.iter_batches(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", json.dumps(row, default=str)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a parquet file ({' '.join(str(error).split())}); write it again") from None


READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 ({error.reason}); convert the file to UTF-8"


# ---- hashes ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, modified: int) -> str:
    return sha256(path)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _held_out(hashes: np.ndarray) -> set[int]:
    """The smallest hashes, until they have the rows that are wanted; one prompt stays in train.

    A prompt with more rows than that is left in train, where one with fewer can be held out.
    """
    prompts, counts = np.unique(hashes, return_counts=True)
    wanted = min(MOST_HELD_OUT, max(1, int(HELD_OUT_SHARE * len(hashes))))
    few = counts <= max(wanted, counts.min(initial=len(hashes)))
    taken = min(int(np.searchsorted(counts[few].cumsum(), wanted)) + 1, len(prompts) - 1)
    return set(prompts[few][: max(0, taken)].tolist())
