"""Let a teacher answer the prompts of a data set: a data folder to train and evaluate on (SeqKD, arXiv 1606.07947).

    python code/generate.py --model-path outputs/sft --data-dir data/dolly --save-dir data/dolly-teacher
    python code/generate.py ... --do-sample --temperature 0.8 --top-p 0.95 --seeds 10 20     two answers to each prompt

The folder has the rows of --data-dir with the teacher's answer as `output`, and `"cut": true` where the answer reached
the limit. Start with `python`, or with `torchrun` or `deepspeed` to share the prompts among ranks; answers do not
depend on the number of ranks. The same command resumes what was interrupted. Exit codes: 2: the input is wrong, and the
message names the flag and the remedy; 74: the folder could not be written.
"""

from arguments import GenerateArguments, GenerateConfig, parse_generate_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_generate_arguments)

from dataclasses import asdict, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data_utils.prompts import PromptTemplate, prompt_template
from evaluation.defaults import Checkpoint, fill_in_lengths, find_checkpoints, run_of
from evaluation.differences import differences
from evaluation.settings import answer_settings, limits
from generation.answered_data import AnsweredData, Split
from generation.answering import Prompts, answer_all
from generation.building import build_generator, check_generator
from models.folders import locate
from runtime.exit_codes import USER_ERROR_CODES, exit_on, naming_save_dir, run_entry
from runtime.log import report
from runtime.ranks import all_ranks, from_main_process, init_distributed, is_main_process
from training.provenance import provenance


def main(argv: list[str]) -> None:
    with exit_on(USER_ERROR_CODES):  # what a user can get wrong; a failure later keeps its traceback
        config = parse_generate_arguments(argv)
        check_generator(config.generation)
        checkpoint, args, tokenizer, template = plan(config)
        splits = [Split.read(args.data_dir, name, template, args.train_num) for name in args.splits]
        device = init_distributed()
        model = checkpoint.load(config.checkpoints).to(device)
        settings = answer_settings(model, checkpoint, splits, template, args, config.generation)
        data = AnsweredData(Path(args.save_dir), settings)
        with all_ranks():
            check_folder(data)
    if config.ignored_flags:
        report(f"without effect here: {' '.join(config.ignored_flags)}")
    if from_main_process(data.is_complete):
        report(f"{data.folder} is complete")
        return data.clear()
    prompts = Prompts.encode(splits, tokenizer, args.max_prompt_length, template)
    parts = prompts.parts(args.seed, args.prompts_per_save)
    generator = build_generator(model, tokenizer, config.generation, **limits(args))
    with exit_on(USER_ERROR_CODES), naming_save_dir(data.folder, "make room; the same command resumes"):
        answer_all(data, prompts, parts, generator, tokenizer)
        with all_ranks():
            if is_main_process():
                notes = {"model": asdict(checkpoint), "run": provenance(argv, "code/generate.py")}
                data.finish(args.data_dir, splits, parts, notes)


def plan(
    config: GenerateConfig,
) -> tuple[Checkpoint, GenerateArguments, PreTrainedTokenizerBase, PromptTemplate]:
    """The model, the flags with no value left open, and the tokenizer, whose EOS the template may have set.

    Raises ValueError for what would otherwise fail later.
    """
    (checkpoint,) = find_checkpoints(config.checkpoints)
    tokenizer = checkpoint.tokenizer(config.checkpoints)
    args = fill_in_lengths(config.generate, run_of(checkpoint))
    if args.max_length <= args.max_prompt_length:
        raise ValueError(f"--max-length {args.max_length}: pass more than --max-prompt-length {args.max_prompt_length}")
    checkpoint.check_length(config.checkpoints, args, config.generation.max_new_tokens)
    template = prompt_template(args.prompt_template, tokenizer)
    return checkpoint, replace(args, data_dir=str(locate(args.data_dir))), tokenizer, template


def check_folder(data: AnsweredData) -> None:
    """Raises ValueError if the folder has answers that were made in another way, or files of something else."""
    stored = data.stored_settings()
    if stored is None or stored == data.settings:
        return
    wrong = differences({"the answers there": stored, "this command": data.settings})
    if stored["weights"] != data.settings["weights"]:
        wrong.insert(0, "another model (--model-path, --peft-path)")
    raise ValueError(
        f"--save-dir {data.folder}: one folder has one kind of answers; pass another folder, or the flags of the "
        f"answers there. What differs: {'; '.join(wrong)}"
    )


if __name__ == "__main__":
    run_entry(main)
