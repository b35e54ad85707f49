"""Typed command-line flags: one frozen dataclass per group, checked when they are parsed.

In: an argument list (`sys.argv[1:]`). Out: `TrainConfig` or `EvaluateConfig`; pass a function only the group it uses.
The hyper-parameters of an objective are declared in its file in `criterions/`; `KDArguments` has them all.

Every flag is accepted with dashes and with underscores (`--kd-rate`, `--kd_rate`). Flags of the reference repositories
(MiniLLM, DSKD, DistiLLM, ToDi) that mean nothing here are accepted and listed in `ignored_flags`; those that
would change a run if they were ignored, and any other unknown flag, are refused with the remedy.
"""

import ast
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import Field, asdict, dataclass, fields, make_dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from flags import Group, option, parse, require

WITHOUT_DIRECTION = ("kl", "kld", "kldiv", "kl_div", "kl_divergence")  # objectives of other programs


@dataclass(frozen=True)
class ModelArguments(Group):
    """The student."""

    model_path: str = option(help="Student: a folder, a checkpoint, a run (its best checkpoint) or a hub id.")
    model_revision: str | None = option(None, "Commit, tag or branch of a hub id in --model-path.")
    model_type: str | None = option(None, "Family of the student; names the folder of the run, nothing else.")
    ckpt_name: str | None = option(None, "Name of the student in that folder; default: from --model-path.")
    peft: Literal["lora"] | None = option(None, "Train a LoRA adapter, not the weights.")
    peft_path: str | None = option(None, "Continue this adapter (with --peft lora).")
    peft_lora_r: int = option(8, "Rank of a new adapter.", at_least=1)
    peft_lora_alpha: int = option(32, "Scale of a new adapter: alpha / r.", at_least=1)
    peft_lora_dropout: float = option(0.1, "Dropout of a new adapter's input.", at_least=0, at_most=1)
    peft_lora_target_modules: str | None = option(
        None, "Comma-separated module names; default: PEFT's choice for the architecture."
    )
    model_bits: Literal["4", "8"] | None = option(
        None, "Hold the frozen base of an adapter in 4 or 8 bits (QLoRA); needs bitsandbytes and a GPU."
    )
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward.")
    attn_implementation: str | None = option(
        None, "sdpa, eager, flash_attention_2, ...; default: what Transformers chooses."
    )
    trust_remote_code: bool = option(False, "Run code that comes with a model.")

    def __post_init__(self):
        super().__post_init__()
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if field_.name.startswith("peft_") and value != field_.default:
                require(self.peft == "lora", field_.name, value, "add --peft lora, or all weights are trained")
        require(
            self.model_bits is None or self.peft == "lora",
            "model_bits",
            self.model_bits,
            "quantised weights cannot be trained; add --peft lora",
        )


@dataclass(frozen=True)
class TeacherArguments(Group):
    """The teacher; needed by every objective but cross_entropy."""

    teacher_model_path: str | None = option(
        None, "Teacher: a folder, a checkpoint, a run (its best checkpoint) or a hub id."
    )
    teacher_ckpt_name: str | None = option(
        None, "Name of the teacher in the run's folder; default: from --teacher-model-path."
    )
    teacher_revision: str | None = option(None, "Commit, tag or branch of a hub id in --teacher-model-path.")
    teacher_peft_path: str | None = option(
        None, "A LoRA adapter, or the run that trained it, to merge into the teacher."
    )
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = option(
        None, "Of the teacher's weights; default: as the student's; auto: as stored."
    )
    teacher_bits: Literal["4", "8"] | None = option(
        None, "Hold the teacher in 4 or 8 bits; needs bitsandbytes and a GPU."
    )
    teacher_cache: str | None = option(
        None, "Folder of the teacher's hidden states: written by the first run, read by later ones."
    )

    def __post_init__(self):
        super().__post_init__()
        for name, what in (("teacher_peft_path", "the adapter's base model"), ("teacher_revision", "its hub id")):
            value = getattr(self, name)
            require(
                value is None or self.teacher_model_path is not None,
                name,
                value,
                f"name {what} with --teacher-model-path",
            )


