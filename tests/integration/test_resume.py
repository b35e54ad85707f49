"""A run that is cut off, however, resumes to the bit; a non-finite step changes nothing.

Real processes that are really killed; tests/soak/ has the long campaigns.
"""

import json
import random
from pathlib import Path

import pytest

from integration.launch import run_forks
from integration.runs import arguments, differences, missing_precision, outcome, zero_config

# name -> ranks, ZeRO stage, student, objective, and the faults of the attempts before the one that ends the run.
draw = random.Random(4)
EVENTS = 80  # changes in its folder that a run makes, at least: a kill may fall on any
KILL, TERM, INT = "SIGKILL", "SIGTERM", "SIGINT"
TOO_LARGE, LATE = {"file_size": 100_000, "from_step": 3}, {"step": 10, "signal": KILL}
DISK, SIGNALS = "full disk, SIGTERM", "SIGINT to one rank, SIGTERM to all"
RUNS = {
    "killed while it writes": (1, 0, "full", "adakd", [{"event": draw.randrange(1, EVENTS)} for _ in range(3)]),
    "killed in steps": (1, 3, "lora", "adakd", [{"step": 4, "signal": KILL}, {"event": 30}, LATE]),
    DISK: (1, 2, "full", "todi", [TOO_LARGE, {"step": 5, "signal": TERM}]),
    "a rank dies": (2, 1, "lora", "todi", [{"step": 3, "rank": 1, "signal": KILL}, {"event": 25}]),
    SIGNALS: (2, 3, "full", "adakd", [{"step": 3, "rank": 1, "signal": INT}, {"step": 5, "rank": -1, "signal": TERM}]),
}
MORE_SETTINGS = {"killed in steps": {"zero_optimization": {"stage": 3}}}  # models as small as these stay whole
MORE_FLAGS = {
    "killed while it writes": ("--eval-gen", "--do-sample", "--max-new-tokens", "3"),
    "killed in steps": ("--diagnose-every", "2"),
}
CACHED = (DISK, "a rank dies")  # with a teacher cache; the others with a live teacher
# What the interrupted attempts end with, where it is not the SIGKILL.
CODES = {DISK: [[74], [75]], SIGNALS: [[75, 75], [75, 75]]}
# name -> ranks, DeepSpeed settings, where, in which steps, on which rank.
HALF = {"bf16": {"bf16": {"enabled": True}}, "fp16": {"fp16": {"enabled": True, "initial_scale_power": 4}}}
BAD = {
    "ZeRO-0 gradient": (2, 0, {}, "gradient", [3], 1),
    "ZeRO-2 loss": (2, 2, {}, "loss", [3], 1),
    "ZeRO-3 gradient": (1, 3, {}, "gradient", [4, 5], 0),
    "bf16 loss": (1, 1, HALF["bf16"] | {"data_types": {"grad_accum_dtype": "fp32"}}, "loss", [4], 0),
    "bf16 gradient": (1, 2, HALF["bf16"], "gradient", [4], 0),
    "fp16 overflow": (1, 1, HALF["fp16"], "gradient", [3, 4, 5, 6], 0),
    "fp16 loss": (1, 2, HALF["fp16"], "loss", [4], 0),
    "too many": (2, 0, {}, "loss", [3, 4, 5], 0),
}


