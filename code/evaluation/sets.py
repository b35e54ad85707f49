"""The data sets of an evaluation: their rows, their names, and where they come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arguments import EvaluateArguments
from data_utils.manifest import MANIFEST, data_origin
from data_utils.prompts import PromptTemplate
from data_utils.rows import Row, read_rows
from data_utils.sources import Source, find_source
from runtime.log import counted_rows


@dataclass(frozen=True)
class DataSet:
    """origin: what `data_utils.manifest.data_origin` says of the file; None without a manifest."""

    name: str
    source: Source
    rows: list[Row]
    origin: dict[str, Any] | None

    def warnings(self) -> list[str]:
        """What a user should know before comparing scores on these rows with others."""
        found = []
        if self.origin is not None and not self.origin["sha256_matches"]:
            manifest = self.source.files[0].with_name(MANIFEST)
            found.append(f"{self.source.name} is not the file that {manifest} describes; prepare the data again")
        if empty := [row.place for row in self.rows if not any(row.responses)]:
            found.append(f"{counted_rows(len(empty))} with an empty reference, counted as 0: {', '.join(empty[:5])}")
        return found


def read_sets(args: EvaluateArguments, template: PromptTemplate) -> list[DataSet]:
    """Raises ValueError, FileNotFoundError."""
    places = [str(Path(place).resolve()) if Path(place).exists() else place for place in args.data_dir]
    places = list(dict.fromkeys(places))
    sources = [find_source(place, args.split) for place in places]
    return [
        DataSet(
            name,
            source,
            read_rows(source, template, args.dev_num, empty_references=True),
            data_origin(Path(place), args.split) if source.files == (Path(place) / f"{args.split}.jsonl",) else None,
        )
        for place, source, name in zip(places, sources, _names(places))
    ]


def _names(places: list[str]) -> list[str]:
    """The last part of each path; two parts if the last is ambiguous (11_ of data/sinst/11_)."""
    folders = [Path(place) if Path(place).is_dir() else Path(place).with_suffix("") for place in places]
    last_parts = [folder.name for folder in folders]
    return [
        folder.name
        if any(map(str.isalpha, folder.name)) and last_parts.count(folder.name) == 1
        else "-".join(folder.parts[-2:])
        for folder in folders
    ]
