"""Evaluate checkpoints: generate an answer to each prompt, and score it against the references.

    python code/evaluate.py --model-path outputs/sft outputs/todi --data-dir data/dolly data/vicuna \
        --seeds 10 20 30 40 50 --do-sample

A checkpoint is a whole model or a LoRA adapter (its base comes from the adapter, or: --model-path BASE --peft-path
ADAPTER); a run stands for its best checkpoint. Start with `python`, or with `torchrun` or `deepspeed` to share the
prompts among ranks; the answers do not depend on the number of ranks. Writes answers, metrics and summary.json per
checkpoint (evaluation/results.py says where), and the table of all (evaluation/tables.py) beside the results of one
checkpoint, or in outputs/tables. Results that are complete under the same settings are read, unless --force is given.
Exit codes: 2: the input is wrong, and the message names the flag and the remedy; 74: a result could not be written.
"""

from arguments import EvaluateArguments, EvaluateConfig, parse_evaluate_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_evaluate_arguments)

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from data_utils.prompts import PromptTemplate, prompt_template
from evaluation.defaults import Checkpoint, fill_in, find_checkpoints
from evaluation.evaluator import Evaluator
from evaluation.metrics import MAIN_METRIC, Metric, build_metrics, metric_names
from evaluation.results import table, write_summary
from evaluation.sets import DataSet, read_sets
from evaluation.tables import Cell, Matrix
from generation.building import check_generator
from models.folders import short_names, tables_folder
from runtime.atomic import WriteError
from runtime.exit_codes import NOT_WRITTEN, USER_ERROR_CODES, exit_on, naming_save_dir, run_entry
from runtime.log import counted_rows, report
from runtime.ranks import init_distributed, is_main_process

REMEDY = "make room, or pass another folder"


class Job(NamedTuple):
    """A checkpoint to evaluate. args: with no value left open. template: may have set the tokenizer's EOS."""

    checkpoint: Checkpoint
    args: EvaluateArguments
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    data_sets: list[DataSet]


def main(argv: list[str]) -> None:
    with exit_on(USER_ERROR_CODES):  # what a user can get wrong; a failure later keeps its traceback
        config = parse_evaluate_arguments(argv)
        check_generator(config.generation)
        jobs = plan(config)
        metrics = build_metrics(config.generation, *metric_names(config.evaluate.metrics or ()))
        device = init_distributed()
    if config.ignored_flags:
        report(f"without effect here: {' '.join(config.ignored_flags)}")

    names = short_names([job.checkpoint.path for job in jobs])
    folder = Path(jobs[0].args.save_dir) if len(jobs) == 1 else tables_folder(config.evaluate.save_dir, names)
    cells = {name: evaluate(job, config, metrics, device) for name, job in zip(names, jobs)}
    if is_main_process():
        matrix = Matrix(cells)
        with exit_on({WriteError: NOT_WRITTEN}), naming_save_dir(folder, REMEDY):
            matrix.write(folder)
        print(f"\ntables: {folder}/scores.md, scores.json, scores.csv\n{matrix.text()}")


def plan(config: EvaluateConfig) -> list[Job]:
    """Raises ValueError or FileNotFoundError for what would otherwise fail after hours."""
    jobs = []
    for checkpoint in find_checkpoints(config.checkpoints):
        tokenizer = checkpoint.tokenizer(config.checkpoints)
        args = fill_in(config.evaluate, checkpoint)
        checkpoint.check_length(config.checkpoints, args, config.generation.max_new_tokens)
        template = prompt_template(args.prompt_template, tokenizer)
        jobs.append(Job(checkpoint, args, tokenizer, template, read_sets(args, template)))
    return jobs


def evaluate(job: Job, config: EvaluateConfig, metrics: Mapping[str, Metric], device: torch.device) -> dict[str, Cell]:
    """The checkpoint's row of the table, complete on rank 0; its model leaves the memory afterwards."""
    checkpoint, args, tokenizer, template, data_sets = job
    sets = ", ".join(f"{data.name} ({counted_rows(len(data.rows))})" for data in data_sets)
    report(f"{checkpoint.path} on {sets}; results in {args.save_dir}")
    with exit_on(USER_ERROR_CODES):
        model = checkpoint.load(config.checkpoints).to(device)
    evaluator = Evaluator(checkpoint, model, tokenizer, template, args, config.generation, metrics)
    with exit_on({WriteError: NOT_WRITTEN}), naming_save_dir(args.save_dir, REMEDY):
        cells = {data.name: Cell.of(*evaluator.evaluate(data), metrics) for data in data_sets}
        if is_main_process():
            write_summary(Path(args.save_dir))
            seeds = {name: cell.scores[MAIN_METRIC] for name, cell in cells.items()}
            print(f"ROUGE-L of {checkpoint.path}\n\n{table(seeds)}\n", flush=True)
    return cells


if __name__ == "__main__":
    run_entry(main)
