"""Whether teacher and student read and end texts alike: vocabularies, special tokens, chat templates."""

from contextlib import suppress
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from arguments import TrainConfig
from data_utils.prompts import ChatTemplate, prompt_template
from data_utils.prompts.alpaca import INTRODUCTION
from data_utils.prompts.chat import SHIPPED
from data_utils.rows import read_rows
from data_utils.sources import find_source
from models.loading import load_tokenizer
from models.vocabulary import shared_vocabulary
from preflight.report import Report
from preflight.skeleton import ModelFacts

ROLES = ("EOS", "BOS", "PAD")


def check_tokenizers(config: TrainConfig, student: ModelFacts, teacher: ModelFacts | None, report: Report) -> None:
    """Facts and warnings. Raises ValueError where the objectives would compare different tokens."""
    model = config.model
    ours = load_tokenizer(model.model_path, model.trust_remote_code, model.model_revision)
    template = prompt_template(config.data.prompt_template, ours)
    report.fact("tokenizer", f"{len(ours):,} tokens; {', '.join(f'{role} {_token(ours, role)}' for role in ROLES)}")
    if not template.takes_chats or model.peft is not None:  # else a checkpoint's generation_config.json stops there
        _check_ends("--model-path", ours, student, report)
    if teacher is None:
        return
    theirs = load_tokenizer(teacher.path, model.trust_remote_code, config.teacher.teacher_revision)
    shared = shared_vocabulary(ours, theirs, student.head_rows, teacher.head_rows)
    text = f"{shared:,} ids shared; heads have {student.head_rows:,} (student) and {teacher.head_rows:,} (teacher)"
    if shared < teacher.head_rows:
        text += (
            f"; the teacher's last {teacher.head_rows - shared:,} ids are dropped, and their probability is measured"
        )
    report.fact("vocabulary", text)
    if template.takes_chats:
        _compare_chats(template, theirs, teacher.path, report)
    if config.on_policy.gen_engine == "vllm" and shared < student.head_rows:
        raise ValueError(
            f"--gen-engine vllm: cannot keep the {student.head_rows - shared:,} ids that the teacher lacks out of the "
            "answers; use --gen-engine dropping"
        )
    _compare(ours, theirs, report, config.on_policy.samples)
    if theirs.chat_template and not template.takes_chats and _uses_alpaca(config, ours):
        _warn_of_chat(ours, teacher.path, report)


def _compare(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, report: Report, samples: bool) -> None:
    """samples: the student also learns on its own answers, which then would grow from step to step."""
    if ours.eos_token_id != theirs.eos_token_id:
        message = (
            f"answers end with {_token(ours, 'EOS')} for the student and with {_token(theirs, 'EOS')} for the teacher: "
            "labels and teacher contradict each other, and the student may not stop; give both the same eos_token in "
            "tokenizer_config.json, or first fine-tune the teacher on this data with the student's"
        )
        if samples:
            raise ValueError(f"--student-gen: {message}")
        report.warn(message)
    if _starts_with_bos(ours) != _starts_with_bos(theirs):
        who = ("the student's", "the teacher's")[_starts_with_bos(theirs)]
        report.warn(
            f"only {who} tokenizer starts a text with BOS; both models read the student's ids, so the teacher sees "
            "texts that start differently from those it was trained on: give the student the teacher's tokenizer"
        )
    if ours.pad_token_id != theirs.pad_token_id:
        report.fact(
            "",
            f"the teacher's PAD is {_token(theirs, 'PAD')}; harmless, since lengths say where an example ends",
        )


def _compare_chats(template: ChatTemplate, theirs: PreTrainedTokenizerBase, teacher_path: str, report: Report) -> None:
    """Both models read the student's text. The teacher's EOS becomes what its own template ends an answer with."""
    if theirs.chat_template != template.source:
        file, own = Path(teacher_path) / "chat_template.jinja", template.name
        remedy = "fine-tune it on this data first (--criterion cross_entropy)"
        if not theirs.chat_template:
            files = f"{SHIPPED} here and there" if own == "chat" else own
            remedy += f", with --prompt-template {files}"
        elif file.is_file():
            remedy += f", or pass the teacher's template as a file: {file}"
        which = "another" if theirs.chat_template else "no"
        report.warn(
            f"--teacher-model-path {teacher_path} has {which} chat template; both models read the text of the "
            f"student's, which the teacher was not trained on: {remedy}"
        )
    if theirs.chat_template:
        with suppress(ValueError):  # one that ends no answer
            theirs.eos_token_id = ChatTemplate(theirs).end_of_turn


def _check_ends(flag: str, tokenizer: PreTrainedTokenizerBase, model: ModelFacts, report: Report) -> None:
    """Checkpoints keep generation_config.json, and other programs stop generating where it says."""
    ends, file = _generation_ends(model), "generation_config.json"
    if ends and tokenizer.eos_token_id not in ends:
        names = ", ".join(_named(tokenizer, i) for i in ends)
        report.warn(
            f"{flag} {model.path}: the tokenizer ends a text with {_token(tokenizer, 'EOS')}, which the student will "
            f"learn, but {file} stops at {names} only; set eos_token_id there, or eos_token in tokenizer_config.json"
        )


def _generation_ends(model: ModelFacts) -> list[int]:
    ends = getattr(model.text_config, "eos_token_id", None)
    if (Path(model.path) / "generation_config.json").is_file():
        of_generation = GenerationConfig.from_pretrained(model.path).eos_token_id
        ends = ends if of_generation is None else of_generation
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]


def _uses_alpaca(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the first rows are in the Alpaca template, by default or in their own `prompt`."""
    opening = INTRODUCTION.partition("{")[0]
    source = find_source(config.data.data_dir, "train", config.data)
    if source.hub is not None:
        return config.data.prompt_template == "alpaca"
    rows = read_rows(source, prompt_template(config.data.prompt_template, tokenizer), 8)
    return any(row.prompt.startswith(opening) for row in rows)


def _warn_of_chat(ours: PreTrainedTokenizerBase, teacher_path: str, report: Report) -> None:
    if (Path(teacher_path).parent / "args.json").is_file():  # fine-tuned by a run of this project
        return
    pair = "" if ours.chat_template else ", and the student is a base model"
    report.warn(
        f"--teacher-model-path {teacher_path} is a chat model{pair}; the rows are in the Alpaca template, which it was "
        "not trained on: pass --prompt-template chat, or fine-tune it on this data first (--criterion cross_entropy)"
    )


def _starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def _token(tokenizer: PreTrainedTokenizerBase, role: str) -> str:
    token_id = getattr(tokenizer, f"{role.lower()}_token_id")
    return "none" if token_id is None else _named(tokenizer, token_id)


def _named(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(tokenizer) else "an id without a token"
    return f"{token!r} ({token_id})"
