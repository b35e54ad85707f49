"""The entry point under each launcher, on real arguments: plain python, torchrun, deepspeed; and what it refuses."""

import json
import re
import sys

import pytest
from transformers import AutoModelForCausalLM

from arguments import parse_train_arguments
from integration.launch import run, torchrun
from preflight.checks import check

SECRETS = {
    "HF_TOKEN": "hf_a-secret-of-the-hub",
    "WANDB_API_KEY": "another-secret",
    "AWS_SECRET_ACCESS_KEY": "a-third/secret",
    "MY_PASSWORD": "correct-horse-battery",
}
DEEPSPEED = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "1", "--master_port", "29731"]


def flags(tiny, rows, out) -> list[str]:
    return [
        *("code/distillation.py", "--model-path", str(tiny / "student"), "--data-dir", str(rows)),
        *("--save-dir", str(out), "--num-epochs", "2", "--batch-size", "6", "--log-interval", "2", "--lr", "2e-3"),
        *("--max-length", "128", "--max-prompt-length", "64", "--eval-gen", "--max-new-tokens", "4"),
    ]


@pytest.mark.parametrize(
    "launcher", [[sys.executable], torchrun(2), DEEPSPEED], ids=["python", "torchrun", "deepspeed"]
)
def test_every_launcher_trains_and_saves(tiny, rows, tmp_path, launcher):
    steps = 4 if "torch.distributed.run" in launcher else 8  # two epochs on two ranks, or on one
    words = [*flags(tiny, rows, tmp_path / "run"), "--criterion", "cross_entropy", "--n-gpu", "1"]
    words += ["--num-epochs", "9", "--total-iters", str(steps)]
    done = run([*launcher, *words], **SECRETS)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    for output in (done.stdout.encode(), done.stderr.encode(), *written):
        assert not any(secret.encode() in output for secret in SECRETS.values()), "a secret of the environment"
    (checkpoint,) = (tmp_path / "run").glob("epoch*_step*_loss*_rougel*")
    AutoModelForCausalLM.from_pretrained(checkpoint)
    log = (tmp_path / "run/train.log").read_text()
    assert "without effect here: --n-gpu" in log
    assert "kd_loss" not in log and "(dev ROUGE-L" in log
    assert f"epoch 1/2 step 2/{steps} " in log and " eta 0:00:0" in log, "the epochs that --total-iters leaves"
    assert "\r" not in done.stderr and "step/s" not in done.stderr, "no bar without a terminal"
    assert "Setting accelerator" not in done.stdout
    dev = [json.loads(line) for line in (tmp_path / "run/dev_metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in dev] == [0, 1, 2] and dev[2]["loss"] < dev[1]["loss"]


REFUSED = {
    "unknown objective": (
        ["--kd-objective", "tody"],
        "--kd-objective tody: unknown objective; did you mean todi?",
    ),
    "no teacher": (["--kd-objective", "todi"], "needs a teacher; pass --teacher-model-path"),
    "no model": (["--model-path", "outputs/nothing"], "--model-path outputs/nothing: no such folder"),
    "no data": (["--data-dir", "nowhere"], "--data-dir nowhere: no train.jsonl there"),
    "no adapter": (["--peft", "lora", "--peft-path", "x"], "--peft-path x: no adapter_config.json there"),
    "no DeepSpeed file": (["--deepspeed_config", "x.json"], "--deepspeed_config x.json: no such file"),
    "too few tokens": (
        ["--tokens-per-micro-batch", "127"],
        "--tokens-per-micro-batch 127: pass at least --max-length 128",
    ),
    "typo": (["--kd-objektive", "todi"], "did you mean --kd-objective?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_anything_is_loaded(tiny, rows, tmp_path, case):
    extra, message = REFUSED[case]
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        check(parse_train_arguments([*flags(tiny, rows, tmp_path / "run")[1:], *extra]))


def test_bad_input_ends_with_one_clear_line(tiny, rows, tmp_path):
    done = run([sys.executable, *flags(tiny, rows, tmp_path / "run"), "--kd-objective", "tody"])
    assert done.returncode == 2
    assert "error: --kd-objective tody: unknown objective" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists(), "nothing is written before the input is known to be right"
