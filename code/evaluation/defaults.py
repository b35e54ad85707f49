"""What the flags of an evaluation leave open, taken from the run that wrote the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from arguments import CheckpointArguments, EvaluateArguments, GenerateArguments
from data_utils.prompts import recorded_template
from models.folders import find_checkpoint, locate, run_arguments
from models.loading import check_checkpoint, load_checkpoint_model, load_checkpoint_tokenizer, positions_of

T = TypeVar("T", EvaluateArguments, GenerateArguments)

# Without a run to take them from: the defaults of training.
WITHOUT_RUN = {"max_length": 512, "max_prompt_length": 256, "prompt_template": "alpaca"}


@dataclass(frozen=True)
class Checkpoint:
    """A model or an adapter (`model_path`), or a model with an adapter for it. Folders or hub ids."""

    model_path: str
    peft_path: str | None = None

    @property
    def path(self) -> str:
        """What training wrote: the adapter if there is one."""
        return self.peft_path or self.model_path

    def tokenizer(self, args: CheckpointArguments) -> PreTrainedTokenizerBase:
        """Raises ValueError, also for a model that `load` would refuse."""
        return load_checkpoint_tokenizer(
            self.model_path,
            self.peft_path,
            trust_remote_code=args.trust_remote_code,
            revision=args.model_revision,
        )

    def load(self, args: CheckpointArguments) -> PreTrainedModel:
        """Raises ValueError, OSError."""
        return load_checkpoint_model(
            self.model_path,
            self.peft_path,
            dtype="auto" if args.dtype == "auto" else getattr(torch, args.dtype),
            attn_implementation=args.attn_implementation,
            trust_remote_code=args.trust_remote_code,
            revision=args.model_revision,
        )

    def check_length(
        self, args: CheckpointArguments, lengths: EvaluateArguments | GenerateArguments, answer: int | None
    ) -> None:
        """Raises ValueError if prompt and answer together may have more tokens than the model has positions.

        lengths: with none left open. answer: of --max-new-tokens, where it is given.
        """
        base, _, revision = check_checkpoint(self.model_path, self.peft_path, args.model_revision)
        config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=args.trust_remote_code)
        positions = positions_of(config)
        longest = lengths.max_length if answer is None else lengths.max_prompt_length + answer
        if positions is None or longest <= positions:
            return
        if answer is not None:
            raise ValueError(
                f"--max-new-tokens {answer}: after a prompt of --max-prompt-length {lengths.max_prompt_length} that is "
                f"{longest:,} tokens, and {self.path} has {positions:,} positions; lower one of them"
            )
        raise ValueError(
            f"--max-length {lengths.max_length}: {self.path} has {positions} positions; pass --max-length {positions} "
            f"--max-prompt-length {positions // 2}, or less (in front of a script: MAX_LENGTH={positions} "
            f"MAX_PROMPT_LENGTH={positions // 2})"
        )


def find_checkpoints(args: CheckpointArguments) -> list[Checkpoint]:
    """Each once, in the order of the flags. Raises ValueError."""
    models = [find_checkpoint("--model-path", path) for path in args.model_path]
    if args.peft_path is None:
        return [Checkpoint(path) for path in dict.fromkeys(models)]
    adapters = [find_checkpoint("--peft-path", path) for path in args.peft_path]
    return [Checkpoint(models[0], path) for path in dict.fromkeys(adapters)]


def fill_in(args: EvaluateArguments, checkpoint: Checkpoint) -> EvaluateArguments:
    """Data and lengths are those of the run, the prompt template is the checkpoint's; results go beside it.

    Raises ValueError.
    """
    run = run_of(checkpoint)
    data_dir = args.data_dir or ([run["data_dir"]] if "data_dir" in run else [])
    if not data_dir:
        raise ValueError(f"--data-dir: name a folder; {checkpoint.path} has no run beside it to take it from")
    if args.data_dir is None and not locate(data_dir[0]).is_dir():
        raise ValueError(
            f"--data-dir: name the data to evaluate on; {checkpoint.path} was trained on {data_dir[0]}, which has no "
            f"split {args.split}"
        )
    return replace(
        fill_in_lengths(args, run),
        data_dir=[str(locate(folder)) for folder in data_dir],
        save_dir=args.save_dir or str(results_folder(checkpoint.path)),
    )


def run_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The flags of the run that wrote the checkpoint, with the prompt template that lies in it; empty without any."""
    template = recorded_template(Path(checkpoint.path))
    return run_arguments(checkpoint.path) | ({"prompt_template": template} if template else {})


def fill_in_lengths(args: T, run: Mapping[str, Any]) -> T:
    """Lengths and prompt template that are open become the run's. run: its args.json, or nothing."""
    left_open = [name for name in WITHOUT_RUN if getattr(args, name) is None]
    return replace(args, **{name: run.get(name, WITHOUT_RUN[name]) for name in left_open})


def results_folder(checkpoint: str) -> Path:
    """Where an evaluation without --save-dir puts its results."""
    path = Path(checkpoint)
    return path.parent / "eval" / path.name if path.is_dir() else Path("outputs/eval") / path
