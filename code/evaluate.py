"""Evaluate a checkpoint: generate an answer to each prompt, and score it against the references.

    python code/evaluate.py --model-path outputs/run/epoch3_step300_loss1.5 --data-dir data/dolly --seeds 10 20 30 \
        --do-sample

The checkpoint is a whole model or a LoRA adapter (its base comes from the adapter, or: --model-path BASE --peft-path
ADAPTER). Start with `python`, or with `torchrun` or `deepspeed` to share the prompts among ranks; the answers do not
depend on the number of ranks. Writes answers, metrics and summary.json (evaluation/results.py says where), and prints
a table of ROUGE-L. Results that are complete under the same settings are read, unless --force is given. Exit codes: 2:
the input is wrong, and the message names the flag and the remedy; 74: a result could not be written.
"""

from arguments import EvaluateArguments, parse_evaluate_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_evaluate_arguments)

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.defaults import fill_in
from evaluation.evaluator import Evaluator, report
from evaluation.results import table, write_summary
from evaluation.sets import read_sets
from generation.building import check_generator
from models.loading import load_checkpoint
from runtime.atomic import WriteError
from runtime.exit_codes import NOT_WRITTEN, USER_ERROR_CODES, exit_on, naming_save_dir, run_entry
from runtime.ranks import init_distributed, is_main_process


def main(argv: list[str]) -> None:
    with exit_on(USER_ERROR_CODES):  # what a user can get wrong; a failure later keeps its traceback
        config = parse_evaluate_arguments(argv)
        check_generator(config.generation)
        args = fill_in(config.evaluate)
        data_sets = read_sets(args)
        model, tokenizer = load(args)
        device = init_distributed()
    report(f"{args.model_path} on {', '.join(data_sets)}; results in {args.save_dir}")
    if config.ignored_flags:
        report(f"without effect here: {' '.join(config.ignored_flags)}")

    evaluator = Evaluator(model.to(device), tokenizer, args, config.generation)
    with exit_on({WriteError: NOT_WRITTEN}), naming_save_dir(args.save_dir, "make room, or pass another folder"):
        scores = {name: evaluator.evaluate(name, rows) for name, rows in data_sets.items()}
        if is_main_process():
            write_summary(Path(args.save_dir))
            print(f"ROUGE-L of {args.model_path}\n\n{table(scores)}")


def load(args: EvaluateArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_checkpoint(
        args.model_path,
        args.peft_path,
        dtype="auto" if args.dtype == "auto" else getattr(torch, args.dtype),
        attn_implementation=args.attn_implementation,
        trust_remote_code=args.trust_remote_code,
        revision=args.model_revision,
    )


if __name__ == "__main__":
    run_entry(main)
