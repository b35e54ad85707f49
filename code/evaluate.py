"""Score a checkpoint: generate an answer to every prompt, compare with the references by ROUGE-L.

    python code/evaluate.py --model-path outputs/run/epoch3_step300_loss1.5 --data-dir data/dolly --seeds 10 20 30 \
        --do-sample

The checkpoint is a whole model or a LoRA adapter (its base comes from the adapter, or: --model-path BASE --peft-path
ADAPTER). Starts with `python`, or with `torchrun`/`deepspeed` to share the prompts among ranks; the answers do not
depend on how many there are. Writes answers, metrics and summary.json (evaluation/results.py says where), and prints a
table. What is complete under the same settings is not answered again, unless --force asks for it. Exit code 2: the
input is wrong, and the message says which flag and what to do; 74: a result could not be written.
"""

from arguments import EvaluateArguments, GenerationArguments, parse_evaluate_arguments
from flags import answer_early, show_error

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_evaluate_arguments)

import sys
import time
from datetime import datetime
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_utils.dataset import Row, read_rows
from data_utils.prompts import cut_prompts, encode_prompts
from evaluation.defaults import fill_in
from evaluation.metrics.rouge import rouge_l, tokenizer_warning
from evaluation.results import Evaluation, summarise, table, write_summary
from evaluation.settings import evaluation_settings
from generation.transformers_generator import generate_answers
from models.loading import load_checkpoint
from runtime.atomic import WriteError
from runtime.exit_codes import NOT_WRITTEN, run_entry
from runtime.ranks import USER_ERRORS, from_main_process, init_distributed, is_main_process


def main(argv: list[str]) -> None:
    try:
        config = parse_evaluate_arguments(argv)
        args = fill_in(config.evaluate)
        data = read_data(args)
        model, tokenizer = load(args)
    except USER_ERRORS as error:  # what a user can get wrong; a failure later keeps its traceback
        show_error(error)
        sys.exit(2)
    model.to(init_distributed())
    root = results_folder(args)
    report(f"{args.model_path} on {', '.join(data)}; results in {root}")
    if config.ignored_flags:
        report(f"without effect here: {' '.join(config.ignored_flags)}")

    try:
        scores = {
            name: evaluate_set(model, tokenizer, name, rows, args, config.generation, root)
            for name, rows in data.items()
        }
        if is_main_process():
            write_summary(root)
            print(f"ROUGE-L of {args.model_path}\n\n{table(summarise(scores))}")
    except WriteError as error:
        print(f"error: --save-dir {root}: {error}; make room, or pass another folder", file=sys.stderr)
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
    last_parts = [folder.name for folder in dict.fromkeys(folders)]
    data: dict[str, list[Row]] = {}
    for folder in folders:
        # 11_ of data/sinst/11_ says nothing alone, and two folders of one name are told apart by one part more.
        speaks = any(map(str.isalpha, folder.name)) and last_parts.count(folder.name) == 1
        data[folder.name if speaks else "-".join(folder.parts[-2:])] = read_rows(
            folder / f"{args.split}.jsonl", args.dev_num, empty_references=True
        )
    return data


def evaluate_set(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    rows: list[Row],
    args: EvaluateArguments,
    generation: GenerationArguments,
    root: Path,
) -> dict[int, float]:
    """ROUGE-L of each seed on one data set, on rank 0, which writes the answers; complete seeds are read."""
    settings = evaluation_settings(model, name, rows, args, generation)
    evaluation = Evaluation(root, f"{name}-{args.split}", settings, notes(args))
    there = from_main_process({} if args.force else evaluation.scores())
    wanted = seeds(args, generation, there)
    missing = [seed for seed in wanted if seed not in there]
    if len(missing) < len(wanted):
        report(f"{name}: seeds that are complete in {evaluation.folder} are not answered again (--force does)")
    if empty := [row.place for row in rows if not any(row.responses)]:
        report(f"{name}: {len(empty)} rows have an empty reference and count 0: {', '.join(empty[:5])}")
    started = time.perf_counter()
    answers_of_seeds = answer(model, tokenizer, name, rows, args, generation, missing) if missing else {}
    seconds = (time.perf_counter() - started) / max(len(missing), 1)
    scores = {seed: there[seed] for seed in wanted if seed in there}
    if not is_main_process():
        return scores
    texts = {
        "references": (response for row in rows for response in row.responses),
        "answers": (text for answers in answers_of_seeds.values() for text in answers),
    }
    warnings = (tokenizer_warning(what, of_what, generation.rouge_tokenizer) for what, of_what in texts.items())
    if warning := next(filter(None, warnings), None):
        report(f"{name}: {warning}")
    for seed, answers in answers_of_seeds.items():
        scores[seed] = write_seed(evaluation, seed, rows, answers, generation.rouge_tokenizer, round(seconds, 2))
    return {seed: scores[seed] for seed in wanted}


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    rows: list[Row],
    args: EvaluateArguments,
    generation: GenerationArguments,
    seeds: list[int],
) -> dict[int, list[str]]:
    """By seed, one answer per row."""
    prompts = encode_prompts(tokenizer, [row.prompt for row in rows])
    cut = sum(len(ids) > args.max_prompt_length for ids in prompts)
    if cut:
        report(f"{name}: {cut} of {len(rows)} prompts are longer than {args.max_prompt_length} tokens and were cut")
    return generate_answers(
        model,
        tokenizer,
        cut_prompts(tokenizer, prompts, args.max_prompt_length),
        generation,
        args.max_length - args.max_prompt_length,
        args.eval_batch_size * args.max_length,
        seeds,
        description=name,
    )


def write_seed(
    evaluation: Evaluation, seed: int, rows: list[Row], answers: list[str], tokenizer: str, seconds: float
) -> float:
    """Scores the answers and writes both. Returns their ROUGE-L."""
    scores = rouge_l(answers, [row.responses for row in rows], tokenizer)
    records = [
        {"prompt": row.prompt, "answer": answer, "references": list(row.responses), "rougeL": round(score, 4)}
        for row, answer, score in zip(rows, answers, scores)
    ]
    metrics = {
        "rougeL": sum(scores) / len(scores),
        "rows": len(rows),
        "seed": seed,
        "words_per_answer": sum(len(answer.split()) for answer in answers) / len(answers),
        "seconds": seconds,
        "made": datetime.now().isoformat(timespec="milliseconds"),
    }
    evaluation.write(seed, records, metrics)
    return metrics["rougeL"]


def notes(args: EvaluateArguments) -> dict[str, object]:
    """What the results do not depend on."""
    return {"model_path": args.model_path, "peft_path": args.peft_path, "data_dir": args.data_dir}


def seeds(args: EvaluateArguments, generation: GenerationArguments, there: dict[int, float]) -> list[int]:
    """One is enough where nothing is sampled, and any that is there."""
    if generation.do_sample:
        return args.seed
    seed = next(iter(there), args.seed[0])
    if len(args.seed) > 1:
        report(f"without --do-sample every seed gives the same answers: only seed {seed} runs")
    return [seed]


def results_folder(args: EvaluateArguments) -> Path:
    if args.save_dir is not None:
        return Path(args.save_dir)
    checkpoint = Path(args.peft_path or args.model_path)
    return checkpoint.parent / "eval" / checkpoint.name if checkpoint.is_dir() else Path("outputs/eval") / checkpoint


def report(message: str) -> None:
    if is_main_process():
        print(message, flush=True)


if __name__ == "__main__":
    run_entry(main)
