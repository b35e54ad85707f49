"""The settings of an evaluation, all that decides its answers and scores except the seed; and of a teacher's answers.

In: the flags, the loaded model and the rows. Out: a dictionary of JSON values. The hash of an evaluation's names the
folder of its results, so that any change (of rows, decoding, lengths, dtype, weights, ...) leads to another folder; the
folder of a teacher's answers keeps its settings, and takes no others.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from arguments import EvaluateArguments, GenerateArguments, GenerationArguments
from data_utils.prompts import PromptTemplate
from data_utils.rows import Row
from evaluation.defaults import Checkpoint
from generation.answered_data import Split
from generation.base import decoding
from generation.building import draws
from models.files import digest
from models.loading import adapter_base

CHECKPOINT_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")  # weights, config, tokenizer


def evaluation_settings(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    name: str,
    rows: Sequence[Row],
    args: EvaluateArguments,
    generation: GenerationArguments,
) -> dict:
    """A dictionary of JSON values. Only `weights` differs between checkpoints that are evaluated in the same way.

    args: with the template's identity as `prompt_template`, which tells apart chat templates and files.
    """
    content = json.dumps([(row.prompt, row.responses) for row in rows])
    return {
        "weights": weights(checkpoint, model),
        "set": name,
        "split": args.split,
        "rows": {"count": len(rows), "sha256": hashlib.sha256(content.encode()).hexdigest()},
        "prompt_template": f"{args.prompt_template}, or the row's own prompt",
        "max_length": args.max_length,
        "max_prompt_length": args.max_prompt_length,
        **_of_answers(model, args, generation),
        "rouge_tokenizer": generation.rouge_tokenizer,
    }


def answer_settings(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    splits: Sequence[Split],
    template: PromptTemplate,
    args: GenerateArguments,
    generation: GenerationArguments,
) -> dict[str, Any]:
    """All that decides the answers of code/generate.py, seeds included."""
    files = "".join(split.source.digest() for split in splits)
    kept = ("splits", "train_num", "seed", "prompts_per_save", "max_length", "max_prompt_length")
    return {
        "weights": weights(checkpoint, model),
        "data_dir": hashlib.sha256(files.encode()).hexdigest(),
        **{name: getattr(args, name) for name in kept},
        "prompt_template": template.identity,
        **_of_answers(model, args, generation),
    }


def limits(args: EvaluateArguments | GenerateArguments) -> dict[str, int]:
    """As `build_generator` takes them. args: with no length left open."""
    return {
        "max_new_tokens": args.max_length - args.max_prompt_length,
        "tokens_per_batch": args.eval_batch_size * args.max_length,
    }


def _of_answers(
    model: PreTrainedModel, args: EvaluateArguments | GenerateArguments, generation: GenerationArguments
) -> dict[str, Any]:
    return {
        "decoding": decoding(generation, limits(args)["max_new_tokens"]),
        "draws": draws(model, generation, limits(args)["tokens_per_batch"]),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
    }


def weights(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, str]:
    """Digests of model and adapter with their tokenizers: a folder whose files were replaced is another checkpoint."""
    path, adapter = checkpoint.model_path, checkpoint.peft_path
    if adapter is None and (Path(path) / "adapter_config.json").is_file():
        path, adapter = adapter_base(path)[0], path
    parts = {"model": path} | ({} if adapter is None else {"adapter": adapter})
    return {part: _digest(Path(place)) or model.config._commit_hash for part, place in parts.items()}


def _digest(folder: Path) -> str | None:
    files = sorted(path for path in folder.glob("*") if path.suffix in CHECKPOINT_FILES and path.is_file())
    return digest(files) if files else None
