"""The data sets of an evaluation: their rows, their names, and where they come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arguments import EvaluateArguments
from data_utils.dataset import Row, read_rows
from data_utils.manifest import MANIFEST, data_origin
from data_utils.prompts import prompt_template


@dataclass(frozen=True)
class DataSet:
    """origin: what `data_utils.manifest.data_origin` says of the file; None without a manifest."""

    name: str
    file: Path
    rows: list[Row]
    origin: dict[str, Any] | None

    def warnings(self) -> list[str]:
        """What a user should know before comparing scores on these rows with others."""
        found = []
        if self.origin is not None and not self.origin["sha256_matches"]:
            manifest = self.file.with_name(MANIFEST)
            found.append(f"{self.file} is not the file that {manifest} describes; prepare the data again")
        if empty := [row.place for row in self.rows if not any(row.responses)]:
            found.append(f"{len(empty)} rows have an empty reference and count 0: {', '.join(empty[:5])}")
        return found


def read_sets(args: EvaluateArguments) -> list[DataSet]:
    """Raises ValueError, FileNotFoundError."""
    folders = list(dict.fromkeys(Path(folder).resolve() for folder in args.data_dir))
    template = prompt_template(args.prompt_template)
    return [
        DataSet(
            name,
            file := folder / f"{args.split}.jsonl",
            read_rows(file, template, args.dev_num, empty_references=True),
            data_origin(folder, args.split),
        )
        for folder, name in zip(folders, _names(folders))
    ]


def _names(folders: list[Path]) -> list[str]:
    """The last part of each path; two parts where one says nothing (11_ of data/sinst/11_) or is not unique."""
    last_parts = [folder.name for folder in folders]
    return [
        folder.name
        if any(map(str.isalpha, folder.name)) and last_parts.count(folder.name) == 1
        else "-".join(folder.parts[-2:])
        for folder in folders
    ]
