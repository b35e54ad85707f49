"""Starts processes for the integration tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}


def torchrun(processes: int, *command: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, *command]


def run(command: list[str], timeout: float = 600, **environment: str) -> subprocess.CompletedProcess:
    """Output captured, failure left to the caller."""
    return subprocess.run(
        command, cwd=ROOT, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=timeout
    )


def run_jobs(folder: Path, processes: int, jobs: list[dict]) -> None:
    """Runs tests/integration/worker.py on `jobs`; results are in `folder`/NAME.pt."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs_file = folder / f"jobs{processes}.json"
    jobs_file.write_text(json.dumps({"out": str(folder), "jobs": jobs}))
    done = run(torchrun(processes, "tests/integration/worker.py", str(jobs_file)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def run_forks(folder: Path, jobs: list[dict]) -> dict[str, list[dict]]:
    """Runs tests/integration/forks.py on `jobs`; its reports by the name of the job."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs_file = folder / "jobs.json"
    jobs_file.write_text(json.dumps({"out": str(folder), "jobs": jobs}))
    done = run([sys.executable, "tests/integration/forks.py", str(jobs_file)], timeout=3600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return {job["name"]: json.loads((folder / f"{job['name']}.json").read_text()) for job in jobs}
