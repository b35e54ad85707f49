"""The long tests behind docs/reliability.md, each on tiny models on a CPU; too slow for the default run.

    python tests/soak/campaign.py kills [--kills 20] [--seed 0]   kill -9 anywhere, resume, compare to the bit
    python tests/soak/campaign.py onpolicy [--kills 10] [--seed 0]   the same of runs that sample
    python tests/soak/campaign.py matrix [--seed 0]     the same, once for every ZeRO stage, student, objective, ranks
    python tests/soak/campaign.py configs [--seed 0]    the same for the files in configs/deepspeed, on two ranks
    python tests/soak/campaign.py disk                  a real file system that fills (tmpfs; needs root)
    python tests/soak/campaign.py launchers             signals and a dying rank under torchrun and deepspeed
    python tests/soak/campaign.py memory [--steps 2000] resident memory over a long run

Prints what it found and ends with 1 if anything was not as it should be.
"""

import argparse
import ctypes
import gc
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests")]
os.environ["DS_ACCELERATOR"] = "cpu"

from integration.launch import ENVIRONMENT, run_forks, torchrun  # noqa: E402
from integration.runs import (  # noqa: E402
    OBJECTIVES,
    ON_POLICY,
    STUDENTS,
    arguments,
    differences,
    missing_precision,
    outcome,
    zero_config,
)

DEEPSPEED = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "29741"]


