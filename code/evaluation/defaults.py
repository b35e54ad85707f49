"""What the flags of an evaluation leave open, taken from the run that wrote the checkpoint."""

from dataclasses import replace
from pathlib import Path

from arguments import EvaluateArguments
from models.folders import find_checkpoint, locate, run_arguments

# Without a run to take them from: the defaults of training.
WITHOUT_RUN = {"max_length": 512, "max_prompt_length": 256, "prompt_template": "alpaca"}


def fill_in(args: EvaluateArguments) -> EvaluateArguments:
    """Paths become checkpoints; data, lengths and prompt template those of the run; results go beside the checkpoint.

    Raises ValueError.
    """
    model_path = find_checkpoint("--model-path", args.model_path)
    peft_path = None if args.peft_path is None else find_checkpoint("--peft-path", args.peft_path)
    run = run_arguments(peft_path or model_path)
    data_dir = args.data_dir or ([run["data_dir"]] if "data_dir" in run else [])
    if not data_dir:
        raise ValueError(f"--data-dir: name a folder; {peft_path or model_path} has no run beside it to take it from")
    of_run = {
        name: run.get(name, default) if getattr(args, name) is None else getattr(args, name)
        for name, default in WITHOUT_RUN.items()
    }
    return replace(
        args,
        model_path=model_path,
        peft_path=peft_path,
        data_dir=[str(locate(folder)) for folder in data_dir],
        save_dir=args.save_dir or str(_results_folder(Path(peft_path or model_path))),
        **of_run,
    )


def _results_folder(checkpoint: Path) -> Path:
    return checkpoint.parent / "eval" / checkpoint.name if checkpoint.is_dir() else Path("outputs/eval") / checkpoint
