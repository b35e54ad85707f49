"""The quickstart goes the whole way; a few steps only, since how well the models get is not a matter of a test."""

import shutil
import subprocess
import sys
from pathlib import Path

from integration.launch import ENVIRONMENT, ROOT

RUNS = ROOT / "outputs/quickstart/seed999"


def run(command: str) -> str:
    short = {"PYTHON": sys.executable, "SEED": "999", "KD_OBJ": "adakd+js", "TOTAL_ITERS": "2", "EVAL_NUM": "4"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**ENVIRONMENT, **short, "GPUS": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_the_quickstart_ends_in_a_table_commands_that_work_and_a_report():
    try:
        printed = run("bash scripts/quickstart.sh")
        evaluate, distil, _, report = (line.strip() for line in printed.splitlines()[-4:])
        page = Path(report).read_text()
        assert report == str(RUNS / "report.html") and all(f"student-{name}" in page for name in ("sft", "adakd+js"))
        assert "seed 50" in run(evaluate)
        run(f"SAVE_DIR={RUNS}/next {distil}")
        assert list((RUNS / "next").glob("epoch*"))
    finally:
        shutil.rmtree(RUNS, ignore_errors=True)
    header, _, *rows = printed.rstrip().splitlines()[-11:-6]
    assert header.split() == ["run", "parameters", "dev", "loss", "ROUGE-L", "seconds"]
    assert [row.split()[0] for row in rows] == ["teacher", "student-sft", "student-adakd+js"]
    teacher, student = (int(row.split()[1].replace(",", "")) for row in rows[:2])
    assert 2_000_000 <= teacher <= 4_000_000 and student * 4 <= teacher