@dataclass(frozen=True)
class AnyObjectiveArguments(Group):
    """What every objective takes."""

    criterion: str | None = option(
        None, "cross_entropy, or various_divergence with --kd-objective (the reference's pair of flags)."
    )
    kd_objective: str | None = option(None, "The objective by name; see docs/objectives.md. Default: cross_entropy.")
    kd_rate: float = option(0.5, "Weight of KD against CE.", aliases=["--kd-ratio"], at_least=0, at_most=1)
    kd_temperature: float = option(1.0, "Divides both logits.", aliases=["--kd-temp"], above=0)
    kd_temperature_scaling: Literal["none", "squared"] = option("none", "squared multiplies KD by temperature^2.")
    loss_chunk_mb: int | None = option(
        None,
        "Size in MB of one model's logits in the chunked loss, counted in fp32; default: 64 on a CPU, 256 on a GPU.",
        at_least=1,
    )
    compile_loss: bool = option(
        False, "torch.compile the chunked loss: faster steps after a first one of 10 to 20 seconds."
    )


def hyper_parameters() -> list[tuple[str, str, Field]]:
    """Name, annotation and field of every `option` in a class of `criterions/*.py`, from the files' text.

    Importing the files would import torch, and --help would take seconds. Raises SyntaxError, or ValueError naming the
    file, if an option cannot be read or has a name that another flag of the objective has.
    """
    found, taken = [], {field.name for field in fields(AnyObjectiveArguments)}
    for path, module in _objective_files():
        try:
            of_file = list(_options(module))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: an option takes literals, by the names in flags.option ({error})") from error
        for name, *_ in of_file:
            if name in taken:
                raise ValueError(f"{path}: {name}: there is such a flag already; choose another name")
            taken.add(name)
        found += of_file
    return found


@cache
def registered_objectives() -> list[tuple[str, ...]]:
    """The names that each class of `criterions/*.py` is registered by, its own first, from the files' text.

    Raises SyntaxError, or ValueError naming the file, if a name cannot be read.
    """
    found = []
    for path, module in _objective_files():
        for class_ in (node for node in module.body if isinstance(node, ast.ClassDef)):
            for decorator in class_.decorator_list:
                match decorator:
                    case ast.Call(ast.Name("register"), names):
                        try:
                            found.append(tuple(map(ast.literal_eval, names)))
                        except ValueError as error:
                            raise ValueError(f"{path}: register takes literals ({error})") from error
    return found


def check_objective(flag: str, name: str) -> None:
    """Raises ValueError for a name that no file registers, before the imports that `build_criterion` needs.

    name: as that takes it; of `adakd+todi` both are looked up.
    """
    objectives = registered_objectives()
    for part in name.split("+"):
        if part not in chain(*objectives):
            raise ValueError(f"{flag} {name}: {unknown_objective(part, objectives)}")


def unknown_objective(name: str, objectives: Sequence[Sequence[str]]) -> str:
    """objectives: the names of each, its own first; an alias is understood, but not listed."""
    hint = did_you_mean(name, list(chain(*objectives)))
    return f"unknown objective; {hint}choose one of {', '.join(own for own, *_ in objectives)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The closest known name as a question; empty if none is close."""
    if name.lower() in WITHOUT_DIRECTION:
        return "did you mean fkl or rkl? "
    by_letters = {other.lower(): other for other in reversed(known)}  # an objective's own name wins
    close = difflib.get_close_matches(name.lower(), by_letters, n=1)
    return f"did you mean {by_letters[close[0]]}? " if close else ""


def _objective_files() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(Path(__file__).with_name("criterions").glob("*.py")):
        yield path, ast.parse(path.read_bytes(), str(path))


def _options(module: ast.Module) -> Iterator[tuple[str, str, Field]]:
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    for statement in (statement for class_ in classes for statement in class_.body):
        match statement:
            case ast.AnnAssign(ast.Name(name), annotation, ast.Call(ast.Name("option"), values, keywords)):
                named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords}
                yield name, ast.unparse(annotation), option(*map(ast.literal_eval, values), **named)


HyperParameters = make_dataclass(
    "HyperParameters",
    hyper_parameters(),
    bases=(AnyObjectiveArguments,),
    namespace={"__module__": __name__},
    frozen=True,
)


@dataclass(frozen=True)
class KDArguments(HyperParameters):
    """The objective: (1 - kd_rate) * CE + kd_rate * KD."""

    def __post_init__(self):
        super().__post_init__()
        same = {"cross_entropy", "sft"} if self.criterion == "cross_entropy" else {self.criterion}
        if self.criterion not in (None, "various_divergence") and self.kd_objective not in {None, *same}:
            raise ValueError(
                f"--criterion {self.criterion} --kd-objective {self.kd_objective}: they contradict each other; "
                "drop --criterion to distil, or --kd-objective to fine-tune"
            )

    @property
    def objective(self) -> str:
        """The objective's name as the registry in `criterions` takes it."""
        if self.kd_objective is not None:
            return self.kd_objective
        if self.criterion == "various_divergence":
            return "forward_kl"  # the reference's default
        return self.criterion or "cross_entropy"


