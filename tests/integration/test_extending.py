"""The objective of docs/extending.md works as it stands there: one file, and every entry point knows it."""

import json
import re
import shutil
import sys

from integration.launch import ROOT, run


def test_the_documented_objective_trains(tiny, rows, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), flags=re.DOTALL)
    (objective,) = [block for block in blocks if "@register" in block]
    shutil.copytree(ROOT / "code", tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "code/criterions/hellinger.py").write_text(objective)
    command = [
        *(sys.executable, str(tmp_path / "code/distillation.py"), "--kd-objective", "adakd+hellinger"),
        *("--hellinger-power", "0.75"),
        *("--model-path", str(tiny / "student"), "--teacher-model-path", str(tiny / "teacher")),
        *("--data-dir", str(rows), "--save-dir", str(tmp_path / "run"), "--kd-rate", "1", "--total-iters", "12"),
        *("--batch-size", "12", "--num-epochs", "6", "--log-interval", "1", "--lr", "3e-3", "--dev-num", "2"),
    ]
    done = run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert 0 < records[-1]["kd_loss"] < records[0]["kd_loss"]
    assert json.loads((tmp_path / "run/args.json").read_text())["hellinger_power"] == 0.75
    help_text = run([sys.executable, str(tmp_path / "code/distillation.py"), "--help"]).stdout
    assert "--hellinger-power POWER" in help_text and "(default: 0.5)" in help_text
    refused = run([*command, "--hellinger-power", "1.5"])
    assert "--hellinger-power 1.5: pass a number above 0 and at most 1" in refused.stderr
