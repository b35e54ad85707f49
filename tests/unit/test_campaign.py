"""The protocol of the SmolLM2 campaign, on invented records."""

import itertools
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts/smollm2"))
import campaign  # noqa: E402
from campaign import Records, Run, Score  # noqa: E402
from results_table import tables  # noqa: E402

ROWS = 40


def invented(item: Run | Score, quality: dict[str, float]) -> dict:
    """A record whose scores grow with the quality of the method and, at the right kd_rate and learning rate, most."""
    run = item if isinstance(item, Run) else item.run
    draw = random.Random(item.name)
    level = quality.get(run.method.partition(",")[0], 10.0)
    level -= (run.variables.get("KD_RATE") == "1.0") + (run.variables.get("LR") != "0.0001")
    common = {"name": item.name, "method": run.method, "seed": run.seed, "seconds": 60.0}
    if isinstance(item, Run):
        dev = [
            {"step": 0, "epoch": 0, "loss": 1.0, "rougel": 99.0},
            {"step": 9, "epoch": 1, "loss": 5 - level / 10, "rougel": level},
        ]
        measured = {"forward_kl": 0.5, "reverse_kl": 0.6, "step_seconds": 2.0, "peak_memory_mb": 1000}
        return common | {"kind": "train", "variables": run.variables, "dev": dev} | measured
    metrics = {"exact_match": 1.0, "distinct_2": 50.0, "tokens_per_answer": 60.0, "ended_share": 90.0}
    return common | {
        "kind": item.decoding,
        "metrics": [metrics],
        "rougeL": [level + draw.gauss(0, 1) for _ in range(ROWS)],
    }


def finish(records: Records, quality: dict[str, float]) -> list[str]:
    """Names in the order in which they were done."""
    done = []
    while todo := campaign.plan(records).todo:
        records.add(invented(todo[0], quality))
        done.append(todo[0].name)
    return done


@pytest.fixture
def records(tmp_path) -> Records:
    return Records(tmp_path / "records.jsonl")


def test_each_run_is_made_once_and_choices_are_made_on_dev(records):
    done = finish(records, {"todi": 15, "js": 14, "sft": 12, "adakd": 9})
    assert len(done) == len(set(done))
    final = campaign.plan(records)
    assert final.undecided == []
    assert {run.variables["LR"] for run in final.chosen.values()} == {"0.0001"}
    assert all(run.variables.get("KD_RATE", "0.5") == "0.5" for run in final.chosen.values())
    assert {"gkd-todi", "gkd-js", "distillm-todi", "distillm-js"} <= set(final.chosen)
    assert sum(name.endswith("/sampled") for name in done) == campaign.SAMPLED
    assert {"sft, 12 layers", "todi, 12 layers"} <= {record["method"] for record in records.by_name.values()}


def test_scores_on_valid_rows_choose_nothing(records, tmp_path):
    done = finish(records, {"todi": 15, "js": 14, "sft": 12})
    swapped = Records(tmp_path / "swapped.jsonl")
    for record in records.by_name.values():
        swapped.add(record | {"rougeL": [50 - score for score in record["rougeL"]]} if "rougeL" in record else record)
    assert campaign.plan(swapped).todo == []
    assert len(done) == len(swapped.by_name)


def test_records_on_disk_are_all_that_a_later_session_needs(records):
    for item in itertools.islice(campaign.plan(records).todo, 3):
        records.add(invented(item, {}))
    again = campaign.plan(Records(records.path))
    assert [item.name for item in again.todo] == [item.name for item in campaign.plan(records).todo]
    assert len(again.todo) == 3