@dataclass(frozen=True)
class DataArguments(Group):
    """Instruction data and chats: a folder with train and dev files, one file, or a data set of the hub."""

    data_dir: str = option(
        help="Folder with train (and dev) as jsonl, json, csv or parquet; or one such file; or ORG/NAME on the hub."
    )
    data_split: str = option("train", "Split to train on, of a data set of the hub.")
    data_revision: str | None = option(None, "Commit, tag or branch of a data set of the hub.")
    train_num: int = option(-1, "Use the first rows only; -1: all.", at_least=1, also={-1: "for all of them"})
    dev_num: int = option(-1, "Use the first dev rows only; -1: all.", at_least=1, also={-1: "for all of them"})
    max_length: int = option(512, "Tokens of prompt and response together.")
    max_prompt_length: int = option(256, "Longer prompts are cut in the middle.", at_least=32)
    prompt_template: str = option(
        "alpaca",
        "For rows without a prompt: alpaca, chat (the tokenizer's own), none (as they are), a FILE.jinja over "
        "instruction and input or over messages, or one of your own.",
    )
    train_on: Literal["all", "last"] = option("all", "Of a chat: all answers are learnt, or the last one.")
    packing: bool = option(True, "Place several examples in one row; off, or for models that cannot: padding.")
    data_process_workers: int = option(
        -1, "Tokenisation processes; -1: one per core.", at_least=1, also={-1: "for one per core"}
    )
    processed_data_dir: str | None = option(
        None, "Where tokenised rows are kept; default: the datasets library's cache."
    )
    force_process: bool = option(False, "Tokenise again even if a cache is there.")

    def __post_init__(self):
        super().__post_init__()
        require(
            self.max_length > self.max_prompt_length,
            "max_length",
            self.max_length,
            f"pass more than --max-prompt-length {self.max_prompt_length}, or no response would fit",
        )


@dataclass(frozen=True)
class TrainArguments(Group):
    """Batches, steps, optimiser and schedule. A step is an optimiser step."""

    batch_size: int = option(8, "Examples of a micro-batch on one rank.", at_least=1)
    tokens_per_micro_batch: int | None = option(
        None, "Instead of --batch-size: as many examples as fit; at least --max-length.", at_least=1
    )
    gradient_accumulation_steps: int = option(1, "Micro-batches of an optimiser step.", at_least=1)
    global_batch_size: int | None = option(
        None, "Examples per optimiser step over all ranks; derives --gradient-accumulation-steps.", at_least=1
    )
    eval_batch_size: int = option(
        16, "Dev examples of --max-length that one rank has room for; of shorter ones, more.", at_least=1
    )
    num_epochs: int = option(10, "Passes over the data.", aliases=["--epochs", "--training-epochs"], at_least=1)
    total_iters: int | None = option(None, "Stop after this many optimiser steps.", at_least=1)
    lr: float = option(5e-4, "Peak learning rate.", above=0)
    lr_min: float = option(1e-7, "Last learning rate of linear and cosine.", at_least=0)
    lr_decay_style: Literal["constant", "linear", "cosine", "noam"] = option("cosine", "Schedule after the warm-up.")
    warmup_iters: int = option(0, "Steps of linear warm-up.", at_least=0)
    warmup_ratio: float = option(0.0, "The same as a share of all steps.", at_least=0, at_most=1)
    weight_decay: float = option(0.01, "On matrices only: no biases, no norms.", at_least=0)
    clip_grad: float = option(1.0, "Global gradient norm; 0: no clipping.", at_least=0)
    seed: int = option(10, "Decides initialisation, dropout and the order of the data.", at_least=0)
    save_dir: str | None = option(
        None,
        "Checkpoints and logs go here; default: outputs/<model-type>/<ckpt-name>/<objective>/<settings>.",
        aliases=["--save"],
    )
    save_interval: int = option(1, "Epochs between checkpoints.", at_least=1, also={-1: "for each epoch"})
    eval_interval: int = option(
        1, "Epochs between dev evaluations; a checkpoint is always evaluated.", at_least=1, also={-1: "for each epoch"}
    )
    log_interval: int = option(10, "Steps between log lines.", at_least=1)
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] | None = option(
        None, "Send what metrics.jsonl and dev_metrics.jsonl record to these trackers, too."
    )
    probe_rows: int = option(
        64, "First dev rows whose every position goes into probe.jsonl, once per epoch; 0: off.", at_least=0
    )
    diagnose_every: int = option(
        0, "Steps between looks at the gradients of hard and easy positions, in diagnose.jsonl; 0: off.", at_least=0
    )
    eval_at_start: bool = option(
        True, "Before the first step: dev NLL of student and teacher; warns where the teacher is no better."
    )
    keep_best_n_checkpoints: int = option(1, "Checkpoints that stay; -1: all.", at_least=1, also={-1: "to keep all"})
    eval_gen: bool = option(False, "Also generate for dev; ROUGE-L then ranks checkpoints.")
    resume: str = option(
        "auto",
        "auto: continue the run in --save-dir if there is one; never: start over, and move what is "
        "there to previous/; or the folder of a run to start from.",
    )
    resume_interval: int = option(
        500, "Steps between saves of the resume state; 0: at the ends of epochs only.", at_least=0
    )
    max_bad_steps: int = option(
        5, "Stop after this many consecutive steps with a non-finite loss or gradient.", at_least=1
    )
    deepspeed_config: str | None = option(None, "DeepSpeed's JSON file (ZeRO stage, dtype); default: ZeRO-0 in fp32.")
    precision: Literal["auto", "bf16", "fp16", "fp32"] | None = option(
        None,
        "Instead of --deepspeed_config: ZeRO-1 in this precision; auto: bf16, else fp16, on a GPU that has "
        "it, fp32 on a CPU.",
    )

    def __post_init__(self):
        super().__post_init__()
        batch, tokens = self.global_batch_size, self.tokens_per_micro_batch
        require(
            batch is None or tokens is None,
            "global_batch_size",
            batch,
            f"counts examples, and --tokens-per-micro-batch {tokens} fills by tokens; pass one of the two (in front "
            "of a script: TOKENS_PER_MICRO_BATCH without GLOBAL_BATCH)",
        )
        require(self.lr_min <= self.lr, "lr_min", self.lr_min, f"pass no more than --lr {self.lr}")
        require(
            self.warmup_iters == 0 or self.warmup_ratio == 0,
            "warmup_ratio",
            self.warmup_ratio,
            f"pass it or --warmup-iters {self.warmup_iters}, not both",
        )


