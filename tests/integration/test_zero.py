"""ZeRO 0 to 3 on two processes, full and LoRA: train, save, load, and get the logits that the trained model had."""

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from integration.launch import ROOT, run_jobs
from integration.runs import missing_precision, zero_config
from integration.worker import TOKENS

STAGES = (0, 1, 2, 3)
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
CONFIGS = sorted((ROOT / "configs/deepspeed").glob("*.json"))
# kind -> model, ZeRO stages
STUDENTS = {"full": ("student", STAGES), "tied": ("student_tied", (0, 3)), "lora": ("student", (0, 2, 3))}
CASES = [(kind, stage) for kind, (_, stages) in STUDENTS.items() for stage in stages]
SHARDED = [(kind, stage) for kind, stage in CASES if stage > 0]
LORA = ("--peft", "lora", "--peft-lora-dropout", "0", "--gradient-checkpointing")


def arguments(tiny: Path, rows: Path, student: str, save_dir: Path, config: Path) -> list[str]:
    return [
        *("--model-path", str(tiny / student), "--teacher-model-path", str(tiny / "teacher")),
        *("--data-dir", str(rows), "--save-dir", str(save_dir), "--deepspeed_config", str(config)),
        *("--batch-size", "2", "--gradient-accumulation-steps", "2", "--lr", "3e-3"),
        *("--max-length", "128", "--max-prompt-length", "64"),
    ]


@pytest.fixture(scope="module")
def results(tiny, rows, tmp_path_factory) -> Path:
    """A run per student and stage, and per shipped configuration whose precision this machine has."""
    folder = tmp_path_factory.mktemp("zero")
    jobs = []
    for kind, stage in CASES:
        name = f"{kind}.zero{stage}"
        argv = [
            *arguments(tiny, rows, STUDENTS[kind][0], folder / name, zero_config(folder, stage)),
            *("--kd-objective", "todi", "--num-epochs", "2", "--keep-best-n-checkpoints", "-1"),
            *("--weight-decay", "0.5", "--deepspeed"),
            *(LORA if kind == "lora" else ("--eval-gen", "--max-new-tokens", "3")),
        ]
        jobs.append({"name": name, "argv": argv})
    for config in CONFIGS:
        argv = arguments(tiny, rows, "student", folder / config.stem, config)
        argv += ["--kd-objective", "adakd", "--num-epochs", "4", "--save-interval", "4", "--log-interval", "1"]
        if missing_precision(json.loads(config.read_text())) is None:
            jobs.append({"name": config.stem, "argv": argv})
    run_jobs(folder, 2, jobs)
    return folder


def trained_logits(results: Path, name: str) -> torch.Tensor:
    return torch.load(results / f"{name}.pt", weights_only=True)["logits"]


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_the_checkpoint_is_the_trained_model(results, tiny, kind, stage):
    (folder,) = (results / f"{kind}.zero{stage}").glob("epoch2_step6_loss*")
    if kind == "lora":
        assert {path.suffix for path in folder.iterdir()}.isdisjoint({".bin", ".pt"})
        model = AutoPeftModelForCausalLM.from_pretrained(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    start = AutoModelForCausalLM.from_pretrained(tiny / STUDENTS[kind][0])
    with torch.no_grad():
        logits, before = model.eval()(input_ids=TOKENS).logits, start(input_ids=TOKENS).logits
    torch.testing.assert_close(logits, trained_logits(results, f"{kind}.zero{stage}"), rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    assert (before - logits).abs().max() > 0.01, "nothing was trained"


@pytest.mark.parametrize(("kind", "stage"), SHARDED)
def test_every_stage_trains_the_same_model_with_the_same_gradient_norm(results, kind, stage):
    """tests/unit/test_optimizer.py has the norm of ZeRO-0."""
    expected, got = trained_logits(results, f"{kind}.zero0"), trained_logits(results, f"{kind}.zero{stage}")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    runs = (results / f"{kind}.zero{number}" for number in (0, stage))
    norms = [json.loads((run / "metrics.jsonl").read_text())["grad_norm"] for run in runs]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_a_student_under_zero3_is_loaded_in_shares(results, kind, stage):
    """A new adapter's own weights are partitioned with the engine."""
    held, whole = torch.load(results / f"{kind}.zero{stage}.pt", weights_only=True)["loaded"]
    if stage < 3:
        assert held == whole
    else:
        assert whole / 2 <= held < (0.7 if kind == "lora" else 0.51) * whole


def test_the_logs_are_complete(results):
    run = results / "full.zero2"
    (record,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert record["step"] == 6 and record["epoch"] == 2
    contract = "loss nll_loss kd_loss lr grad_norm tokens response_tokens step_time tokens_per_s peak_memory_mb"
    assert all(record[name] > 0 for name in contract.split())
    assert abs(record["loss"] - 0.5 * (record["nll_loss"] + record["kd_loss"])) < 1e-5
    assert json.loads((run / "args.json").read_text())["kd_objective"] == "todi"
    assert "saved" in (run / "train.log").read_text()
    dev = [json.loads(line) for line in (run / "dev_metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in dev] == [0, 1, 2] and dev[2]["loss"] < dev[1]["loss"] < dev[0]["loss"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_every_shipped_config_trains_in_its_precision(results, config):
    settings = json.loads(config.read_text())
    if missing := missing_precision(settings):
        pytest.skip(f"DeepSpeed's accelerator has no {missing} on this machine")
    run = results / config.stem
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 12
    dev = [json.loads(line)["loss"] for line in (run / "dev_metrics.jsonl").read_text().splitlines()]
    assert dev[-1] < dev[0]
    (checkpoint,) = run.glob("epoch4_step12_loss*")
    dtype = next(
        (torch_type for name, torch_type in HALF.items() if settings.get(name, {}).get("enabled")), torch.float32
    )
    assert AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").dtype == dtype
    assert ("fp32" in config.stem or config.stem == "ds_config_zero0") == (dtype == torch.float32)


def test_shipped_configs_name_every_stage():
    stages = {json.loads(path.read_text())["zero_optimization"]["stage"] for path in CONFIGS}
    assert stages == set(STAGES)
