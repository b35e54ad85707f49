"""The objective and the metric of docs/extending.md work as they stand there: one file each, nothing else changes."""

import json
import re
import shutil
import sys

from integration.launch import ROOT, run


def copy_with_example(name: str, folder, file: str):
    """A copy of code/ below `folder`, with the example that registers `name` as `file`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), flags=re.DOTALL)
    (example,) = [block for block in blocks if f'@register("{name}")' in block]
    code = shutil.copytree(ROOT / "code", folder / "code", ignore=shutil.ignore_patterns("__pycache__"))
    (code / file).write_text(example)
    return code


def test_the_documented_objective_trains(tiny, rows, tmp_path):
    code = copy_with_example("hellinger", tmp_path, "criterions/hellinger.py")
    command = [
        *(sys.executable, str(code / "distillation.py"), "--kd-objective", "adakd+hellinger"),
        *("--model-path", str(tiny / "student"), "--teacher-model-path", str(tiny / "teacher")),
        *("--data-dir", str(rows), "--save-dir", str(tmp_path / "run"), "--kd-rate", "1", "--total-iters", "12"),
        *("--batch-size", "12", "--num-epochs", "6", "--log-interval", "1", "--lr", "3e-3", "--dev-num", "2"),
    ]
    done = run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert 0 < records[-1]["kd_loss"] < records[0]["kd_loss"]


def test_the_documented_metric_scores(tiny, rows, tmp_path):
    code = copy_with_example("ended", tmp_path, "evaluation/metrics/ended.py")
    command = [
        sys.executable,
        str(code / "evaluate.py"),
        "--model-path",
        str(tiny / "student"),
        "--data-dir",
        str(rows),
    ]
    done = run([*command, "--save-dir", str(tmp_path), "--max-new-tokens", "2"])
    assert done.returncode == 0, done.stderr[-3000:]
    (answers,), (metrics,) = tmp_path.rglob("answers.jsonl"), tmp_path.rglob("metrics.json")
    ended = [json.loads(line)["ended"] for line in answers.read_text().splitlines()]
    assert set(ended) <= {0, 100} and json.loads(metrics.read_text())["ended"] == sum(ended) / len(ended)