@dataclass(frozen=True)
class GenerationArguments(Group):
    """How answers are generated and scored, in evaluation and (with --eval-gen) in training."""

    do_sample: bool = option(False, "Sample; off: greedy, or beams with --num-beams.")
    temperature: float = option(1.0, "Sampling temperature.", above=0)
    top_p: float = option(1.0, "Nucleus mass; 1: everything.", above=0, at_most=1)
    top_k: int = option(0, "Most likely tokens to sample from; 0: all.", at_least=0)
    num_beams: int = option(1, "Beams; 1: no beam search.", at_least=1)
    repetition_penalty: float | None = option(None, "Above 1 discourages repetition.", above=0)
    no_repeat_ngram_size: int = option(0, "No n-gram of this size twice; 0: no limit.", at_least=0)
    max_new_tokens: int | None = option(
        None, "Longest answer in tokens; default: --max-length less --max-prompt-length.", at_least=1
    )
    rouge_tokenizer: Literal["ascii", "unicode"] = option(
        "ascii", "Words of ROUGE-L: rouge_score's own (a-z and digits), or of any script."
    )
    generator: Literal["dropping", "transformers", "continuous", "vllm"] = option(
        "dropping",
        "dropping: finished answers leave their batch; transformers: its generate, whole batches; continuous: its "
        "continuous batching, greedy only; vllm: where it is installed. See docs/generation.md.",
    )
    generation_cache_mb: int | None = option(
        None, "Size in MB of the keys and values of a batch; default: what --eval-batch-size says.", at_least=1
    )

    def __post_init__(self):
        super().__post_init__()
        for name, plain, lacking in (
            ("do_sample", False, ("continuous",)),
            ("num_beams", 1, ("continuous", "vllm")),
            ("repetition_penalty", None, ("continuous",)),
            ("no_repeat_ngram_size", 0, ("continuous", "vllm")),
        ):
            value = getattr(self, name)
            able = value == plain or self.generator not in lacking
            require(able, name, value, f"--generator {self.generator} cannot do that; use dropping")


SHORTHANDS = {"gkd": "mixed", "distillm": "adaptive", "distillm2": "pair"}  # and their --gen-schedule
READ_BY = {  # a single --gen-schedule
    "mixed_alpha": "mixed",
    **dict.fromkeys(("init_threshold", "loss_eps", "capacity", "replay_ratio"), "adaptive"),
    **dict.fromkeys(("student_kd_objective", "pair_weight"), "pair"),
}


