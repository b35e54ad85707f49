"""Downloads databricks-dolly-15k and writes `train.jsonl`, `dev.jsonl` and `valid.jsonl`.

In: the data set `databricks/databricks-dolly-15k` of the Hugging Face hub (CC BY-SA 3.0). Out: one JSON object per line
with `instruction`, `input` (the passage that the instruction is about, often empty) and `output`.

    python scripts/data/prepare_dolly.py [--output-dir data/dolly] [--force]
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

HUB_ID = "databricks/databricks-dolly-15k"
Example = dict[str, str]


def to_examples(rows: Iterable[Mapping[str, str]]) -> list[Example]:
    """The hub's rows in the schema of this project, in the same order, without empty rows and exact duplicates.

    A duplicate could otherwise be in the training split and in the test set.
    """
    examples: dict[tuple[str, str, str], Example] = {}
    for row in rows:
        instruction, passage, response = (row[key].strip() for key in ("instruction", "context", "response"))
        if instruction and response:
            example = {"instruction": instruction, "input": passage, "output": response}
            examples.setdefault((instruction, passage, response), example)
    return list(examples.values())


def split_examples(examples: Sequence[Example], dev_num: int, valid_num: int, seed: int) -> dict[str, list[Example]]:
    """Disjoint `valid`, `dev` and `train` (the rest), shuffled by the seed.

    Raises ValueError if nothing is left to train on.
    """
    if len(examples) <= dev_num + valid_num:
        raise ValueError(
            f"--dev-num {dev_num} --valid-num {valid_num}: only {len(examples)} examples, none is left for training; "
            "pass smaller numbers"
        )
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return {
        "valid": shuffled[:valid_num],
        "dev": shuffled[valid_num : valid_num + dev_num],
        "train": shuffled[valid_num + dev_num :],
    }


def refuse_to_overwrite(output_dir: Path, force: bool) -> None:
    """Raises FileExistsError if a file that would be written exists and `force` is off."""
    present = [path.name for path in sorted(output_dir.glob("*.jsonl")) if path.stem in ("train", "dev", "valid")]
    if present and not force:
        raise FileExistsError(
            f"--output-dir {output_dir}: {', '.join(present)} there already; pass --force to replace, or another folder"
        )


def write_splits(splits: Mapping[str, Sequence[Example]], output_dir: Path) -> None:
    """Writes `<split>.jsonl` per split. The files get their names when all are complete."""
    output_dir.mkdir(parents=True, exist_ok=True)
    partial = {split: output_dir / f".{split}.jsonl.partial" for split in splits}
    try:
        for split, examples in splits.items():
            with partial[split].open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
        for split, path in partial.items():
            os.replace(path, output_dir / f"{split}.jsonl")
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"Download {HUB_ID} and split it.", allow_abbrev=False)
    parser.add_argument("--output-dir", type=Path, default=Path("data/dolly"))
    parser.add_argument("--dev-num", type=int, default=1000, help="rows of dev.jsonl")
    parser.add_argument("--valid-num", type=int, default=500, help="rows of valid.jsonl, the test set")
    parser.add_argument("--seed", type=int, default=10, help="decides the split")
    parser.add_argument("--force", action="store_true", help="replace existing files")
    arguments = parser.parse_args(argv)
    for flag, value in (("--dev-num", arguments.dev_num), ("--valid-num", arguments.valid_num)):
        if value < 1:
            parser.error(f"{flag} {value}: pass 1 or more")
    return arguments


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    refuse_to_overwrite(arguments.output_dir, arguments.force)
    from datasets import load_dataset  # takes seconds to import, so only after the checks

    examples = to_examples(load_dataset(HUB_ID, split="train"))
    splits = split_examples(examples, arguments.dev_num, arguments.valid_num, arguments.seed)
    write_splits(splits, arguments.output_dir)
    for split, rows in splits.items():
        print(f"{arguments.output_dir / f'{split}.jsonl'}: {len(rows)} examples")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:  # OSError: also no network
        sys.exit(f"prepare_dolly.py: {error}")
