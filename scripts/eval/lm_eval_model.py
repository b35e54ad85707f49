"""What lm-evaluation-harness must know of a run.

In: a run or a checkpoint, full or LoRA. Out: one line, the value of its --model_args, a tab, and the folder of its
results. A LoRA adapter is passed as peft=, its base as pretrained=. Run: python scripts/eval/lm_eval_model.py RUN
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
from evaluation.defaults import results_folder
from flags import show_error
from models.folders import find_checkpoint


def model_args(checkpoint: str) -> str:
    """Raises ValueError."""
    values = {"pretrained": checkpoint}
    folder = Path(checkpoint)
    if (folder / "adapter_config.json").is_file():
        from models.loading import adapter_base  # imports torch, which takes seconds

        base, revision = adapter_base(checkpoint)
        tokenizer = checkpoint if (folder / "tokenizer_config.json").is_file() else None
        values = {"pretrained": base, "peft": checkpoint, "revision": revision, "tokenizer": tokenizer}
    for name, value in values.items():
        if value and "," in value:
            raise ValueError(f"{name}={value}: lm_eval splits its --model_args at commas; rename the folder")
    return ",".join(f"{name}={value}" for name, value in values.items() if value)


if __name__ == "__main__":
    try:
        found = find_checkpoint("RUN_OR_CKPT", sys.argv[1])
        print(f"{model_args(found)}\t{results_folder(found) / 'lm_eval'}")
    except ValueError as error:
        show_error(error)
        sys.exit(2)