def test_variables_are_those_of_the_family_scripts():
    known = (ROOT / "scripts/lib/flags.txt").read_text() + (ROOT / "scripts/lib/recipe.sh").read_text()
    known += (ROOT / "scripts/lib/common.sh").read_text()
    runs = [campaign.run_of(name, 10, "0.0003", "0.5") for name in (*campaign.OFF_POLICY, "gkd-todi", "distillm-adakd")]
    for run in runs:
        assert all(name in known for name in run.variables), run
    assert campaign.run_of("distillm-adakd", 10, "0.1", "1.0").variables["KD_OBJ"] == "adakd"
    assert campaign.run_of("sft", 10, "0.1").variables["KD_OBJ"] == "cross_entropy"


def test_the_table_has_means_over_seeds_and_paired_differences(records):
    finish(records, {"todi": 15, "sft": 12, "teacher": 22})
    text = tables(list(records.by_name.values()))
    of_todi = [fmean(records.by_name[f"{run.name}/greedy"]["rougeL"]) for run in seeds_of(records, "todi")]
    row = next(line for line in text.splitlines() if line.startswith("| todi |"))
    assert f"| 3 | {fmean(of_todi):.2f} ±" in row
    of_sft = [fmean(records.by_name[f"{run.name}/greedy"]["rougeL"]) for run in seeds_of(records, "sft")]
    pair = next(line for line in text.splitlines() if line.startswith("| todi - sft |"))
    assert f"{fmean(of_todi) - fmean(of_sft):+.2f}" in pair
    assert "| todi, 12 layers - sft |" in text


def seeds_of(records: Records, method: str) -> list[Run]:
    first = campaign.plan(records).chosen[method]
    return [Run(method, seed, first.variables) for seed in campaign.SEEDS]


def test_a_score_whose_checkpoint_is_gone_trains_again(records, monkeypatch):
    calls = []
    run = campaign.run_of("sft", 10, "0.0003")
    monkeypatch.setattr(campaign, "call", lambda command, variables: calls.append(command[1]))
    monkeypatch.setattr(campaign, "score_record", lambda score, seconds: {"name": score.name})
    assert campaign.execute(Score(run, "greedy")) == {"name": f"{run.name}/greedy"}
    assert calls == ["scripts/smollm2/kd_student.sh", "scripts/eval/run_eval.sh"]


def test_the_teacher_is_scored_and_never_trained_as_a_student(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(campaign, "call", lambda command, variables: calls.append(command[1]))
    monkeypatch.setattr(campaign, "score_record", lambda score, seconds: {})
    monkeypatch.setattr(campaign, "TEACHER", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint; scripts/smollm2/reproduce.sh"):
        campaign.execute(Score(campaign.THE_TEACHER, "greedy"))
    (tmp_path / "epoch1_step113_loss2.3735").mkdir()
    campaign.execute(Score(campaign.THE_TEACHER, "greedy"))
    assert calls == ["scripts/eval/run_eval.sh"]


def test_several_jobs_make_the_same_runs_and_never_share_a_folder(records, tmp_path, monkeypatch):
    busy, together, quality = [], [], {"todi": 15, "sft": 12}

    def execute(item):
        run = campaign.run_in(item)
        assert run not in busy
        assert isinstance(item, Run) or run in records or run == campaign.THE_TEACHER
        busy.append(run)
        together.append(len(busy))
        time.sleep(0.002)
        busy.remove(run)
        return invented(item, quality)

    monkeypatch.setattr(campaign, "execute", execute)
    campaign.run_all(records, 3)
    assert max(together) == 3
    one_by_one = Records(tmp_path / "one.jsonl")
    finish(one_by_one, quality)
    assert records.by_name == one_by_one.by_name == Records(records.path).by_name


def test_a_run_that_fails_ends_the_campaign_and_loses_no_record(records, monkeypatch):
    failed = threading.Event()

    def execute(item):
        if item.name.startswith("todi"):
            failed.set()
            raise subprocess.CalledProcessError(1, ["train"])
        assert failed.wait(10)
        return invented(item, {})

    monkeypatch.setattr(campaign, "execute", execute)
    with pytest.raises(subprocess.CalledProcessError):
        campaign.run_all(records, 2)
    assert list(Records(records.path).by_name) == ["sft-lr0.0003-seed10"]