@pytest.fixture(scope="module")
def results(tiny, rows, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("resume")
    jobs = []

    def job(name: str, ranks: int, config: Path, objective: str, student: str, attempts: list[dict]) -> None:
        argv = arguments(tiny, rows, folder / name, config, objective, student)
        argv += MORE_FLAGS.get(name.partition(".")[0], ())
        if name.partition(".")[0] in CACHED:
            argv += ["--teacher-cache", str(folder / "cache")]
        jobs.append({"name": name, "ranks": ranks, "argv": argv, "attempts": attempts})

    for name, (ranks, stage, student, objective, faults) in RUNS.items():
        config = zero_config(folder, stage, **MORE_SETTINGS.get(name, {}))
        job(f"{name}.whole", ranks, config, objective, student, [{}])
        job(f"{name}.cut", ranks, config, objective, student, [*({"fault": fault} for fault in faults), {}])
        if name == DISK:
            from_there = ["--save-dir", str(folder / "elsewhere"), "--resume", str(folder / f"{name}.cut")]
            jobs[-1]["attempts"][2:2] = [{"argv": from_there}, {"argv": ["--lr", "1", "--seed", "3"]}]
            jobs[-1]["attempts"].append({})
    for name, (ranks, stage, settings, where, steps, rank) in BAD.items():
        if missing_precision(settings):
            continue
        config = zero_config(folder, stage, **settings)
        fault = {"nan": steps, "in": where, "rank": rank}
        limits = ["--total-iters", "6", "--log-interval", "1", "--resume-interval", "0", "--max-bad-steps", "3"]
        job(name, ranks, config, "adakd", "full", [{"fault": fault, "argv": limits}])
    twice = {"step": 5, "signal": TERM, "again": 2.2}
    attempts = [{"fault": twice}, {}, {"argv": ["--resume", "never", "--num-epochs", "1"]}]
    job("again", 1, zero_config(folder, 0), "sft", "full", attempts)
    return folder, run_forks(folder, jobs)


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_ends_like_a_whole_one(results, name):
    folder, reports = results
    (whole,), cut = reports[f"{name}.whole"], reports[f"{name}.cut"]
    faults = len(RUNS[name][-1])
    assert all(any(attempt["codes"]) for attempt in cut[:faults]), "nothing was cut off"
    if name in CODES:
        assert [attempt["codes"] for attempt in cut[:faults]] == CODES[name]
    last = cut[4 if name == DISK else -1]  # that run goes on with attempts of other tests
    expected, got = outcome(folder / f"{name}.whole", whole), outcome(folder / f"{name}.cut", last)
    assert len(expected) > 50
    assert not differences(expected, got)


def test_a_run_can_start_from_the_state_of_another(results):
    folder, reports = results
    whole, elsewhere = reports[f"{DISK}.whole"][0], reports[f"{DISK}.cut"][2]
    assert elsewhere["codes"] == [0]
    assert not differences(whole["finals"][0]["state"], elsewhere["finals"][0]["state"])
    lines = [(folder / run / "metrics.jsonl").read_text().splitlines() for run in (f"{DISK}.whole", "elsewhere")]
    records = [[json.loads(line) for line in of_run] for of_run in lines]
    assert [r["loss"] for r in records[1]] == [r["loss"] for r in records[0] if r["step"] > 5]


def test_other_flags_are_refused_by_name(results):
    refused = results[1][f"{DISK}.cut"][3]
    assert refused["codes"] == [2]
    output = refused["outputs"][0]
    assert "--lr 1.0 (it has 0.003), --seed 3 (it has 10)" in output and "--resume never" in output


def test_a_finished_run_says_so_and_stays_as_it_is(results):
    folder, reports = results
    last = reports[f"{DISK}.cut"][-1]
    assert last["codes"] == [0] and "this run is finished" in last["outputs"][0]
    assert [path.name for path in (folder / f"{DISK}.cut/resume").iterdir()] == ["state.json"]


def test_a_second_signal_ends_the_run_now_and_never_starts_over(results):
    folder, reports = results
    killed, continued, over = reports["again"]
    assert killed["codes"] == [-15]
    assert continued["codes"] == [0] and "continues" in continued["outputs"][0]
    assert over["codes"] == [0] and "is now in" in over["outputs"][0]
    run = folder / "again"
    steps = [
        [json.loads(line)["step"] for line in (run / place / "metrics.jsonl").open()] for place in ("", "previous/1")
    ]
    assert steps == [[3, 6], [3, 6, 9, 12]]
    assert len(list(run.glob("epoch*"))) == len(list(run.glob("previous/1/epoch*"))) == 1


def test_a_full_disk_is_named_and_leaves_the_state_before(results):
    full, resumed = (attempt["outputs"][0] for attempt in results[1][f"{DISK}.cut"][:2])
    assert "resume/step4 was not written" in full and "MB free there" in full and "Traceback" not in full
    assert "continues" in resumed and "after step 2" in resumed


@pytest.mark.parametrize("name", BAD)
def test_a_non_finite_step_changes_nothing(results, name):
    folder, reports = results
    ranks, _, settings, where, steps, rank = BAD[name]
    if missing := missing_precision(settings):
        pytest.skip(f"DeepSpeed's accelerator has no {missing} on this machine")
    (run,) = reports[name]
    stopped = name == "too many"
    assert run["codes"] == [3 if stopped else 0] * ranks
    output = run["outputs"][0]
    for step in steps[:-1] if stopped else steps:
        for of_rank in run["outputs"]:
            assert (f"step {step} left everything as it was: True" in of_rank) == (of_rank is run["outputs"][rank])
    kept = sorted(path.name for path in (folder / name / "bad_steps").glob("*"))
    if name == "fp16 overflow":
        assert output.count("skipped: fp16 gradients overflowed; loss scale now") == len(steps) and not kept
        return
    named = [rank] if where == "loss" else list(range(ranks))
    assert kept == [f"step{step}_rank{r}.json" for step in steps for r in named]
    for step in steps:
        assert f"step {step}: the {where} is non-finite on rank {', '.join(map(str, named))}" in output
    batch = json.loads((folder / name / "bad_steps" / kept[0]).read_text())
    examples = [example for micro_step in batch["micro_steps"] for example in micro_step["examples"]]
    assert len(examples) == 4 and all(example["response_ids"] and example["hash"] in output for example in examples)
    records = [json.loads(line) for line in (folder / name / "metrics.jsonl").open()]
    good = [step for step in range(1, 3 if stopped else 7) if step not in steps]
    assert [record["step"] for record in records] == good, "skipped steps are in no average"
    assert all(record["loss"] > 0 and record["grad_norm"] > 0 for record in records)
