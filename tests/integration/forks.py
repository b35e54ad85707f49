"""Real training processes that die: imports everything once, then forks the ranks of every run.

    python tests/integration/forks.py JOBS.json

JOBS.json: {"out": FOLDER, "jobs": [{"name", "ranks", "argv", "attempts": [{"fault": {...}, "argv": [...]}, ...]}]}. A
job makes its attempts one after the other, each with `argv` and its own additions, and each with one fault:

    {}                                     none
    {"event": K, "rank": R}                SIGKILL at the K-th change in --save-dir (open, rename, mkdir, remove)
    {"step": K, "rank": R, "signal": S}    signal S inside step K; on all ranks with rank -1; "again": seconds later
    {"update": K, "rank": R}               SIGKILL between the evaluation of the K-th epoch and the update of the state
    {"seconds": T, "rank": R}              SIGKILL from outside after T seconds
    {"nan": [K, ...], "rank": R, "in": "loss" or "gradient"}   not finite in the steps K; says whether they changed
                                           anything, unless they end the run
    {"file_size": BYTES, "from_step": K}   no file may grow beyond that (RLIMIT_FSIZE), from step K on
    {"leave_kb": KB, "from_step": K}       a file in --save-dir leaves only so much room on its disk, from step K on

As a launcher does, it ends the other ranks when one fails. FOLDER/NAME.json gets, per attempt: exit codes (negative:
by signal), output of every rank, and, of a run that finished, the number of changes and a hash of every tensor of the
weights and the optimiser.
"""

import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "code")]

import torch  # noqa: E402

import distillation  # noqa: E402
from distiller import Distiller  # noqa: E402
from training.loop import Trainer  # noqa: E402
from training.state import RunState  # noqa: E402

GRACE_SECONDS = 20
# What DeepSpeed, Transformers and PEFT import in their first run: seconds, paid for here once.
for module in "torch._inductor.compile_fx deepspeed.module_inject deepspeed.moe.layer peft.tuners.lora".split():
    importlib.import_module(module)
