"""Score a checkpoint: generate an answer to every prompt, compare with the references by ROUGE-L.

    python code/evaluate.py --model-path outputs/run/epoch3_step300_loss1.5 --data-dir data/dolly --seeds 10 20 30 \
        --do-sample

The checkpoint is a whole model or a LoRA adapter (its base comes from the adapter, or: --model-path BASE --peft-path
ADAPTER). Starts with `python`, or with `torchrun`/`deepspeed` to share the prompts among ranks; the answers do not
depend on how many there are. Writes answers, metrics and summary.json, and prints a table. Exit code 2: the input is
wrong, and the message says which flag and what to do; 74: a result could not be written.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import EvaluateArguments, EvaluateConfig, GenerationArguments, parse_evaluate_arguments
from data_utils.atomic import WriteError, write_text
from data_utils.dataset import Row, read_rows
from data_utils.prompts import cut_prompts, encode_prompts
from evaluation.defaults import fill_in
from evaluation.generation import generate_answers
from evaluation.results import summarise, table, write_answers
from evaluation.rouge import rouge_l
from models.loading import load_checkpoint
from training.ranks import USER_ERRORS, show_error
from training.stopping import NOT_WRITTEN


def main(argv: list[str]) -> None:
    try:
        config = parse_evaluate_arguments(argv)
        config = config._replace(evaluate=fill_in(config.evaluate))
        args, data = config.evaluate, read_data(config.evaluate)
        model, tokenizer = load(args)
    except USER_ERRORS as error:  # what a user can get wrong; a failure later keeps its traceback
        show_error(error)
        sys.exit(2)
    model.to(init_distributed())
    save_dir = results_folder(args)
    report(f"{args.model_path} on {', '.join(data)}; results in {save_dir}")
    if config.ignored_flags:
        report(f"without effect here: {' '.join(config.ignored_flags)}")

    try:
        scores = {name: evaluate_set(model, tokenizer, name, rows, config, save_dir) for name, rows in data.items()}
        if is_main_process():
            summary = summarise(scores)
            write_text(save_dir / "summary.json", json.dumps({"rougeL": summary}, indent=2) + "\n")
            print(f"ROUGE-L of {args.model_path}\n\n{table(summary)}")
    except WriteError as error:
        print(f"error: --save-dir {save_dir}: {error}; make room, or pass another folder", file=sys.stderr)
        sys.exit(NOT_WRITTEN)


def load(args: EvaluateArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_checkpoint(
        args.model_path,
        args.peft_path,
        "auto" if args.dtype == "auto" else getattr(torch, args.dtype),
        args.attn_implementation,
        args.trust_remote_code,
        args.model_revision,
    )


def read_data(args: EvaluateArguments) -> dict[str, list[Row]]:
    """The rows of every data set, by the name of its folder. Raises ValueError, FileNotFoundError."""
    folders = [Path(folder).resolve() for folder in args.data_dir]
    last_parts = [folder.name for folder in folders]
    data: dict[str, list[Row]] = {}
    for folder in folders:  # data/sinst/11_ and data/uinst/11_ are told apart by one part more
        shared = last_parts.count(folder.name) > 1
        data["-".join(folder.parts[-2:]) if shared else folder.name] = read_rows(
            folder / f"{args.split}.jsonl", args.dev_num
        )
    return data


def evaluate_set(model, tokenizer, name: str, rows: list[Row], config: EvaluateConfig, save_dir: Path):
    """ROUGE-L of each seed on one data set, on rank 0, which writes the answers."""
    args = config.evaluate
    prompts = encode_prompts(tokenizer, [row.prompt for row in rows])
    cut = sum(len(ids) > args.max_prompt_length for ids in prompts)
    if cut:
        report(f"{name}: {cut} of {len(rows)} prompts are longer than {args.max_prompt_length} tokens and were cut")
    prompts = cut_prompts(tokenizer, prompts, args.max_prompt_length)
    room = args.max_length - args.max_prompt_length
    references = [row.responses for row in rows]
    started = time.perf_counter()
    answers_of_seeds = generate_answers(
        model,
        tokenizer,
        prompts,
        config.generation,
        room,
        args.eval_batch_size * args.max_length,
        seeds(args, config.generation),
        description=name,
    )
    seconds_a_seed = round((time.perf_counter() - started) / len(answers_of_seeds), 2)
    scores = {}
    for seed, answers in answers_of_seeds.items() if is_main_process() else ():
        of_rows = rouge_l(answers, references)
        scores[seed] = sum(of_rows) / len(of_rows)
        records = [
            {"prompt": row.prompt, "answer": answer, "references": list(row.responses), "rougeL": round(score, 4)}
            for row, answer, score in zip(rows, answers, of_rows)
        ]
        metrics = {
            "rougeL": scores[seed],
            "rows": len(rows),
            "seed": seed,
            "words_per_answer": sum(len(answer.split()) for answer in answers) / len(answers),
            "seconds": seconds_a_seed,
        }
        write_answers(save_dir / name / f"seed{seed}", records, metrics)
    return scores


def seeds(args: EvaluateArguments, generation: GenerationArguments) -> list[int]:
    """One is enough where nothing is sampled."""
    if generation.do_sample or len(args.seed) == 1:
        return args.seed
    report(f"without --do-sample every seed gives the same answers: only seed {args.seed[0]} runs")
    return args.seed[:1]


def results_folder(args: EvaluateArguments) -> Path:
    if args.save_dir is not None:
        return Path(args.save_dir)
    checkpoint = Path(args.peft_path or args.model_path)
    return checkpoint.parent / "eval" / checkpoint.name if checkpoint.is_dir() else Path("outputs/eval") / checkpoint


def init_distributed() -> torch.device:
    """Joins the group that a launcher made, if one did. Returns the device of this rank."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def is_main_process() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def report(message: str) -> None:
    if is_main_process():
        print(message, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    # Not after a failure: the other ranks may be in the middle of a collective, and leaving the group waits for them.
    if dist.is_initialized():
        dist.destroy_process_group()
