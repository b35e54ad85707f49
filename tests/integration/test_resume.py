"""A run that is cut off, however, continues to the bit; what cannot be continued is refused by name.

Real processes, killed for real; tests/soak/ has the long campaigns.
"""

import random
from pathlib import Path

import pytest

from integration.launch import run_forks
from integration.runs import arguments, differences, outcome, zero_config

# name -> ranks, ZeRO stage, student, objective, and the faults of the attempts before the one that ends the run.
draw = random.Random(4)
EVENTS = 130  # changes in the folder that each of these runs makes, at least: one kill may fall on any
KILL, TERM, INT = "SIGKILL", "SIGTERM", "SIGINT"
RUNS = {
    "killed while it writes": (1, 0, "full", "adakd", [{"event": draw.randrange(1, EVENTS)} for _ in range(3)]),
    "killed in a step": (1, 1, "lora", "todi", [{"step": draw.randrange(3, 19), "signal": KILL}]),
    "killed twice": (1, 3, "lora", "adakd", [{"step": 4, "signal": KILL}, {"event": 90}]),
    "SIGTERM": (1, 2, "full", "todi", [{"step": 5, "signal": TERM}]),
    "a rank dies": (2, 0, "lora", "todi", [{"step": 6, "rank": 1, "signal": KILL}]),
    "rank 0 dies while it writes": (2, 2, "lora", "adakd", [{"event": draw.randrange(1, EVENTS)}]),
    "SIGINT to one rank": (2, 1, "full", "adakd", [{"step": 3, "rank": 1, "signal": INT}]),
    "SIGTERM to all ranks": (2, 3, "full", "todi", [{"step": 4, "rank": -1, "signal": TERM}]),
}


@pytest.fixture(scope="module")
def results(tiny, rows, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("resume")
    jobs = []
    for name, (ranks, stage, student, objective, faults) in RUNS.items():
        config = zero_config(folder, stage)
        for kind, attempts in (("whole", [{}]), ("cut", [*({"fault": fault} for fault in faults), {}])):
            argv = arguments(tiny, rows, folder / f"{name}.{kind}", config, objective, student)
            jobs.append({"name": f"{name}.{kind}", "ranks": ranks, "argv": argv, "attempts": attempts})
    # On the runs that are through: the same again, other flags, a new start, a start from elsewhere.
    again = next(job for job in jobs if job["name"] == "SIGTERM.cut")
    again["attempts"] += [{}, {"argv": ["--lr", "1"]}, {"argv": ["--resume", "never"]}]
    return folder, run_forks(folder, jobs)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_cut_off_ends_like_one_that_was_not(results, name):
    folder, reports = results
    (whole,), cut = reports[f"{name}.whole"], reports[f"{name}.cut"]
    cut = cut[: len(RUNS[name][4]) + 1]
    assert all(any(attempt["codes"]) for attempt in cut[:-1]), "nothing was cut off"
    if name == "SIGTERM":  # that run's folder was started over since
        expected, got = whole["finals"][0]["state"], cut[-1]["finals"][0]["state"]
    else:
        expected = outcome(folder / f"{name}.whole", whole)
        got = outcome(folder / f"{name}.cut", cut[-1])
    assert len(expected) > 50
    assert not differences(expected, got)
