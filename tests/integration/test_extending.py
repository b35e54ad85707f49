"""Objective, prompt template and metric of docs/extending.md work as they stand there: one file each."""

import json
import re
import shutil
import sys
from pathlib import Path

from datasets import load_from_disk

from integration.launch import ROOT, run
from models.loading import load_tokenizer


def copy_with_examples(folder: Path, **files: str) -> Path:
    """A copy of code/ below `folder`, with the page's example that registers a name as its file."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), flags=re.DOTALL)
    code = shutil.copytree(ROOT / "code", folder / "code", ignore=shutil.ignore_patterns("__pycache__"))
    for name, file in files.items():
        (example,) = [block for block in blocks if f'@register("{name}")' in block]
        (code / file).write_text(example)
    return code


def test_the_documented_objective_and_template_train(tiny, rows, tmp_path):
    code = copy_with_examples(tmp_path, hellinger="criterions/hellinger.py", vicuna="data_utils/prompts/vicuna.py")
    command = [
        *(sys.executable, str(code / "distillation.py"), "--kd-objective", "adakd+hellinger"),
        *("--hellinger-power", "0.75"),
        *("--model-path", str(tiny / "student"), "--teacher-model-path", str(tiny / "teacher")),
        *("--data-dir", str(rows), "--save-dir", str(tmp_path / "run"), "--kd-rate", "1", "--total-iters", "12"),
        *("--batch-size", "12", "--num-epochs", "6", "--log-interval", "1", "--lr", "3e-3", "--dev-num", "2"),
        *("--prompt-template", "vicuna", "--processed-data-dir", str(tmp_path / "tokenised")),
    ]
    done = run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert 0 < records[-1]["kd_loss"] < records[0]["kd_loss"]
    assert json.loads((tmp_path / "run/args.json").read_text())["hellinger_power"] == 0.75
    help_text = run([sys.executable, str(code / "distillation.py"), "--help"]).stdout
    assert "--hellinger-power POWER" in help_text and "(default: 0.5)" in help_text
    refused = run([*command, "--hellinger-power", "1.5"])
    assert "--hellinger-power 1.5: pass a number above 0 and at most 1" in refused.stderr
    (train,) = (tmp_path / "tokenised").glob("*-train-*")
    prompt = load_tokenizer(str(tiny / "student")).decode(load_from_disk(str(train))[0]["prompt_ids"])
    assert prompt.startswith("USER: Say ") and prompt.endswith(" ASSISTANT:")


def test_the_documented_metric_scores(tiny, rows, tmp_path):
    code = copy_with_examples(tmp_path, no_letter_first="evaluation/metrics/letter.py")
    command = [sys.executable, str(code / "evaluate.py"), "--model-path", str(tiny / "student")]
    done = run([*command, "--data-dir", str(rows), "--save-dir", str(tmp_path), "--max-new-tokens", "2"])
    assert done.returncode == 0, done.stderr[-3000:]
    (answers,), (metrics,) = tmp_path.rglob("answers.jsonl"), tmp_path.rglob("metrics.json")
    found = [json.loads(line)["no_letter_first"] for line in answers.read_text().splitlines()]
    assert set(found) <= {0, 100} and json.loads(metrics.read_text())["no_letter_first"] == sum(found) / len(found)
