"""Runs whose ends are compared to the bit: what to start, and what a run has left behind."""

import hashlib
import json
from pathlib import Path

from deepspeed.accelerator import get_accelerator

TIMES = {"step_time", "tokens_per_s", "peak_memory_mb", "generation_s"}
OBJECTIVES = {
    "todi": ("--kd-objective", "todi"),
    # A beta and an epsilon at which the share moves within a few steps: a state worth to be lost.
    "adakd": (
        *("--kd-objective", "adakd+todi", "--adakd-ratio", "0.9", "--adakd-beta", "0.5", "--adakd-epsilon", "0.001"),
        *("--adakd-warmup-ratio", "0.1"),
    ),
    "sft": ("--kd-objective", "cross_entropy"),
}
# Rows that the student samples; each evaluation moves the threshold.
ON_POLICY = {
    "mixed": ("--kd-objective", "todi", "--gkd", "--gen-max-new-tokens", "6"),
    "adaptive": (
        *("--kd-objective", "adakd+todi", "--distillm", "--init-threshold", "0.6", "--loss-eps", "-9"),
        *("--capacity", "8", "--gen-max-new-tokens", "6"),
    ),
}
STUDENTS = {"full": (), "lora": ("--peft", "lora", "--peft-lora-dropout", "0.2")}


def missing_precision(settings: dict) -> str | None:
    """The precision of DeepSpeed settings that this machine's accelerator lacks."""
    accelerator = get_accelerator()
    asked = {"fp16": accelerator.is_fp16_supported, "bf16": accelerator.is_bf16_supported}
    return next((name for name in asked if settings.get(name, {}).get("enabled") and not asked[name]()), None)


def zero_config(folder: Path, stage: int, **settings) -> Path:
    """A DeepSpeed file; at ZeRO-3 models as small as these would stay whole but for the threshold of 0."""
    path = folder / f"zero{stage}{''.join(settings)}.json"
    partition_all = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    path.write_text(json.dumps({"zero_optimization": {"stage": stage, **partition_all}, **settings}))
    return path


def arguments(tiny: Path, rows: Path, save_dir: Path, config: Path, objective: str, student: str) -> list[str]:
    """12 steps in 2 epochs at 2 x 2 examples per step (6 on two ranks); the state is saved every second step."""
    return [
        *("--model-path", str(tiny / "student"), "--teacher-model-path", str(tiny / "teacher")),
        *("--data-dir", str(rows), "--save-dir", str(save_dir), "--deepspeed_config", str(config)),
        *("--batch-size", "2", "--gradient-accumulation-steps", "2", "--num-epochs", "2", "--lr", "3e-3"),
        *("--max-length", "128", "--max-prompt-length", "64", "--log-interval", "3", "--resume-interval", "2"),
        *("--keep-best-n-checkpoints", "1", *(OBJECTIVES | ON_POLICY)[objective], *STUDENTS[student]),
    ]


def outcome(save_dir: Path, last_attempt: dict) -> dict:
    """Everything about a finished run that does not depend on the clock, by name."""
    assert set(last_attempt["codes"]) == {0}, last_attempt["outputs"]
    found = {
        f"rank {rank} {place}": value
        for rank, final in enumerate(last_attempt["finals"])
        for place, value in final["state"].items()
    }
    for path in sorted(save_dir.glob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines()):
            found[f"{path.name} {number}"] = {k: v for k, v in json.loads(line).items() if k not in TIMES}
    for path in sorted(save_dir.rglob("*")):
        place = path.relative_to(save_dir)
        if path.is_file() and place.parts[0].startswith("epoch"):
            found[str(place)] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif len(place.parts) == 1 and path.name != "train.log":
            found.setdefault(f"entry {path.name}", True)
    return found


def differences(expected: dict, got: dict) -> list[str]:
    """What one run has otherwise than the other."""
    names = sorted(expected.keys() | got.keys())
    return [f"{n}: {expected.get(n)} | {got.get(n)}" for n in names if expected.get(n) != got.get(n)]
