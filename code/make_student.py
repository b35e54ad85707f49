"""Make a student out of its teacher: fewer layers, attention heads or FFN neurons; tokenizer and vocabulary stay.

    python code/make_student.py --model-path outputs/smollm2/smollm2-135m/sft --layers 18 --save-dir model_hub/student
    python code/make_student.py --model-path TEACHER --layers 18 --choose least-effect --data-dir DATA --save-dir OUT

In: a model, checkpoint or run (a LoRA adapter is merged). Out: a model folder, with origin.json: what it was cut from,
what was kept, and the dev NLL before and after. A cut model is a start that distillation has to repair. Exit codes: 2:
the input is wrong, and the message names the flag and the remedy; 74: the folder could not be written.
"""

from arguments import DataArguments, MakeStudentArguments, parse_make_student_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_make_student_arguments)

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_utils.batches import Batch, batches_by_length, collate
from data_utils.dataset import load_instruction_data
from data_utils.sources import find_source
from models.cutting import even_layers, keep_heads, keep_layers, keep_neurons, layer_list, least_effect_layers
from models.folders import find_checkpoint
from models.loading import load_checkpoint
from models.packing import response_logits
from runtime.atomic import new_folder, write_text
from runtime.exit_codes import USER_ERROR_CODES, exit_on, naming_save_dir, run_entry
from runtime.log import logger

TOKENS_PER_BATCH = 2048  # whose logits are all in memory: 400 MB for a vocabulary of 50,000


def main(argv: list[str]) -> None:
    with exit_on(USER_ERROR_CODES):
        args = parse_make_student_arguments(argv)
        path = find_checkpoint("--model-path", args.model_path)
        model, tokenizer = load_checkpoint(path, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
        batches = dev_batches(args, tokenizer)
        origin = {"model": path, "parameters": model.num_parameters(), "arguments": asdict(args)}
        origin |= {"nll_before": mean_nll(model, batches)} if batches else {}
        origin |= {"layers": cut(model, args, batches)}
        origin |= {"student_parameters": model.num_parameters()}
        with naming_save_dir(args.save_dir, "make room, or pass another folder"):
            save(model, tokenizer, Path(args.save_dir), origin, batches)
    print(json.dumps({key: value for key, value in origin.items() if key != "arguments"}))


def cut(model: PreTrainedModel, args: MakeStudentArguments, batches: Sequence[Batch]) -> list[int]:
    """Cuts the model as the flags say; returns the layers that were kept. Raises ValueError."""
    depth = len(getattr(*layer_list(model)))
    kept = list(range(depth))
    if args.keep_layers is not None:
        kept = args.keep_layers
    elif args.layers is not None:
        if args.layers >= depth:
            raise ValueError(f"--layers {args.layers}: the model has {depth}; pass fewer")
        kept = even_layers(depth, args.layers)
        if args.choose == "least-effect":
            kept = least_effect_layers(model, args.layers, lambda: mean_nll(model, batches), tell)
    keep_layers(model, kept)
    if args.heads is not None:
        keep_heads(model, args.heads, batches)
    if args.ffn_size is not None:
        keep_neurons(model, args.ffn_size, batches)
    return kept


def tell(layer: int, nll: float) -> None:
    logger.info("without layer %d: dev NLL %.4f", layer, nll)


def dev_batches(args: MakeStudentArguments, tokenizer: PreTrainedTokenizerBase) -> list[Batch]:
    """The dev rows that choices are made on, padded, the longest first; empty without --data-dir."""
    if args.data_dir is None:
        return []
    data_args = DataArguments(
        data_dir=args.data_dir,
        max_length=args.max_length,
        max_prompt_length=args.max_prompt_length,
        prompt_template=args.prompt_template,
    )
    dev = load_instruction_data(find_source(args.data_dir, "dev"), tokenizer, data_args, args.dev_num)
    return [
        collate([dev[i] for i in indices], tokenizer.pad_token_id, args.max_length, "padded")
        for indices in batches_by_length(dev.lengths, TOKENS_PER_BATCH)
    ]


@torch.no_grad()
def mean_nll(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Of the responses, in nats per token."""
    total = 0.0
    for batch in batches:
        total += F.cross_entropy(response_logits(model, batch), batch.labels_N, reduction="sum").item()
    return total / sum(len(batch.labels_N) for batch in batches)


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    origin: dict,
    batches: Sequence[Batch],
) -> None:
    """Writes the folder, if loading it again gives the same logits: then its config fits. Raises ValueError."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--save-dir {folder}: it is not empty; remove it, or pass another folder")
    probe_T = torch.arange(8)[None] + len(tokenizer) // 2
    with new_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        again, _ = load_checkpoint(str(part), dtype=model.dtype)
        with torch.no_grad():
            off = (again(probe_T).logits - model(probe_T).logits).abs().max().item()
        if off > 1e-3:
            raise ValueError(f"a model of type {model.config.model_type} cannot be cut: it loads as another")
        if batches:
            origin["nll"] = mean_nll(again, batches)
        write_text(part / "origin.json", json.dumps(origin, indent=2) + "\n")


if __name__ == "__main__":
    run_entry(main)