@dataclass(frozen=True)
class OnPolicyArguments(Group):
    """On-policy data: the student also learns on answers that it samples itself. See docs/onpolicy.md."""

    student_gen: bool = option(False, "Some steps train on answers that the student samples to the step's prompts.")
    gen_schedule: Literal["mixed", "adaptive", "pair"] = option(
        "mixed",
        "Which steps: mixed: a fixed share (GKD); adaptive: a share that follows the dev loss, with replay (DistiLLM); "
        "pair: all, beside the data (DistiLLM-2).",
    )
    gkd: bool = option(False, "Short for --student-gen --gen-schedule mixed.")
    distillm: bool = option(False, "Short for --student-gen --gen-schedule adaptive.")
    distillm2: bool = option(
        False, "Short for --student-gen --gen-schedule pair, and --kd-objective sfkl unless another is given."
    )
    mixed_alpha: float = option(
        0.5, "mixed: share of sampled steps.", aliases=["--gkd-alpha", "--lmbda"], at_least=0, at_most=1
    )
    init_threshold: float = option(
        0.0, "adaptive: share of sampled and replayed steps at first.", at_least=0, at_most=1
    )
    loss_eps: float = option(
        0.1, "adaptive: rise of the dev NLL that adds 0.1 to that share; below 0: so does a smaller fall."
    )
    capacity: int = option(1000, "adaptive: sampled rows of all ranks that are kept for replay.", at_least=1)
    replay_ratio: Literal["decreasing", "constant", "increasing"] = option(
        "decreasing",
        "adaptive: course of fresh samples among these steps: from all to none, a half, or from none to all.",
    )
    student_kd_objective: str = option("srkl", "pair: the objective of sampled rows; --kd-objective is that of data.")
    pair_weight: float = option(
        1.0, "pair: weight of the sampled rows' objective; 2 less this is that of the data's.", above=0, below=2
    )
    gen_temperature: float = option(1.0, "Sampling temperature of training answers.", above=0)
    gen_top_p: float = option(1.0, "Their nucleus mass; 1: everything.", above=0, at_most=1)
    gen_top_k: int = option(0, "Most likely tokens to sample them from; 0: all.", at_least=0)
    gen_max_new_tokens: int | None = option(
        None, "Their longest; default: --max-length less --max-prompt-length.", at_least=1
    )
    gen_engine: Literal["dropping", "vllm"] = option("dropping", "What samples them; as --generator.")
    gen_tokens_per_batch: int | None = option(
        None,
        "Prompts with longest answers that are sampled at once, in tokens; default: --eval-batch-size x --max-length.",
        at_least=1,
    )

    def __post_init__(self):
        super().__post_init__()
        given = {name: schedule for name, schedule in SHORTHANDS.items() if getattr(self, name)}
        if len(given) > 1:
            raise ValueError(f"{' '.join(f'--{name}' for name in given)}: they contradict each other; pass one of them")
        for field_ in fields(self):
            name, value = field_.name, getattr(self, field_.name)
            if value == field_.default or name in ("student_gen", *SHORTHANDS):
                continue
            require(self.enabled, name, value, "add --student-gen, or all rows are data")
            for shorthand, schedule in given.items():
                same = name != "gen_schedule" or value == schedule
                require(same, name, value, f"--{shorthand} means --gen-schedule {schedule}; drop one of the two")
            reader = READ_BY.get(name, self.schedule)
            require(reader == self.schedule, name, value, f"only --gen-schedule {reader} reads it; drop it")

    @property
    def enabled(self) -> bool:
        return self.student_gen or any(getattr(self, name) for name in SHORTHANDS)

    @property
    def schedule(self) -> str | None:
        """As --gen-schedule; None: all rows are data."""
        given = [schedule for name, schedule in SHORTHANDS.items() if getattr(self, name)]
        return next(iter(given), self.gen_schedule if self.student_gen else None)

    @property
    def samples(self) -> bool:
        """Whether any step can train on sampled rows."""
        return self.enabled and not (self.schedule == "mixed" and self.mixed_alpha == 0)