importlib.import_module("transformers.models.llama.modeling_llama")
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def run_attempt(folder: Path, job: dict, attempt: dict) -> dict:
    """Forks the ranks, waits for them, and reports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fault, ranks = attempt.get("fault", {}), job["ranks"]
    argv = [*job["argv"], *attempt.get("argv", [])]
    outputs = [folder / f"{job['name']}.rank{rank}.out" for rank in range(ranks)]
    started = time.monotonic()
    pids = [fork(argv, rank, ranks, port, fault, outputs[rank]) for rank in range(ranks)]
    codes = wait(pids, started, fault)
    report = {"codes": codes, "seconds": time.monotonic() - started}
    report["outputs"] = [path.read_text() for path in outputs]
    finals = [path.with_suffix(".json") for path in outputs]
    report["finals"] = [json.loads(path.read_text()) if path.exists() else None for path in finals]
    for path in (*outputs, *finals):
        path.unlink(missing_ok=True)
    return report


def wait(pids: list[int], started: float, fault: dict) -> list[int]:
    codes: dict[int, int] = {}
    failed_at = None
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
        now = time.monotonic()
        alive = [pid for pid in pids if pid not in codes]
        if "seconds" in fault and now - started > fault["seconds"] and pids[fault.get("rank", 0)] in alive:
            os.kill(pids[fault.get("rank", 0)], signal.SIGKILL)
        if failed_at is None and any(codes.values()):
            failed_at = now
            for pid in alive:
                os.kill(pid, signal.SIGTERM)
        if failed_at is not None and now - failed_at > GRACE_SECONDS:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def fork(argv: list[str], rank: int, ranks: int, port: int, fault: dict, output: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with output.open("w") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        torch.set_num_threads(1)
        code = child(argv, rank, fault, output.with_suffix(".json"))
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def child(argv: list[str], rank: int, fault: dict, final: Path) -> int:
    save_dir = os.path.abspath(argv[len(argv) - argv[::-1].index("--save-dir")])
    seen = watch(save_dir, fault.get("event", -1) if fault.get("rank", 0) == rank else -1)
    if fault.get("rank", 0) in (rank, -1):
        inject(fault)
    original_run = Trainer.run

    def run_and_look(trainer: Trainer) -> bool:
        done = original_run(trainer)
        if done:
            final.write_text(json.dumps({"events": seen["events"], "state": hashes(trainer.engine)}))
        return done

    Trainer.run = run_and_look
    distillation.main(argv)
    return 0


def watch(save_dir: str, fatal: int) -> dict:
    """Counts the changes under `save_dir`; dies at the `fatal`-th."""
    seen = {"events": 0}

    def hook(event: str, args: tuple) -> None:
        if event not in EVENTS or not isinstance(args[0], str | os.PathLike):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITING):
            return
        if os.path.abspath(args[0]).startswith(save_dir):
            seen["events"] += 1
            if seen["events"] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def inject(fault: dict) -> None:
    """Makes `fault` happen inside a step, or at an epoch's end."""
    original_update = RunState.update

    def update(state):
        if state.shared["position"].epoch - 1 == fault.get("update"):
            os.kill(os.getpid(), signal.SIGKILL)
        original_update(state)

    RunState.update = update
    original_step, original_forward = Trainer._train_step, Distiller.forward
    current = {"step": 0}

    def step(trainer, planned, batches):
        current["step"] = number = trainer.position.step + 1
        before = tensors(trainer) if number in fault.get("nan", ()) else None
        if number == fault.get("from_step") and "file_size" in fault:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault["file_size"], resource.RLIM_INFINITY))
        if number == fault.get("from_step") and "leave_kb" in fault:
            folder = Path(trainer.args.save_dir)
            room = shutil.disk_usage(folder).free - 1024 * fault["leave_kb"]
            (folder / "filler").write_bytes(bytes(room))
        extras = original_step(trainer, planned, batches)
        if before is not None:
            print(f"step {number} left everything as it was: {before == tensors(trainer)}")
        return extras

    def forward(distiller, batch, teacher=None):
        if distiller.training and current["step"] == fault.get("step"):
            os.kill(os.getpid(), getattr(signal, fault["signal"]))
            if "again" in fault:
                time.sleep(fault["again"])
                os.kill(os.getpid(), getattr(signal, fault["signal"]))
        sums = original_forward(distiller, batch, teacher)
        if distiller.training and current["step"] in fault.get("nan", ()):
            if fault["in"] == "loss":
                return sums._replace(loss=sums.loss + float("inf"))
            sums.loss.register_hook(lambda gradient: gradient * float("nan"))
        return sums

    Trainer._train_step, Distiller.forward = step, forward


def tensors(trainer: Trainer) -> dict:
    """Hashes of what a step that is not applied must not change."""
    found = {place: value for place, value in hashes(trainer.engine).items() if value.startswith("(")}
    return found | trainer.distiller.criterion.state_dict()


def hashes(engine) -> dict[str, str]:
    """Of every tensor of this rank's weights, optimiser and schedule, by its place."""
    parameters = {name: getattr(p, "ds_tensor", p) for name, p in engine.module.named_parameters()}
    state = {"weights": parameters, "optimizer": engine.optimizer.state_dict(), "lr": engine.lr_scheduler.state_dict()}
    found: dict[str, str] = {}

    def walk(value, place: str) -> None:
        if isinstance(value, torch.Tensor):
            data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            found[place] = f"{tuple(value.shape)} {hashlib.sha256(data).hexdigest()[:16]}"
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{place}.{key}")
        elif isinstance(value, list | tuple):
            for key, item in enumerate(value):
                walk(item, f"{place}.{key}")
        elif hasattr(value, "__dict__") and not callable(value):
            walk(vars(value), place)
        elif isinstance(value, int | float | str | bool | None):
            found[place] = repr(value)

    walk(state, "")
    return found


def main(jobs_file: str) -> None:
    spec = json.loads(Path(jobs_file).read_text())
    folder = Path(spec["out"])
    for job in spec["jobs"]:
        reports = [run_attempt(folder, job, attempt) for attempt in job["attempts"]]
        (folder / f"{job['name']}.json").write_text(json.dumps(reports))


if __name__ == "__main__":
    main(sys.argv[1])
