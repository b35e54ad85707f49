"""Refuses environment variables that were meant for a script and would have no effect: EPOCHS, KD_TEMPERATURE, ...

In: the environment, and the variables of the scripts, which are those of flags.txt and those that a script reads. Out:
exit code 1 and a suggestion for each name that is nearly one of those; a note for names that other programs use too.
Run: python scripts/lib/variables.py
"""

import difflib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path

# Names in other tools that are spelt too differently from ours to be found by their letters.
MEANT = {
    **dict.fromkeys(("NUM_EPOCHS", "NUM_TRAIN_EPOCHS", "TRAIN_EPOCHS"), "EPOCH"),
    **dict.fromkeys(("LEARNING_RATE", "PEAK_LR"), "LR"),
    **dict.fromkeys(("MICRO_BATCH_SIZE", "PER_DEVICE_BATCH_SIZE", "TRAIN_BATCH_SIZE"), "BATCH_SIZE"),
    **dict.fromkeys(("GRADIENT_ACCUMULATION_STEPS", "GRAD_ACCUM", "GRAD_ACC_STEPS", "ACCUMULATION"), "GRAD_ACC"),
    **dict.fromkeys(("GLOBAL_BATCH_SIZE", "TOTAL_BATCH_SIZE"), "GLOBAL_BATCH"),
    **dict.fromkeys(("KD_OBJECTIVE", "OBJECTIVE", "KD_LOSS"), "KD_OBJ"),
    **dict.fromkeys(("KD_TEMPERATURE", "DISTILL_TEMPERATURE"), "KD_TEMP"),
    **dict.fromkeys(("KD_RATIO", "KD_WEIGHT"), "KD_RATE"),
    **dict.fromkeys(("STUDENT_PATH", "STUDENT_MODEL_PATH", "STUDENT_MODEL", "STUDENT"), "CKPT_PATH"),
    **dict.fromkeys(("TEACHER_PATH", "TEACHER_MODEL", "TEACHER"), "TEACHER_MODEL_PATH"),
    **dict.fromkeys(("MAX_LEN", "MAX_SEQ_LEN", "MAX_SEQ_LENGTH", "SEQ_LEN", "SEQ_LENGTH"), "MAX_LENGTH"),
    **dict.fromkeys(("LORA_R", "PEFT_LORA_R"), "LORA_RANK"),
    **dict.fromkeys(("DEEPSPEED_CONFIG", "DS_CONFIG_FILE"), "DS_CONFIG"),
    "MAX_STEPS": "TOTAL_ITERS",
    "GPU": "GPUS",
}
# The same, but clusters, containers and other programs set them too, so they are only noted.
PERHAPS = {
    "MODEL_PATH": "CKPT_PATH",
    **dict.fromkeys(("DATASET", "DATA_PATH"), "DATA_DIR"),
    "OUTPUT_DIR": "SAVE_DIR",
    **dict.fromkeys(("NUM_GPUS", "NUM_GPU", "NGPUS", "NGPU", "N_GPUS", "N_GPU"), "GPUS"),
}
USED = re.compile(r"(?:\$\{!?|\$|\b(?=[A-Z][A-Z0-9_]*=))([A-Z][A-Z0-9_]+)")  # read or set
LISTED = re.compile(r"(?m)^[A-Z][A-Z0-9_]+")
NEAR = 0.86  # LOCAL_RANK, which launchers set, is 0.84 of LORA_RANK
SECRET = re.compile(r"KEY|TOKEN$|SECRET|PASSWORD")  # their values are not printed
SHORTEST = 5  # letters; shorter names are near too many others


def meant(name: str, known: Iterable[str]) -> str | None:
    """The variable of the scripts that `name` was probably meant to be."""
    if name in MEANT:
        return MEANT[name]
    close = difflib.get_close_matches(name, known, n=1, cutoff=NEAR) if len(name) >= SHORTEST else []
    return close[0] if close else None


def known_variables() -> set[str]:
    lib = Path(__file__).resolve().parent
    scripts = "".join(script.read_text(encoding="utf-8") for script in lib.parent.rglob("*.sh"))
    code = re.sub(r"(?m)^\s*#.*", "", scripts)
    found = {*LISTED.findall((lib / "flags.txt").read_text(encoding="utf-8")), *USED.findall(code)}
    return {name for name in found if not name.startswith("SLURM_")}  # Slurm sets others that are spelt nearly the same


def flags() -> dict[str, str]:
    """Every flag of training, evaluation and generation, by its name in capitals."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
    from arguments import EvaluateConfig, GenerateConfig, TrainConfig

    groups = [
        group for config in (TrainConfig, EvaluateConfig, GenerateConfig) for group in config.__annotations__.values()
    ]
    names = [field.name for group in groups if is_dataclass(group) for field in fields(group)]
    return {name.upper(): f"--{name.replace('_', '-')}" for name in names}


def main() -> int:
    known, flag_names = known_variables(), flags()
    refused = 0
    for name, value in os.environ.items():
        if name in known:
            continue
        if SECRET.search(name):
            value = "..."
        if name in PERHAPS:
            print(f"note: {name}={value} is not read by this script; its variable is {PERHAPS[name]}", file=sys.stderr)
        elif name in flag_names and name not in MEANT:
            flag = flag_names[name]
            print(f"note: {name}={value} is not read by this script; append {flag} to the command", file=sys.stderr)
        elif (suggestion := meant(name, known)) is not None:
            refused += 1
            print(
                f"{name}={value}: not a variable of the scripts; did you mean {suggestion}? (if it is for another "
                f"program: env -u {name} bash ...)",
                file=sys.stderr,
            )
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
