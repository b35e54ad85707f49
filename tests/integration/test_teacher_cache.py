"""Training from the cache is training with the teacher: same losses, on any ranks, under ZeRO-3, for all runs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from integration.launch import run, run_jobs

STEPS = 54
OBJECTIVES = ("todi", "adakd")
WITH_ADAPTER = "adapter"


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(tiny / "teacher")
    torch.manual_seed(5)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def results(tiny, rows, adapter, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    zero3 = folder / "zero3.json"
    zero3.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))

    def job(name: str, *flags: str, objective: str = "todi") -> dict:
        argv = [
            *("--model-path", str(tiny / "student"), "--teacher-model-path", str(tiny / "teacher")),
            *("--data-dir", str(rows), "--save-dir", str(folder / name), "--kd-objective", objective),
            *("--batch-size", "2", "--num-epochs", "9", "--lr", "3e-3", "--lr-decay-style", "constant"),
            *("--save-interval", "9", "--eval-interval", "9", "--max-length", "128", "--max-prompt-length", "64"),
            *("--log-interval", "1"),
            *flags,
        ]
        return {"name": name, "argv": argv}

    def cache(name: str) -> tuple[str, str]:
        return "--teacher-cache", str(folder / f"{name}.cache")

    three = ("--deepspeed_config", str(zero3), "--num-epochs", "2")
    adapted = ("--teacher-peft-path", str(adapter), "--num-epochs", "2")
    jobs = [
        job("todi.part", *cache("shared"), "--train-num", "9", "--num-epochs", "1")
    ]  # 2 x 2 a step: the last has one
    for objective in OBJECTIVES:
        jobs.append(job(f"{objective}.live", objective=objective))
        jobs.append(job(f"{objective}.cached", *cache("shared"), objective=objective))
    jobs += [job("zero3.live", *three), job("zero3.cached", *three, *cache("zero3"))]
    jobs += [job(f"{WITH_ADAPTER}.live", *three, *adapted), job(f"{WITH_ADAPTER}.whole", *adapted)]
    run_jobs(folder, 2, jobs)
    # One rank, another seed, other rows and lengths: from what two ranks have cached.
    other = ("--seed", "11", "--train-num", "9", "--batch-size", "4", "--num-epochs", "2", "--max-length", "100")
    run_jobs(folder, 1, [job("other.live", *other), job("other.cached", *other, *cache("shared"))])
    return folder


def losses(results: Path, name: str) -> torch.Tensor:
    records = [json.loads(line) for line in (results / name / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([[record["loss"], record["kd_loss"]] for record in records], dtype=torch.float64)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_curve_is_the_live_teachers(results, objective):
    live, cached = losses(results, f"{objective}.live"), losses(results, f"{objective}.cached")
    assert len(live) == STEPS
    torch.testing.assert_close(cached, live, rtol=1e-4, atol=1e-4)
    assert live[0, 0] - live[-1, 0] > 0.5, "nothing was learnt"


def test_a_sharded_teacher_is_the_whole_one(results):
    whole = losses(results, "todi.live")[:12]
    torch.testing.assert_close(losses(results, "zero3.live"), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses(results, "zero3.cached"), whole, rtol=1e-4, atol=1e-4)
    adapted, sharded = losses(results, f"{WITH_ADAPTER}.whole"), losses(results, f"{WITH_ADAPTER}.live")
    torch.testing.assert_close(sharded, adapted, rtol=1e-4, atol=1e-4)
    assert (adapted - whole).abs().max() > 0.01, "the adapter does nothing"


def test_one_rank_reads_what_two_have_written(results):
    torch.testing.assert_close(losses(results, "other.cached"), losses(results, "other.live"), rtol=1e-4, atol=1e-4)


def test_the_body_is_loaded_only_to_compute_what_is_missing(results):
    def bodies(name: str) -> int:
        return torch.load(results / f"{name}.pt", weights_only=True)["teacher_bodies"]

    assert bodies("todi.live") == bodies("todi.part") == bodies("todi.cached") == 1
    assert bodies("adakd.cached") == bodies("other.cached") == 0


def test_an_example_is_computed_once(results):
    keys: list[bytes] = []
    for path in (results / "shared.cache").glob("states-*.safetensors"):
        with safe_open(path, "pt") as shard:
            keys += [key.tobytes() for key in shard.get_tensor("keys").numpy()]
            assert len(shard.get_tensor("states")) == shard.get_tensor("counts").sum()
    assert len(keys) == len(set(keys)) == 24 + 5  # train and dev
    assert "has 14 of 29 examples" in (results / "todi.cached/train.log").read_text()


def test_a_disk_that_fills_ends_the_pass_with_its_own_code(tiny, rows, tmp_path):
    """No file may grow beyond 20 kB here; the code is that of an output that could not be written."""
    done = run(
        [
            *("bash", "-c", 'ulimit -f 20; exec "$@"', "limited", sys.executable, "code/distillation.py"),
            *("--model-path", str(tiny / "student"), "--teacher-model-path", str(tiny / "teacher")),
            *("--data-dir", str(rows), "--save-dir", str(tmp_path / "run"), "--kd-objective", "todi"),
            *("--teacher-cache", str(tmp_path / "cache"), "--max-length", "128", "--max-prompt-length", "64"),
        ]
    )
    assert done.returncode == 74, done.stderr[-3000:]
    assert "cache/head.safetensors was not written" in done.stderr
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".filling.lock"]