@dataclass(frozen=True)
class CheckpointArguments(Group):
    """What is evaluated."""

    model_path: list[str] = option(
        help="Checkpoints or runs (their best checkpoints), full or LoRA; or one base with --peft-path."
    )
    peft_path: list[str] | None = option(None, "Adapters, each to put on --model-path.")
    model_revision: str | None = option(None, "Commit, tag or branch of a hub id in --model-path.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Weights in memory; auto: as they were saved."
    )
    attn_implementation: str | None = option(None, "See training.")
    trust_remote_code: bool = option(False, "Run code that comes with a model.")

    def __post_init__(self):
        super().__post_init__()
        one_base = self.peft_path is None or len(self.model_path) == 1
        require(one_base, "model_path", self.model_path, "pass one model, the base of all --peft-path")


@dataclass(frozen=True)
class EvaluateArguments(Group):
    """On what it is evaluated, and where the results go."""

    data_dir: list[str] | None = option(
        None, "One or more folders with the split to answer, files, or sets of the hub; default: the run's own data."
    )
    split: str = option("valid", "Evaluate <data-dir>/<split>.jsonl (or json, csv, parquet).")
    seed: list[int] = option([10], "One pass of answers per seed.", aliases=["--seeds"])
    eval_batch_size: int = option(
        16,
        "Prompts with answers of --max-length together that a batch has room for; of shorter ones, more.",
        aliases=["--batch-size"],
        at_least=1,
    )
    dev_num: int = option(
        -1,
        "Use the first rows only; -1: all.",
        aliases=["--eval-num"],
        at_least=1,
        also={-1: "for all of them"},
    )
    max_length: int | None = option(None, "Tokens of prompt and answer together; default: as the run, else 512.")
    max_prompt_length: int | None = option(
        None, "Longer prompts are cut in the middle; default: as the run, else 256.", at_least=32
    )
    prompt_template: str | None = option(
        None, "For rows without a prompt of their own; default: as the checkpoint was trained, else alpaca."
    )
    save_dir: str | None = option(
        None,
        "Results; default: eval/<checkpoint's name> beside each checkpoint, a table of several in outputs/tables.",
        aliases=["--save"],
    )
    metrics: list[str] | None = option(
        None, "Slow metrics beside those that are always computed: bertscore (needs the package bert_score)."
    )
    force: bool = option(False, "Answer again even if the results are complete.")

    def __post_init__(self):
        super().__post_init__()
        longest, longest_prompt = self.max_length, self.max_prompt_length
        require(
            longest is None or longest > (longest_prompt or 32),
            "max_length",
            longest,
            f"pass more than --max-prompt-length {longest_prompt or 32}",
        )
        require(len(set(self.seed)) == len(self.seed), "seed", self.seed, "name each seed once")


@dataclass(frozen=True)
class GenerateArguments(Group):
    """Which prompts are answered, and where the answers go."""

    data_dir: str = option(help="Folder of the jsonl files.")
    save_dir: str = option(help="The data folder with the answers; new, or what an earlier start left.")
    splits: list[str] = option(["train"], "Answer these; dev and valid are copied otherwise.")
    seed: list[int] = option(
        [10], "One answer to each prompt per seed; several seeds with --do-sample.", aliases=["--seeds"]
    )
    train_num: int = option(-1, "Use the first rows only; -1: all.", at_least=1, also={-1: "for all of them"})
    prompts_per_save: int = option(512, "Prompts answered between two saves.", at_least=1)
    eval_batch_size: int = option(
        16,
        "Prompts with answers of --max-length together that a batch has room for; of shorter ones, more.",
        aliases=["--batch-size"],
        at_least=1,
    )
    max_length: int | None = option(None, "Tokens of prompt and answer together; default: as the run, else 512.")
    max_prompt_length: int | None = option(
        None, "Longer prompts are cut in the middle; default: as the run, else 256.", at_least=32
    )
    prompt_template: str | None = option(
        None, "For rows without a prompt of their own; default: as the run, else alpaca."
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("seed", "splits"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), name, values, "name each once")


@dataclass(frozen=True)
class CompareArguments(Group):
    """What is compared, and by what."""

    run_or_ckpt: list[str] = option(help="Runs (their best checkpoints) or checkpoints, evaluated.", positional=True)
    teacher: str | None = option(None, "Run or checkpoint of the teacher: how much of the gap to it is closed.")
    metric: str = option("rougeL", "Compare by this score of the answers.")
    results: str | None = option(
        None, "Folder that the evaluations were written to with --save-dir; default: beside each checkpoint."
    )
    save_dir: str | None = option(None, "Where comparison.json goes; default: outputs/tables/<names of the runs>.")

    def __post_init__(self):
        super().__post_init__()
        if len(self.run_or_ckpt) < 2:
            raise ValueError(f"RUN_OR_CKPT {self.run_or_ckpt[0]}: pass two or more to compare")


