"""databricks-dolly-15k: 15,011 instructions and answers written by Databricks' employees (Conover et al. 2023).

A row has `instruction`, `context` (the passage that the instruction is about, often empty), `response`, `category`.
"""

from collections.abc import Iterator

from sources.base import BadRow, DataSet, Example, example, field, read_jsonl
from sources.files import Files, Hub


def read(files: Files) -> Iterator[Example | BadRow]:
    return read_jsonl(
        files.find("databricks-dolly-15k.jsonl"),
        lambda row, place: [example(field(row, "instruction"), field(row, "context"), [field(row, "response")], place)],
    )


DOLLY = DataSet(
    title="databricks-dolly-15k",
    licence="CC BY-SA 3.0",
    home=Hub("databricks/databricks-dolly-15k", "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a"),
    output_dir="data/dolly",
    read=read,
    numbers={"dev_num": 1000, "valid_num": 500, "seed": 10},
)
