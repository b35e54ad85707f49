"""Runs a script, or a run file, once for each combination of values, and prints one table.

In: SCRIPT NAME="a b" --flag="c d" [-- FLAGS]. Out: <sweep>/<NAME=a__flag=c>/ per run, and <sweep>/sweep.md, the table:
dev NLL and ROUGE-L (of dev answers, or of evaluations) per run. Exit code 1 if a run failed; 75 if one was stopped.
Run: bash scripts/sweep.sh
"""

import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
from variables import known_variables, meant

from arguments import parse_train_arguments
from reporting.run import is_number, read_run
from runtime.atomic import write_text

STOPPED = 75  # as in runtime/exit_codes.py, which imports torch
RECORD = "sweep.json"  # the flags that finished runs were started with


@dataclass(frozen=True)
class Combination:
    """One run: the value of each variable or flag that is swept, and where it writes."""

    values: dict[str, str]
    folder: Path

    def command(self, script: str, flags: Sequence[str]) -> list[str]:
        words = ["scripts/run.sh", script] if Path(script).suffix in (".yaml", ".yml", ".json") else [script]
        own = [word for name, value in self.values.items() if name.startswith("--") for word in (name, value)]
        return ["bash", *words, *own, *flags, "--save-dir", str(self.folder)]

    def environment(self, **more: str) -> dict[str, str]:
        variables = {name: value for name, value in self.values.items() if not name.startswith("--")}
        return {**os.environ, **variables, **more}


def parse(argv: Sequence[str]) -> tuple[str, dict[str, list[str]], list[str]]:
    """Script, grid and common flags. Raises ValueError with the remedy."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    (script, *grid_words), flags = argv[:cut] or [""], list(argv[cut + 1 :])
    if not Path(script).is_file():
        raise ValueError(f"{script!r}: no such script; bash scripts/sweep.sh SCRIPT NAME='values' [-- FLAGS]")
    grid, known = {}, known_variables()
    for word in grid_words:
        name, equals, values = word.partition("=")
        if not equals or not values.split():
            raise ValueError(f"{word}: pass NAME='values' or --flag='values'; flags of every run follow --")
        if not name.startswith("--") and name not in known:
            close = meant(name, known)
            raise ValueError(f"{word}: not a variable of the scripts" + (f"; did you mean {close}?" if close else ""))
        grid[name] = values.split()
    if not grid:
        raise ValueError("nothing to sweep; pass NAME='values' or --flag='values'")
    return script, grid, flags


def combinations(script: str, grid: dict[str, list[str]]) -> list[Combination]:
    name = f"{Path(script).resolve().parent.name}-{Path(script).stem}"
    folder = Path(os.environ.get("SWEEP_DIR") or f"outputs/sweeps/{name}")
    found = []
    for values in itertools.product(*grid.values()):
        named = dict(zip(grid, values))
        label = "__".join(f"{name.removeprefix('--')}={value.replace('/', '-')}" for name, value in named.items())
        found.append(Combination(named, folder / label))
    return found


def checked_flags(run: Combination, script: str, flags: Sequence[str]) -> list[str]:
    """The flags that the run's command gives to code/distillation.py. Raises ValueError if they do not parse."""
    command = run.command(script, flags)
    done = subprocess.run(command, env=run.environment(DRY_RUN="1"), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{run.folder.name}: {done.stderr.strip()}")
    words = shlex.split(done.stdout.splitlines()[-1])
    if "code/distillation.py" not in words:
        raise ValueError(f"{script}: does not train; pass a script that does")
    parsed = words[words.index("code/distillation.py") + 1 :]
    try:
        parse_train_arguments(parsed)
    except ValueError as error:
        raise ValueError(f"{run.folder.name}: {error}") from None
    return parsed


def is_finished(folder: Path) -> bool:
    state = folder / "resume/state.json"
    return state.is_file() and json.loads(state.read_text(encoding="utf-8"))["position"]["finished"]


def train(runs: Sequence[Combination], script: str, flags: Sequence[str]) -> dict[str, int]:
    """Exit codes by the names of the runs; none for runs that were not started, after one was stopped."""
    all_flags = {run.folder.name: checked_flags(run, script, flags) for run in runs}
    if os.environ.get("DRY_RUN") == "1":
        for run in runs:
            subprocess.run(run.command(script, flags), env=run.environment(), check=True)
        return {}
    record = runs[0].folder.parent / RECORD
    started = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    codes: dict[str, int] = {}
    for number, run in enumerate(runs, 1):
        name = run.folder.name
        if is_finished(run.folder) and started.get(name) == all_flags[name]:
            print(f"[{number}/{len(runs)}] {name}: finished, skipped", flush=True)
            codes[name] = 0
            continue
        print(f"[{number}/{len(runs)}] {name}", flush=True)
        codes[name] = subprocess.run(run.command(script, flags), env=run.environment()).returncode
        if codes[name] == 0:
            started[name] = all_flags[name]
            write_text(record, json.dumps(started, indent=2) + "\n")
        if codes[name] == STOPPED:
            break
    return codes


def table(runs: Sequence[Combination], codes: dict[str, int]) -> str:
    """Markdown: the swept values of each run and its scores."""
    header = [*(name.removeprefix("--") for name in runs[0].values), "dev NLL", "dev ROUGE-L", "ROUGE-L", "state"]
    rows = [header, ["---"] * len(header)]
    for run in runs:
        code = codes.get(run.folder.name)
        state = {0: "finished", None: "not started"}.get(code, f"exit code {code}")
        rows.append([*run.values.values(), *scores(run.folder), state])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def scores(folder: Path) -> list[str]:
    """Best dev NLL, best dev ROUGE-L, mean ROUGE-L over the evaluated sets; empty where there is none."""
    if not folder.is_dir():
        return ["", "", ""]
    run = read_run(folder)
    evaluated = {evaluation.name: fmean(evaluation.seed_means.values()) for evaluation in run.evaluations}
    nll, rouge = run.best_dev("loss"), run.best_dev("rougel")
    values = [(nll, 4), (rouge, 2), (fmean(evaluated.values()) if evaluated else None, 2)]
    return [f"{value:.{digits}f}" if is_number(value) else "" for value, digits in values]


def main(argv: Sequence[str]) -> int:
    script, grid, flags = parse(argv)
    runs = combinations(script, grid)
    codes = train(runs, script, flags)
    if not codes:
        return 0
    text = table(runs, codes)
    write_text(runs[0].folder.parent / "sweep.md", text)
    print(f"\n{text}")
    if STOPPED in codes.values():
        return STOPPED
    return int(any(codes.values()))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"sweep.sh: {error}")
