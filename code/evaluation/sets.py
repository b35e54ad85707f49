"""The data sets of an evaluation: their rows and their names."""

from pathlib import Path

from arguments import EvaluateArguments
from data_utils.dataset import Row, read_rows
from data_utils.prompts import prompt_template


def read_sets(args: EvaluateArguments) -> dict[str, list[Row]]:
    """The rows of each data set, by its name. Raises ValueError, FileNotFoundError."""
    folders, template = [Path(folder).resolve() for folder in args.data_dir], prompt_template(args.prompt_template)
    return {
        name: read_rows(folder / f"{args.split}.jsonl", template, args.dev_num, empty_references=True)
        for folder, name in zip(folders, _names(folders))
    }


def _names(folders: list[Path]) -> list[str]:
    """The last part of each path; two parts if the last is ambiguous (11_ of data/sinst/11_)."""
    last_parts = [folder.name for folder in dict.fromkeys(folders)]
    return [
        folder.name
        if any(map(str.isalpha, folder.name)) and last_parts.count(folder.name) == 1
        else "-".join(folder.parts[-2:])
        for folder in folders
    ]
