"""The quickstart goes the whole way; a few steps only, since how well the models get is not a matter of a test."""

import shutil
import subprocess
import sys

from integration.launch import ENVIRONMENT, ROOT


def test_the_quickstart_ends_in_a_table():
    short = {"PYTHON": sys.executable, "SEED": "999", "KD_OBJ": "adakd+js", "TOTAL_ITERS": "2", "EVAL_NUM": "4"}
    try:
        done = subprocess.run(
            ["bash", "scripts/quickstart.sh"],
            cwd=ROOT,
            env={**ENVIRONMENT, **short, "GPUS": "0"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    finally:
        shutil.rmtree(ROOT / "outputs/quickstart/seed999", ignore_errors=True)
    header, _, *rows = done.stdout.rstrip().splitlines()[-5:]
    assert header.split() == ["run", "parameters", "dev", "loss", "ROUGE-L", "seconds"]
    assert [row.split()[0] for row in rows] == ["teacher", "student-sft", "student-adakd+js"]
    teacher, student = (int(row.split()[1].replace(",", "")) for row in rows[:2])
    assert 2_000_000 <= teacher <= 4_000_000 and student * 4 <= teacher
