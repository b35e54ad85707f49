"""Reads the folder of a run. Whatever is missing or unfinished there is empty here.

In: a run folder, or one of its checkpoints. Out: `Run`, and `Group`s of runs that differ in their seed only.
"""

import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from sys import intern

import numpy as np

from models.folders import find_checkpoint, locate
from reporting.evaluations import Evaluation, read_evaluations

LONGEST_LABEL = 28
NOT_OF_THE_SETTING = {"seed", "save_dir", "resume", "run", "report_to", "ckpt_name", "teacher_cache"}
WARNING = re.compile(r"^  warning: +(.*)")  # as preflight/report.py prints it
CONTINUED = re.compile(r"^ {13}(.*)")
NOTABLE = re.compile(r"^[-\d]+ [:\d]+ (.*(?:warning|not finite).*)")
MOST_WARNINGS = 8
# Fields of probe.jsonl with one number per response token.
PER_TOKEN = (
    "nll forward_kl reverse_kl student_entropy teacher_entropy agreement todi_weight difficulty selected temperature"
).split()


@dataclass(frozen=True)
class Top:
    """The most probable tokens of one model: `tokens[n]` are those at position n; q, p, w of each in `values_NK3`."""

    tokens: list[list[str]]
    values_NK3: np.ndarray


@dataclass(frozen=True)
class ProbeRow:
    """One dev row after one epoch; `values` has the fields of PER_TOKEN that were written."""

    epoch: int
    step: int
    row: int
    place: str
    prompt: str
    tokens: list[str]
    values: dict[str, np.ndarray]
    student_top: Top | None
    teacher_top: Top | None