@dataclass(frozen=True)
class JudgeArguments(Group):
    """What is judged, and what it may cost. The judge itself: JUDGE_URL, JUDGE_MODEL, JUDGE_API_KEY."""

    run_or_ckpt: list[str] = option(
        help="Two runs (their best checkpoints) or checkpoints, evaluated.", positional=True
    )
    results: str | None = option(
        None, "Folder that the evaluations were written to with --save-dir; default: beside each checkpoint."
    )
    seed: list[int] | None = option(
        None, "Judge the answers of these seeds; default: all that both runs have.", aliases=["--seeds"]
    )
    eval_num: int = option(
        -1, "Judge the first rows of each set only; -1: all.", at_least=1, also={-1: "for all of them"}
    )
    max_calls: int | None = option(
        None, "Stop after this many replies, those of earlier starts included; 0: only count the questions.", at_least=0
    )
    max_total_tokens: int | None = option(
        None, "The same for the tokens of prompts and replies; calls that are running may exceed it.", at_least=0
    )
    parallel: int = option(4, "Calls at the same time.", at_least=1)
    judge_options: str = option(
        "{}", "JSON object of fields to add to each request or to change; null removes one (docs/evaluation.md)."
    )
    save_dir: str | None = option(None, "Where the results go; default: outputs/tables/<names of the runs>.")

    def __post_init__(self):
        super().__post_init__()
        if len(self.run_or_ckpt) != 2:
            raise ValueError(f"RUN_OR_CKPT {' '.join(self.run_or_ckpt)}: pass two, whose answers the judge compares")


@dataclass(frozen=True)
class ReportArguments(Group):
    """What is reported on, and where the report goes."""

    run: list[str] = option(
        help="Folders of runs, finished or still training, or checkpoints in them.", positional=True
    )
    out: str | None = option(
        None, "The page; default: report.html in the run's folder, of several in outputs/tables/<names>."
    )
    paper: bool = option(True, "Also every figure as SVG, PNG and PDF, in <out>_figures/.")


@dataclass(frozen=True)
class MakeStudentArguments(Group):
    """What is cut, and by what."""

    model_path: str = option(help="Teacher: a folder, a checkpoint, a run (its best checkpoint) or a hub id.")
    save_dir: str = option(help="Folder of the student; it must not exist.")
    layers: int | None = option(None, "Number of layers to keep.", at_least=1)
    keep_layers: list[int] | None = option(None, "The layers to keep, counted from 0, in place of --layers.")
    choose: Literal["even", "least-effect"] = option(
        "even",
        "Layers: evenly spaced, or again and again without the one whose removal raises the dev NLL least.",
    )
    heads: int | None = option(None, "Attention heads to keep per layer: those with the largest outputs.", at_least=1)
    ffn_size: int | None = option(None, "FFN neurons to keep per layer: the most active ones.", at_least=1)
    data_dir: str | None = option(None, "Folder of dev.jsonl, on which the NLL and the activations are measured.")
    dev_num: int = option(-1, "Use the first dev rows only; -1: all.", at_least=1, also={-1: "for all of them"})
    max_length: int = option(512, "Tokens of prompt and response together.")
    max_prompt_length: int = option(256, "Longer prompts are cut in the middle.", at_least=32)
    prompt_template: str = option("alpaca", "As in training.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", "Of the student; auto: as saved.")
    trust_remote_code: bool = option(False, "Run code that comes with a model.")

    def __post_init__(self):
        super().__post_init__()
        require(self.layers is None or self.keep_layers is None, "layers", self.layers, "or --keep-layers, not both")
        cuts = (self.layers, self.keep_layers, self.heads, self.ffn_size)
        require(cuts.count(None) < len(cuts), "layers", None, "say what to cut: --layers, --heads or --ffn-size")
        measured = self.choose == "least-effect" or self.heads is not None or self.ffn_size is not None
        require(
            self.data_dir is not None or not measured, "data_dir", None, "the choice is made on the rows of a dev.jsonl"
        )


@dataclass(frozen=True)
class ExportArguments(Group):
    """What leaves, and where to."""

    model_path: str = option(help="Checkpoint or run (its best checkpoint), full or LoRA.")
    save_dir: str = option(help="Folder of the exported model; it must not exist.")
    peft_path: str | None = option(None, "A LoRA adapter for --model-path, or the run that trained it.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Of the weights; auto: as the model that was trained was saved."
    )
    gguf: bool = option(False, "Also a GGUF file for llama.cpp (package gguf; Llama with byte-level BPE).")
    push_to_hub: str | None = option(None, "Upload the folder to this private repository, ORG/NAME.")
    trust_remote_code: bool = option(False, "Run code that comes with a model.")


