"""Turn a checkpoint into a folder that other programs serve: merged weights, safetensors, tokenizer, model card.

    python code/export.py --model-path outputs/tinyllama/tinyllama-1.1b-3T/todi --save-dir exported/student
    python code/export.py --model-path RUN --save-dir OUT --gguf --push-to-hub ORG/NAME

In: a run (its best checkpoint) or a checkpoint, full or LoRA. Out: the folder, which Transformers 4 and 5 and vLLM
read, and the commands that serve it. Nothing is written unless the folder gives the trained logits: an adapter is
merged in fp32 and compared with the model that was trained, and what was written is loaded again and compared with what
should have been. Exit codes: 2: the input is wrong, and the message names the flag and the remedy; 74: the folder could
not be written. docs/export.md has more.
"""

from arguments import ExportArguments, parse_export_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_export_arguments)

from pathlib import Path

from transformers import AutoConfig

from data_utils.prompts import prompt_template, record_template, recorded_template
from exporting.checks import check_tokenizer, check_written, merged_model, round_weights
from exporting.commands import serving_commands
from exporting.gguf_file import check_gguf, write_gguf
from exporting.hub import check_repository, push
from exporting.portable import make_portable
from models.card import CARD, SetScore, model_card
from models.folders import find_checkpoint, run_arguments
from models.loading import check_checkpoint, load_checkpoint_tokenizer
from reporting.evaluations import METRIC, read_evaluations, scored
from runtime.atomic import new_folder
from runtime.exit_codes import USER_ERROR_CODES, exit_on, naming_save_dir, run_entry
from training.checkpoints import stop_at


def main(argv: list[str]) -> None:
    with exit_on(USER_ERROR_CODES):
        args = parse_export_arguments(argv)
        out = Path(args.save_dir)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"--save-dir {out}: it is there already; remove it, or pass another folder")
        if args.push_to_hub is not None:
            check_repository(args.push_to_hub)
        with naming_save_dir(args.save_dir, "make room, or pass another folder"):
            export(args, out)
        if args.push_to_hub is not None:
            print(f"uploaded, private: {push(out, args.push_to_hub)}")


def export(args: ExportArguments, out: Path) -> None:
    """Writes the folder and prints what was checked, and how to serve it. Raises ValueError."""
    peft = None if args.peft_path is None else find_checkpoint("--peft-path", args.peft_path)
    path = find_checkpoint("--model-path", args.model_path)
    base, peft, revision = check_checkpoint(path, peft)
    checkpoint = peft or base
    run = run_arguments(checkpoint)
    tokenizer = load_checkpoint_tokenizer(base, peft, trust_remote_code=args.trust_remote_code, revision=revision)
    config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=args.trust_remote_code)
    pre_tokenizer = check_gguf("--gguf", config, tokenizer) if args.gguf else None
    recorded = recorded_template(Path(checkpoint))
    template = None if recorded is None else prompt_template(recorded, tokenizer)

    model = merged_model(base, peft, revision, args.trust_remote_code)
    round_weights(model, args.dtype, config)
    if template is not None and template.takes_chats:
        stop_at(model, tokenizer.eos_token_id)  # an adapter's base may stop elsewhere
    gguf = out / f"{out.name}.gguf" if args.gguf else None
    with new_folder(out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        if template is not None:
            record_template(template, part)
        for note in make_portable(part):
            print(f"note: {note}")
        check_tokenizer(tokenizer, part)
        check_written(model, part, args.trust_remote_code)
        if gguf is not None:
            write_gguf(model, part, part / gguf.name, pre_tokenizer, tokenizer)
        card = model_card(Path(checkpoint).name, run, base=base, scores=set_scores(checkpoint), template=template)
        (part / CARD).write_text(card, encoding="utf-8")
        for file in part.iterdir():
            file.chmod(0o644)  # safetensors makes files that only the owner can read; a server may be another user
    print(f"{out}\n{serving_commands(out, run, gguf)}")


def set_scores(checkpoint: str) -> list[SetScore]:
    """Of the latest evaluation on each set."""
    latest = {evaluation.name: evaluation for evaluation in read_evaluations(Path(checkpoint))}
    found = []
    for name, evaluation in latest.items():
        score = scored({name: evaluation})
        rows = len(evaluation.scores_N)
        found.append(SetScore(name, METRIC, score.mean, score.low, score.high, rows, score.seeds))
    return found


if __name__ == "__main__":
    run_entry(main)