def inputs(folder: Path, rows: int = 24) -> tuple[Path, Path]:
    """Tiny models, and a data folder with so many rows."""
    from tiny import make_models, make_rows

    make_models(folder / "models")
    (folder / "rows").mkdir()
    made = make_rows(rows + 5)
    for name, part in (("train", made[:rows]), ("dev", made[rows:])):
        (folder / f"rows/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder / "models", folder / "rows"


def compare(folder: Path, cases: dict[str, tuple]) -> int:
    """cases: name -> ranks, stage, student, objective, faults. Returns how many ended otherwise than the whole run."""
    tiny, rows = inputs(folder)
    jobs = []
    for name, (ranks, stage, student, objective, faults) in cases.items():
        config = stage if isinstance(stage, Path) else zero_config(folder, stage)
        for kind, attempts in (("whole", [{}]), ("cut", [*({"fault": fault} for fault in faults), {}])):
            argv = arguments(tiny, rows, folder / f"{name}.{kind}", config, objective, student)
            if student == "lora":  # the others have a live teacher
                argv += ["--teacher-cache", str(folder / f"{name}.cache")]
            jobs.append({"name": f"{name}.{kind}", "ranks": ranks, "argv": argv, "attempts": attempts})
    reports = run_forks(folder, jobs)
    wrong = 0
    for name, case in cases.items():
        (whole,), cut = reports[f"{name}.whole"], reports[f"{name}.cut"]
        codes = [attempt["codes"] for attempt in cut]
        killed = sum(-9 in of_ranks for of_ranks in codes)
        try:
            differ = differences(outcome(folder / f"{name}.whole", whole), outcome(folder / f"{name}.cut", ended(cut)))
        except AssertionError as failure:
            differ = [str(failure)[-2000:]]
        if not killed:
            differ = ["nothing was killed"]
        wrong += bool(differ)
        print(f"{name:28} {case[-1]} {codes}: {killed} killed, {differ[:5] or 'equal to the bit'}", flush=True)
    print(f"{len(cases) - wrong} of {len(cases)} runs equal")
    return wrong


def ended(attempts: list[dict]) -> dict:
    """The attempt that took the last step; one after it finds the run finished."""
    return next(attempt for attempt in attempts if all(attempt["finals"]))


def configs(folder: Path, args: argparse.Namespace) -> int:
    """The shipped DeepSpeed files: every stage, fp32, bf16, fp16 and offload."""
    draw = random.Random(args.seed)
    cases = {}
    for path in sorted((ROOT / "configs/deepspeed").glob("*.json")):
        student, fault = draw.choice(list(STUDENTS)), random_fault(draw, 2)
        if missing := missing_precision(json.loads(path.read_text())):
            print(f"{path.stem}: skipped, DeepSpeed's accelerator has no {missing} on this machine")
        else:
            cases[f"{path.stem} {student}"] = (2, path, student, "adakd", [fault])
    return compare(folder, cases)


def random_fault(draw: random.Random, ranks: int) -> dict:
    """A kill at a change in the folder, inside a step, or at any time."""
    rank = draw.randrange(ranks)
    kinds = (
        {"event": draw.randrange(1, 60 if rank == 0 else 5)},
        {"step": draw.randint(1, 12 // ranks), "signal": "SIGKILL"},
        {"seconds": draw.uniform(0.1, 0.9)},
    )
    return draw.choice(kinds) | {"rank": rank}


def kills(folder: Path, args: argparse.Namespace) -> int:
    return kill_each(folder, args, ("todi", "adakd"))


def onpolicy(folder: Path, args: argparse.Namespace) -> int:
    return kill_each(folder, args, tuple(ON_POLICY), between=0.3)


def kill_each(folder: Path, args: argparse.Namespace, objectives: tuple[str, ...], between: float = 0.0) -> int:
    """between: share of the kills that fall between the first epoch's evaluation and the update of the state."""
    draw = random.Random(args.seed)
    cases = {}
    for number in range(args.kills):
        ranks, stage = draw.choice((1, 2)), draw.randrange(4)
        setting = (ranks, stage, draw.choice(list(STUDENTS)), draw.choice(objectives))
        name = f"{number:02} {ranks}x zero{stage} {setting[2]} {setting[3]}"
        fault = random_fault(draw, ranks)
        if between and draw.random() < between:
            fault = {"update": 1, "rank": fault["rank"]}
        cases[name] = (*setting, [fault])
    return compare(folder, cases)


def matrix(folder: Path, args: argparse.Namespace) -> int:
    draw = random.Random(args.seed)
    settings = itertools.product((1, 2), range(4), STUDENTS, [name for name in OBJECTIVES if name != "sft"])
    cases = {}
    for ranks, stage, student, objective in settings:
        fault = {"step": draw.randint(1, 12 // ranks), "rank": draw.randrange(ranks), "signal": "SIGKILL"}
        cases[f"{ranks}x zero{stage} {student} {objective}"] = (ranks, stage, student, objective, [fault])
    return compare(folder, cases)


def disk(folder: Path, args: argparse.Namespace) -> int:
    """The save folder is a tmpfs that another program fills, up to some kB, at the second step; then it has room."""
    tiny, rows = inputs(folder)
    config = zero_config(folder, 0)
    wrong = 0
    for kilobytes in (0, 100, 300, 500, 600, 700):
        save_dir = folder / f"run{kilobytes}"
        argv = arguments(tiny, rows, save_dir, config, "adakd", "full")
        whole_dir = folder / f"whole{kilobytes}"
        whole = arguments(tiny, rows, whole_dir, config, "adakd", "full")
        save_dir.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(save_dir)]
        subprocess.run(mount, check=True)
        fault = {"leave_kb": kilobytes, "from_step": 2}
        full_job = {"name": "full", "ranks": 1, "argv": argv, "attempts": [{"fault": fault}]}
        try:
            full = run_forks(folder, [full_job])["full"][0]
            there = sorted(path.name for path in save_dir.iterdir())
            (save_dir / "filler").unlink()
            subprocess.run(["mount", "-o", "remount,size=64m", str(save_dir)], check=True)
            jobs = [{"name": "run", "ranks": 1, "argv": argv}, {"name": "whole", "ranks": 1, "argv": whole}]
            reports = run_forks(folder, [job | {"attempts": [{}]} for job in jobs])
            differ = differences(outcome(whole_dir, reports["whole"][0]), outcome(save_dir, reports["run"][0]))
        finally:
            subprocess.run(["umount", str(save_dir)], check=True)
        last_line = full["outputs"][0].strip().splitlines()[-1]
        wrong += bool(differ) or full["codes"] not in ([74], [0])
        print(
            f"{kilobytes} kB: exit {full['codes'][0]}, {last_line[:300]}\n  left: {there}\n  then: {differ or 'equal'}"
        )
    return wrong


def launchers(folder: Path, args: argparse.Namespace) -> int:
    """Each launcher with two ranks: SIGTERM to it, SIGTERM to one rank, SIGKILL of one rank; then the same again."""
    tiny, rows = inputs(folder)
    config = zero_config(folder, 1)
    wrong = 0
    for name, launcher in (("torchrun", torchrun(2)), ("deepspeed", DEEPSPEED)):
        ends = {}
        for what in ("whole", "SIGTERM to a rank", "SIGKILL of a rank", "SIGTERM to the launcher"):
            save_dir = folder / f"{name} {what}"
            argv = arguments(tiny, rows, save_dir, config, "todi", "full")
            command = [*launcher, "code/distillation.py", *argv, "--num-epochs", "8"]
            seconds, code = (0.0, 0) if what == "whole" else interrupt(command, save_dir, what)
            done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
            ends[what] = [json.loads(line)["loss"] for line in (save_dir / "metrics.jsonl").open()]
            equal = done.returncode == 0 and ends[what] == ends["whole"]
            wrong += not equal
            log = (save_dir / "train.log").read_text()
            how = f"saved by the signal {'stopped by a signal' in log}, continued {'continues' in log}"
            print(
                f"{name}, {what}: ended after {seconds:.1f} s with {code}; {how}, {'equal' if equal else 'NOT EQUAL'}",
                flush=True,
            )
    return wrong


def interrupt(command: list[str], save_dir: Path, what: str) -> tuple[float, int]:
    """Starts, waits for the first saved state, interrupts. Returns seconds from there to the end, and the exit code."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not (save_dir / "resume/state.json").exists():
        time.sleep(0.05)
    started = time.monotonic()
    ranks = [pid for pid in descendants(process.pid) if str(save_dir) in cmdline(pid) and "launch" not in cmdline(pid)]
    ranks = [pid for pid in ranks if "torch.distributed.run" not in cmdline(pid)]
    victim = process.pid if what.endswith("launcher") else max(ranks)
    if victim == process.pid and "deepspeed.launcher.runner" in command:
        victim = next(pid for pid in descendants(process.pid) if "deepspeed.launcher.launch" in cmdline(pid))
    os.kill(victim, signal.SIGKILL if "SIGKILL" in what else signal.SIGTERM)
    code = process.wait(timeout=120)
    return time.monotonic() - started, code


def descendants(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(deeper for child in children for deeper in descendants(child))]


def cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns, of all arenas."""

    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c mapped d e in_use f g".split()]


def memory(folder: Path, args: argparse.Namespace) -> int:
    """One run in this process: memory at every 20th step, slopes over the second half.

    In use is what has been allocated and not freed: by native code, in bytes, and by Python, in blocks. Resident memory
    is that and the pages that are kept for holes between it, of which batches of ever new shapes leave ever new ones;
    before a sample, the allocator gives back the free pages.
    """
    os.environ.update(ENVIRONMENT)
    tiny, rows = inputs(folder, rows=400)
    import torch

    import distillation
    from training.loop import Trainer

    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo
    samples = np.zeros((args.steps // 20, 4))  # made before, so that the samples are no part of what grows
    original = Trainer._train_step

    def step(trainer, planned, batches):
        number = trainer.position.step + 1
        if number % 20 == 0:
            gc.collect()
            libc.malloc_trim(0)
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            info = libc.mallinfo2()
            in_use = info.in_use + info.mapped
            samples[number // 20 - 1] = number, resident / 1024, in_use / 1024, sys.getallocatedblocks()
        return original(trainer, planned, batches)

    Trainer._train_step = step
    argv = arguments(tiny, rows, folder / "run", zero_config(folder, args.stage), "adakd", "lora")
    epochs = -(-args.steps // 100)
    limits = ["--num-epochs", str(epochs), "--total-iters", str(args.steps)]
    distillation.main([*argv, *limits, "--resume-interval", "50", "--log-interval", "100"])
    for number, resident, in_use, blocks in samples[:: max(1, len(samples) // 10)]:
        print(
            f"step {number:.0f}: {resident / 1024:.1f} MB resident, {in_use / 1024:.2f} MB in use, {blocks:.0f} blocks"
        )
    half = samples[len(samples) // 2 :]
    grows("kB resident", half, 1, 0)
    # The least that a step could leave behind, the token ids of its batch, is 2 kB in three tensors.
    return grows("kB in use", half, 2, 0.1) + grows("blocks", half, 3, 0.5)


def grows(name: str, samples: np.ndarray, column: int, limit: float) -> bool:
    """Whether the slope is above `limit` a step."""
    steps, values = samples[:, 0].tolist(), samples[:, column].tolist()
    slope, start = statistics.linear_regression(steps, values)
    residuals = [value - start - slope * step for step, value in zip(steps, values)]
    error = statistics.pstdev(residuals) / (statistics.pstdev(steps) * len(steps) ** 0.5)
    print(f"second half: {slope * 1000:.1f} {name} in 1,000 steps, standard error {error * 1000:.1f}")
    return slope > limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "onpolicy", "matrix", "configs", "disk", "launchers", "memory"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--stage", type=int, default=0, help="ZeRO stage of the memory run")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        wrong = globals()[args.what](Path(folder), args)
    print(f"{args.what}: {'FAILED' if wrong else 'as it should be'}, {time.monotonic() - started:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
