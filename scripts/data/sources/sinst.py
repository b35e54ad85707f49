"""Super-NaturalInstructions: the 119 English test tasks (Wang et al. 2022, arXiv 2204.07705).

splits/default/test_tasks.txt names the tasks; tasks/NAME.json has `Definition` (text, or a list of one) and
`Instances`: `id`, `input` and `output`, a list of right answers. The first 100 instances of a task are its test set.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sources.base import BadRow, DataSet, Example, example, field, texts
from sources.files import Files, GitHub

TEST_INSTANCES = 100


def read(files: Files) -> Iterator[Example | BadRow]:
    for task in files.find("splits/default/test_tasks.txt").read_text(encoding="utf-8").split():
        yield from read_task(files.find(f"tasks/{task}.json"), task)


def read_task(path: Path, task: str) -> Iterator[Example | BadRow]:
    try:
        content = json.loads(path.read_bytes())
        definition, instances = "\n".join(texts(content, "Definition")), field(content, "Instances", list)
    except ValueError as error:
        yield BadRow(f"{task}.json", str(error))
        return
    for number, instance in enumerate(instances[:TEST_INSTANCES], start=1):
        place = f"{task}.json, instance {number}"
        try:
            yield example(definition, field(instance, "input"), texts(instance, "output"), place)
        except ValueError as error:
            yield BadRow(place, str(error))


SINST = DataSet(
    title="Super-NaturalInstructions, English test tasks",
    licence="Apache-2.0",
    home=GitHub("allenai/natural-instructions", "v2.8"),
    output_dir="data/sinst/{min_response_tokens}_",
    read=read,
    numbers={"min_response_tokens": 11},
)