@dataclass(frozen=True)
class Run:
    """steps, dev: records of metrics.jsonl and dev_metrics.jsonl. evaluations: of the best checkpoint, by set."""

    folder: Path
    flags: dict
    steps: list[dict]
    dev: list[dict]
    probe: list[ProbeRow]
    log: list[str]
    checkpoint: Path | None
    evaluations: list[Evaluation]
    teacher_evaluations: list[Evaluation]

    @property
    def objective(self) -> str:
        return str(self.flags.get("kd_objective") or ("SFT" if self.is_baseline else self.folder.name))

    @cached_property
    def is_baseline(self) -> bool:
        """Fine-tuned without a divergence to a teacher."""
        if self.steps:
            return not any(record.get("kd_loss") for record in self.steps)
        return not self.flags.get("teacher_model_path")

    @property
    def teacher(self) -> Path | None:
        path = self.flags.get("teacher_model_path")
        return locate(str(path)) if path else None

    @property
    def teacher_loss(self) -> float | None:
        return next((record["teacher_loss"] for record in self.dev if is_number(record.get("teacher_loss"))), None)

    @property
    def command(self) -> str:
        """Of one process, from the root of the repository; empty if it is not recorded."""
        words = self.flags.get("run", {}).get("command", [])
        return shlex.join([".venv/bin/python", *map(str, words)]) if words else ""

    def best_dev(self, name: str) -> float | None:
        """The lowest `loss` or the highest of another score, after the first step."""
        values = [record[name] for record in self.dev if is_number(record.get(name)) and record.get("step")]
        return (min if name == "loss" else max)(values, default=None)

    @cached_property
    def warnings(self) -> list[str]:
        found = []
        if skipped := sum(record.get("skipped_steps") or 0 for record in self.steps):
            found.append(f"{skipped:.0f} steps were skipped: their loss was not finite")
        losses = [record["loss"] for record in self.dev if is_number(record.get("loss")) and record.get("step")]
        if losses and (rise := losses[-1] / min(losses) - 1) > 0.02:
            found.append(f"dev NLL ends {100 * rise:.0f} % above its lowest value: the last epochs overfit")
        first = self.dev[0] if self.dev else {}
        if self.teacher_loss is not None and not self.teacher_loss < first.get("loss", math.inf):
            found.append(f"the teacher's dev NLL {self.teacher_loss:.3f} is no better than the student's at the start")
        return [*found, *dict.fromkeys(_warnings(self.log))][:MOST_WARNINGS]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only; color: their index among the groups of a report."""

    label: str
    color: int
    runs: list[Run]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def is_baseline(self) -> bool:
        return self.first.is_baseline


def read_groups(paths: Sequence[str | Path]) -> list[Group]:
    """Raises ValueError if a path holds no run."""
    by_setting: dict[str, list[Run]] = {}
    for folder in dict.fromkeys(run_folder(path) for path in paths):
        run = read_run(folder)
        setting = {name: value for name, value in run.flags.items() if name not in NOT_OF_THE_SETTING}
        by_setting.setdefault(json.dumps(setting or str(folder), sort_keys=True), []).append(run)
    labels: list[str] = []
    for runs in by_setting.values():
        labels.append(_label(runs, labels))
    return [Group(label, color, runs) for color, (label, runs) in enumerate(zip(labels, by_setting.values()))]


def run_folder(path: str | Path) -> Path:
    """The run that `path` is or, if it is a checkpoint, belongs to. Raises ValueError."""
    folder = locate(str(path))
    for candidate in (folder, folder.parent):
        if any((candidate / name).is_file() for name in ("args.json", "metrics.jsonl")):
            return candidate.resolve()
    raise ValueError(f"RUN {path}: neither args.json nor metrics.jsonl is there; pass the folder of a run")


def read_run(folder: Path) -> Run:
    flags = _read_object(folder / "args.json")
    checkpoint = Path(find_checkpoint("RUN", str(folder)))
    teacher = flags.get("teacher_peft_path") or flags.get("teacher_model_path")
    log = folder / "train.log"
    return Run(
        folder=folder,
        flags=flags,
        steps=[record for record in _records(folder / "metrics.jsonl") if is_number(record.get("step"))],
        dev=[record for record in _records(folder / "dev_metrics.jsonl") if is_number(record.get("step"))],
        probe=list(_read_probe(folder / "probe.jsonl")),
        log=log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else [],
        checkpoint=None if checkpoint == folder else checkpoint,
        evaluations=read_evaluations(checkpoint),
        teacher_evaluations=read_evaluations(locate(str(teacher))) if teacher else [],
    )


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def parameters(checkpoint: Path | None) -> int | None:
    """Elements of all tensors saved in a folder, from the headers of its safetensors files; None without one."""
    total = 0
    for path in sorted(checkpoint.glob("*.safetensors")) if checkpoint is not None else []:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total or None


def _warnings(log: Sequence[str]) -> list[str]:
    """Those of preflight, which may span lines, and notable lines of training."""
    found, before = [], False
    for line in log:
        if before and (more := CONTINUED.match(line)):
            found[-1] += f" {more[1]}"
            continue
        match = WARNING.match(line) or NOTABLE.match(line)
        before = WARNING.match(line) is not None
        if match:
            found.append(match[1])
    return found


def _label(runs: Sequence[Run], taken: Sequence[str]) -> str:
    name = runs[0].folder.name
    if len(runs) > 1 or len(name) > LONGEST_LABEL:
        name = runs[0].objective
    if len(runs) > 1:
        name = f"{name} ({len(runs)} seeds)"
    return name if name not in taken else f"{name} #{1 + len(taken)}"


def _read_probe(path: Path) -> Iterator[ProbeRow]:
    for record in _records(path):
        tokens = [intern(str(token)) for token in record.get("tokens") or []]
        if not tokens:
            continue
        values = {name: _numbers(record[name]) for name in PER_TOKEN if record.get(name) is not None}
        known = {name: of_field for name, of_field in values.items() if np.isfinite(of_field).any()}
        yield ProbeRow(
            epoch=int(record.get("epoch", 0)),
            step=int(record.get("step", 0)),
            row=int(record.get("row", 0)),
            place=str(record.get("place", "")),
            prompt=str(record.get("prompt", "")),
            tokens=tokens,
            values={name: of_field for name, of_field in known.items() if len(of_field) == len(tokens)},
            student_top=_top(record.get("student_top"), len(tokens)),
            teacher_top=_top(record.get("teacher_top"), len(tokens)),
        )


def _numbers(values: Sequence[float | bool | None]) -> np.ndarray:
    return np.array(values, dtype=np.float32)  # None becomes NaN


def _top(entries: list | None, count: int) -> Top | None:
    """None if the file has none for each of the positions."""
    if not entries or len(entries) != count or not all(entries):
        return None
    width = min(map(len, entries))
    tokens = [[intern(str(entry[0])) for entry in of_position[:width]] for of_position in entries]
    values = [[(list(entry[1:4]) + [None] * 3)[:3] for entry in of_position[:width]] for of_position in entries]
    return Top(tokens, np.array(values, dtype=np.float32))


def _records(path: Path) -> Iterator[dict]:
    """Of a file of JSON lines, which a running process may be writing: incomplete lines are left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _read_object(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); restore or delete it") from None
    return found if isinstance(found, dict) else {}
