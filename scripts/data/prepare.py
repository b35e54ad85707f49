"""Makes one of the data sets of the papers: Dolly for training and testing, four more for testing.

In: the set's own files, downloaded or local (--source). Out: a folder with `valid.jsonl` (Dolly: also `train.jsonl` and
`dev.jsonl`), rows of `instruction`, `input`, `output`, and `manifest.json`: source, revision, licence, rows after each
step and the first ones dropped, sha256 of each file. The same files and flags give the same rows.

    python scripts/data/prepare.py dolly|self-inst|vicuna|sinst|uinst [--source FILE_OR_FOLDER] [--force]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "code"))
from selection import Selection, load_tokenizer, select, split
from sources import SETS
from sources.base import DataSet, Example
from sources.files import Downloads, Files, LocalFiles

from data_utils.manifest import MANIFEST, read_manifest, sha256
from runtime.atomic import new_folder

VERSION = 1  # raise it when the same source and settings would give other rows
NUMBERS = {
    "dev_num": "rows of dev.jsonl",
    "valid_num": "rows of valid.jsonl, the test set",
    "min_response_tokens": "drop rows whose first reference is shorter; words, or tokens of --tokenizer",
    "sample": "rows to draw",
    "seed": "of the split, or of the rows drawn",
}


def refuse_to_overwrite(folder: Path, force: bool) -> None:
    """Raises FileExistsError where a file is in the folder: one of this tool's without `force`, another always."""
    present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    manifest = read_manifest(folder) if present else None
    ours = {MANIFEST, *manifest["files"]} if manifest else set()
    others = [name for name in present if name not in ours]
    if others:
        raise FileExistsError(
            f"--output-dir {folder}: {', '.join(others[:3])} there, which this tool did not write; "
            "move the folder away, or pass another"
        )
    if present and not force:
        raise FileExistsError(
            f"--output-dir {folder}: {', '.join(present)} there already; pass --force to replace, or another folder"
        )


def write(folder: Path, splits: dict[str, Sequence[Example]], manifest: dict[str, Any]) -> None:
    """One `<split>.jsonl` each, and the manifest. The folder appears when all are complete."""
    with new_folder(folder.resolve()) as part:
        written = {}
        for name, examples in splits.items():
            path = part / f"{name}.jsonl"
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(example.row(), ensure_ascii=False) + "\n" for example in examples)
            written[path.name] = {"rows": len(examples), "sha256": sha256(path)}
        text = json.dumps(manifest | {"files": written}, ensure_ascii=False, indent=2)
        (part / MANIFEST).write_text(text + "\n", encoding="utf-8")


def build_manifest(args: argparse.Namespace, data_set: DataSet, files: Files, selection: Selection) -> dict[str, Any]:
    settings = {name: getattr(args, name) for name in (*NUMBERS, "max_prompt_length", "max_length", "tokenizer")}
    return {
        "made_by": f"scripts/data/prepare.py, version {VERSION}",
        "set": args.set,
        "title": data_set.title,
        "licence": data_set.licence,
        "source": {
            "page": data_set.home.page,
            "revision": files.revision,
            "local": args.source is not None,
            "files": {name: sha256(path) for name, path in files.used.items()},
        },
        "settings": {name: value for name, value in settings.items() if value is not None},
        "steps": selection.steps,
    }


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make one of the data sets.", allow_abbrev=False)
    sets = parser.add_subparsers(dest="set", required=True, metavar="|".join(SETS))
    for name, data_set in SETS.items():
        flags = sets.add_parser(name, help=data_set.title, allow_abbrev=False)
        flags.add_argument("--source", type=Path, help="local file, or folder of the set's files; default: download")
        flags.add_argument("--revision", help=f"commit, tag or branch; default for downloads: {data_set.home.revision}")
        flags.add_argument("--output-dir", type=Path, help=f"default: {data_set.output_dir.format(**data_set.numbers)}")
        flags.add_argument("--force", action="store_true", help="replace a folder that this tool made")
        flags.add_argument("--tokenizer", help="folder of the tokenizer that counts tokens")
        flags.add_argument("--max-prompt-length", type=int, help="drop rows whose prompt has more tokens")
        flags.add_argument("--max-length", type=int, help="drop rows with more tokens in all, EOS included")
        flags.set_defaults(**dict.fromkeys(NUMBERS))
        for number, default in data_set.numbers.items():
            flags.add_argument(f"--{number.replace('_', '-')}", type=int, default=default, help=NUMBERS[number])
    args = parser.parse_args(argv)
    for name in (*NUMBERS, "max_prompt_length", "max_length"):
        value = getattr(args, name)
        if value is not None and value < 1 and name != "seed":
            parser.error(f"--{name.replace('_', '-')} {value}: pass 1 or more")
    limits = args.max_prompt_length or args.max_length
    if limits and not args.tokenizer:
        parser.error(
            "--max-prompt-length and --max-length count tokens: pass --tokenizer, such as the student's folder"
        )
    if args.tokenizer and not (limits or args.min_response_tokens):
        parser.error(f"--tokenizer {args.tokenizer}: it counts nothing; pass --max-prompt-length or --max-length too")
    args.output_dir = args.output_dir or Path(SETS[args.set].output_dir.format(**vars(args)))
    return args


def main(argv: Sequence[str]) -> None:
    """Raises ValueError and OSError with the flag and the remedy."""
    args = parse_arguments(argv)
    data_set = SETS[args.set]
    refuse_to_overwrite(args.output_dir, args.force)
    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
    with tempfile.TemporaryDirectory() as folder:
        if args.source:
            files = LocalFiles(args.source, args.revision)
        else:
            files = Downloads(data_set.home, args.revision, Path(folder))
        selection = select(data_set.read(files), tokenizer, args)
        print_steps(selection.steps)
        splits = split(selection.examples, args)
        write(args.output_dir, splits, build_manifest(args, data_set, files, selection))
    for name, examples in splits.items():
        print(f"{args.output_dir / f'{name}.jsonl'}: {len(examples)} examples")


def print_steps(steps: Sequence[dict[str, Any]]) -> None:
    for step in steps:
        print(f"{step['step']:10}{-step['dropped'] if step.get('dropped') else '':>8}{step['rows']:>8}")
        if step["step"] == "bad":
            print("".join(f"    {place}\n" for place in step.get("first", [])), end="")


def run(argv: Sequence[str]) -> None:
    """`main`, with errors as one line."""
    try:
        main(argv)
    except (ValueError, OSError) as error:  # also: no network
        sys.exit(f"prepare.py: {error}")


if __name__ == "__main__":
    run(sys.argv[1:])
