"""The settings of an evaluation: all that decides its answers and scores except the seed.

In: the flags, the loaded model and the rows. Out: a dictionary whose hash names the folder of the results, so that any
change (of rows, decoding, lengths, dtype, weights, ...) leads to another folder.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from arguments import EvaluateArguments, GenerationArguments
from data_utils.rows import Row
from evaluation.defaults import Checkpoint
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
        "decoding": decoding(generation, args.max_length - args.max_prompt_length),
        "draws": draws(model, generation, args.eval_batch_size * args.max_length),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
        "rouge_tokenizer": generation.rouge_tokenizer,
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
