"""Runs that sample: the same run where no step does; ranks and ZeRO sample alike; a kill loses nothing."""

import json
from pathlib import Path

import pytest
import torch

from integration.launch import run_forks
from integration.runs import arguments, differences, outcome, zero_config

NEW_TOKENS = ("--gen-max-new-tokens", "6")
# name -> ranks, ZeRO stage, student, flags
WITHOUT_SAMPLES = {
    "zero0": (1, 0, "lora"),
    "zero1": (1, 1, "full"),
    "zero2": (1, 2, "full"),
    "zero3, 2 ranks": (2, 3, "lora"),
}
FEW_STEPS = ("--total-iters", "2", "--resume-interval", "0", "--probe-rows", "0", "--no-eval-at-start")
# name -> ranks, ZeRO stage, student, faults
KILL = "SIGKILL"
CUT = {
    "1 rank": (1, 0, "full", [{"update": 1}, {"step": 9, "signal": KILL}]),
    "2 ranks": (2, 3, "lora", [{"step": 3, "rank": 1, "signal": KILL}, {"update": 1, "rank": 1}]),
}
# name -> ranks, ZeRO stage, batch size, student; all sample the same rows in step 1.
SAMPLING = {
    "1 rank": (1, 0, "4", "full"),
    "1 rank, zero3": (1, 3, "4", "full"),
    "2 ranks": (2, 0, "2", "full"),
    "2 ranks, zero3": (2, 3, "2", "lora"),
}


@pytest.fixture(scope="module")
def results(tiny, rows, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("onpolicy")
    jobs = []

    def job(name, ranks, stage, student, objective, flags=(), attempts=({},)):
        argv = arguments(tiny, rows, folder / name, zero_config(folder, stage), objective, student)
        jobs.append({"name": name, "ranks": ranks, "argv": [*argv, *flags], "attempts": list(attempts)})

    for name, setting in WITHOUT_SAMPLES.items():
        for kind, flags in (("off", ()), ("on", ("--student-gen", "--mixed-alpha", "0"))):
            job(f"{name}.{kind}", *setting, "todi", (*FEW_STEPS, *flags))
    for name, (*setting, faults) in CUT.items():
        job(f"{name}.whole", *setting, "adaptive")
        job(f"{name}.cut", *setting, "adaptive", (), [*({"fault": fault} for fault in faults), {}])
    killed = [{"fault": {"step": 2, "rank": 0, "signal": KILL}}]
    for name, (ranks, stage, batch, student) in SAMPLING.items():
        shape = ("--batch-size", batch, "--gradient-accumulation-steps", "1", "--resume-interval", "1")
        flags = ("--distillm", "--init-threshold", "1", *NEW_TOKENS, *shape)
        job(f"sampling, {name}", ranks, stage, student, "todi", flags, killed)
    bad = [{"fault": {"nan": [2], "in": "loss"}}]
    job("bad", 1, 0, "full", "todi", ("--gkd", "--lmbda", "1", "--total-iters", "3", *NEW_TOKENS), bad)
    return folder, run_forks(folder, jobs)


@pytest.mark.parametrize("name", WITHOUT_SAMPLES)
def test_without_sampled_steps_it_is_the_same_run_to_the_bit(results, name):
    off, on = (results[1][f"{name}.{kind}"][0] for kind in ("off", "on"))
    assert {*off["codes"], *on["codes"]} == {0}, on["outputs"]
    for one, other in zip(off["finals"], on["finals"]):
        assert len(one["state"]) > 20 and not differences(one["state"], other["state"])


@pytest.mark.parametrize("name", CUT)
def test_an_interrupted_run_ends_like_a_whole_one(results, name):
    folder, reports = results
    (whole,), cut = reports[f"{name}.whole"], reports[f"{name}.cut"]
    assert all(any(attempt["codes"]) for attempt in cut[:-1]), "nothing was cut off"
    expected, got = (outcome(folder / f"{name}.{kind}", last) for kind, last in (("whole", whole), ("cut", cut[-1])))
    assert not differences(expected, got)
    records = [json.loads(line) for line in (folder / f"{name}.whole/metrics.jsonl").open()]
    assert all(sum(record[f"{kind}_steps"] for record in records) for kind in ("data", "student", "replay"))
    assert records[-1]["buffer_rows"] == 8 and any(record["buffer_age"] > 0 for record in records)
    assert [record["gen_threshold"] for record in records][:: len(records) - 1] == pytest.approx([0.6, 0.7])


def sampled_rows(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "resume/step1/common.pt", weights_only=True)["buffer"]


@pytest.mark.parametrize("name", SAMPLING)
def test_ranks_and_stages_sample_the_same_answers_from_the_same_weights(results, name):
    """A new adapter changes nothing at first, so it samples what its base does."""
    expected, got = (sampled_rows(results[0] / f"sampling, {of}") for of in ("1 rank", name))
    assert len(expected["steps"]) == 4 and expected["responses"].sum() > 12

    def rows_of(state):
        lengths = (state["prompts"] + state["responses"]).tolist()
        return sorted(ids.tolist() for ids in state["ids"].split(lengths))

    assert rows_of(got) == rows_of(expected)


def test_a_bad_step_of_samples_is_kept_for_replay(results):
    folder, reports = results
    (run,) = reports["bad"]
    assert run["codes"] == [0] and "step 2 left everything as it was: True" in run["outputs"][0]
    kept = json.loads((folder / "bad/bad_steps/step2_rank0.json").read_text())
    examples = [example for micro_step in kept["micro_steps"] for example in micro_step["examples"]]
    assert len(examples) == 4 and {micro_step["rows_kind"] for micro_step in kept["micro_steps"]} == {"student"}
    assert all(0 < len(example["response_ids"]) <= 6 and example["hash"] in run["outputs"][0] for example in examples)
