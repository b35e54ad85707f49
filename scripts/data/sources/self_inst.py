"""Self-Instruct's user-oriented instructions: 252 tasks written by experts (Wang et al. 2023, arXiv 2212.10560).

A row has `id`, `motivation_app`, `instruction` and `instances`: a list with one `input` and `output`.
"""

from collections.abc import Iterator
from typing import Any

from sources.base import BadRow, DataSet, Example, example, field, read_jsonl
from sources.files import Files, GitHub


def read(files: Files) -> Iterator[Example | BadRow]:
    return read_jsonl(files.find("human_eval/user_oriented_instructions.jsonl"), instances)


def instances(row: Any, place: str) -> Iterator[Example]:
    """One example per instance, of which there has to be one. Also of Unnatural Instructions, which has this form."""
    for instance in field(row, "instances", list) or [{}]:
        yield example(field(row, "instruction"), field(instance, "input"), [field(instance, "output")], place)


SELF_INST = DataSet(
    title="Self-Instruct, user-oriented instructions",
    licence="Apache-2.0",
    home=GitHub("yizhongw/self-instruct", "0b26ccaa415992100fa32df62d41b994cf928e23"),
    output_dir="data/self-inst",
    read=read,
    numbers={},
)