class TrainConfig(NamedTuple):
    """All groups of `code/distillation.py`, and the accepted flags that had no effect."""

    model: ModelArguments
    teacher: TeacherArguments
    kd: KDArguments
    data: DataArguments
    train: TrainArguments
    generation: GenerationArguments
    on_policy: OnPolicyArguments
    ignored_flags: tuple[str, ...]

    @property
    def flags(self) -> dict[str, object]:
        """The value of every flag, by the name of its field."""
        return {name: value for group in self[:-1] for name, value in asdict(group).items()}


class EvaluateConfig(NamedTuple):
    """All groups of `code/evaluate.py`, and the accepted flags that had no effect."""

    checkpoints: CheckpointArguments
    evaluate: EvaluateArguments
    generation: GenerationArguments
    ignored_flags: tuple[str, ...]


class GenerateConfig(NamedTuple):
    """All groups of `code/generate.py`, and the accepted flags that had no effect."""

    checkpoints: CheckpointArguments
    generate: GenerateArguments
    generation: GenerationArguments
    ignored_flags: tuple[str, ...]


def parse_train_arguments(argv: Sequence[str], program: str = "code/distillation.py") -> TrainConfig:
    """Flags of `code/distillation.py`. Raises ValueError with the flag, its value and the remedy."""
    groups = ModelArguments, TeacherArguments, KDArguments, DataArguments, TrainArguments, GenerationArguments
    config = TrainConfig(*parse(argv, (*groups, OnPolicyArguments), program))
    if config.on_policy.distillm2 and config.kd.kd_objective is None:
        config = config._replace(kd=replace(config.kd, kd_objective="sfkl"))
    check_objective("--kd-objective", config.kd.objective)
    check_objective("--student-kd-objective", config.on_policy.student_kd_objective)
    return config


def parse_doctor_arguments(argv: Sequence[str]) -> TrainConfig:
    """Flags of `code/doctor.py`, which are those of training."""
    return parse_train_arguments(argv, "code/doctor.py")


def parse_evaluate_arguments(argv: Sequence[str]) -> EvaluateConfig:
    """Flags of `code/evaluate.py`. Raises ValueError with the flag, its value and the remedy."""
    groups = (CheckpointArguments, EvaluateArguments, GenerationArguments)
    return EvaluateConfig(*parse(argv, groups, "code/evaluate.py"))


def parse_generate_arguments(argv: Sequence[str]) -> GenerateConfig:
    """Flags of `code/generate.py`. Raises ValueError with the flag, its value and the remedy."""
    config = GenerateConfig(
        *parse(argv, (CheckpointArguments, GenerateArguments, GenerationArguments), "code/generate.py")
    )
    model, seed = config.checkpoints.model_path, config.generate.seed
    require(len(model) == 1 and len(config.checkpoints.peft_path or [0]) == 1, "model_path", model, "pass one model")
    require(
        len(seed) == 1 or config.generation.do_sample,
        "seed",
        seed,
        "without --do-sample every seed gives the same answers; add it, or pass one seed",
    )
    return config


def parse_compare_arguments(argv: Sequence[str]) -> CompareArguments:
    """Arguments of `code/compare.py`. Raises ValueError with the flag, its value and the remedy."""
    args, _ = parse(argv, (CompareArguments,), "code/compare.py")
    return args


def parse_judge_arguments(argv: Sequence[str]) -> JudgeArguments:
    """Arguments of `code/judge.py`. Raises ValueError with the flag, its value and the remedy."""
    args, _ = parse(argv, (JudgeArguments,), "code/judge.py")
    return args


def parse_report_arguments(argv: Sequence[str]) -> ReportArguments:
    """Arguments of `code/report.py`. Raises ValueError with the flag, its value and the remedy."""
    args, _ = parse(argv, (ReportArguments,), "code/report.py")
    return args


def parse_make_student_arguments(argv: Sequence[str]) -> MakeStudentArguments:
    """Flags of `code/make_student.py`. Raises ValueError with the flag, its value and the remedy."""
    args, _ = parse(argv, (MakeStudentArguments,), "code/make_student.py")
    return args


def parse_export_arguments(argv: Sequence[str]) -> ExportArguments:
    """Flags of `code/export.py`. Raises ValueError with the flag, its value and the remedy."""
    args, _ = parse(argv, (ExportArguments,), "code/export.py")
    return args
