"""Typed command-line flags: one frozen dataclass a group, checked when they are parsed.

In: an argument list (`sys.argv[1:]`). Out: `TrainConfig` or `EvaluateConfig`; pass a function only the group it uses.

Every flag is accepted with dashes and with underscores (`--kd-rate`, `--kd_rate`). Flags of the reference repositories
(MiniLLM, DSKD, DistiLLM, ToDi) that mean nothing here are accepted and listed in `ignored_flags`; those whose
silence would change a run, and any other unknown flag, are refused with the remedy.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Literal, NamedTuple

from flags import option, parse


def _require(condition: bool, flag: str, value: object, remedy: str) -> None:
    if not condition:
        raise ValueError(f"--{flag.replace('_', '-')} {value}: {remedy}")


def _positive(group: object, *names: str) -> None:
    for name in names:
        value = getattr(group, name)
        _require(0 < value < math.inf, name, value, "pass a number above 0")


def _finite(group: object, *names: str) -> None:
    for name in names:
        value = getattr(group, name)
        _require(math.isfinite(value), name, value, "pass a finite number")


def _in_range(group: object, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(group, name)
        _require(low <= value <= high, name, value, f"pass a number from {low} to {high}")


def _rows(group: object, *names: str) -> None:
    for name in names:
        value = getattr(group, name)
        _require(value == -1 or value > 0, name, value, "pass a number of rows, or -1 for all of them")


@dataclass(frozen=True)
class ModelArguments:
    """The student."""

    model_path: str = field(
        metadata={"help": "Student: a folder, a checkpoint, a run (its best checkpoint) or a hub id."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch of a hub id in --model-path."}
    )
    model_type: str | None = field(
        default=None, metadata={"help": "Family of the student; names the folder of the run, nothing else."}
    )
    ckpt_name: str | None = field(
        default=None, metadata={"help": "Name of the student in that folder; default: from --model-path."}
    )
    peft: Literal["lora"] | None = field(default=None, metadata={"help": "Train a LoRA adapter, not the weights."})
    peft_path: str | None = field(default=None, metadata={"help": "Continue this adapter (with --peft lora)."})
    peft_lora_r: int = field(default=8, metadata={"help": "Rank of a new adapter."})
    peft_lora_alpha: int = field(default=32, metadata={"help": "Scale of a new adapter: alpha / r."})
    peft_lora_dropout: float = field(default=0.1, metadata={"help": "Dropout of a new adapter's input."})
    peft_lora_target_modules: str | None = field(
        default=None, metadata={"help": "Comma-separated module names; default: PEFT's choice for the architecture."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations in the backward."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, ...; default: what Transformers chooses."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})

    def __post_init__(self):
        _positive(self, "peft_lora_r", "peft_lora_alpha")
        _in_range(self, 0, 1, "peft_lora_dropout")
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if field_.name.startswith("peft_") and value != field_.default:
                _require(self.peft == "lora", field_.name, value, "add --peft lora, or all weights are trained")


@dataclass(frozen=True)
class TeacherArguments:
    """The teacher; needed by every objective but cross_entropy."""

    teacher_model_path: str | None = field(
        default=None, metadata={"help": "Teacher: a folder, a checkpoint, a run (its best checkpoint) or a hub id."}
    )
    teacher_ckpt_name: str | None = field(
        default=None, metadata={"help": "Name of the teacher in the run's folder; default: from --teacher-model-path."}
    )
    teacher_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch of a hub id in --teacher-model-path."}
    )
    teacher_peft_path: str | None = field(
        default=None, metadata={"help": "A LoRA adapter, or the run that trained it, to merge into the teacher."}
    )
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "Of the teacher's weights; default: as the student's; auto: as stored."}
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of the teacher's hidden states: made by the first run, read by all that follow."},
    )

    def __post_init__(self):
        for name, what in (("teacher_peft_path", "the adapter's base model"), ("teacher_revision", "its hub id")):
            value = getattr(self, name)
            _require(
                value is None or self.teacher_model_path is not None,
                name,
                value,
                f"name {what} with --teacher-model-path",
            )


@dataclass(frozen=True)
class KDArguments:
    """The objective: (1 - kd_rate) * CE + kd_rate * KD."""

    criterion: str | None = field(
        default=None,
        metadata={"help": "cross_entropy, or various_divergence with --kd-objective (the reference's pair of flags)."},
    )
    kd_objective: str | None = field(
        default=None, metadata={"help": "The objective by name; see docs/objectives.md. Default: cross_entropy."}
    )
    kd_rate: float = option(default=0.5, aliases=["--kd-ratio", "--kd_ratio"], help="Weight of KD against CE.")
    kd_temperature: float = option(default=1.0, aliases=["--kd-temp", "--kd_temp"], help="Divides both logits.")
    kd_temperature_scaling: Literal["none", "squared"] = field(
        default="none", metadata={"help": "squared multiplies KD by temperature^2."}
    )
    js_beta: float = field(default=0.5, metadata={"help": "js: weight of the teacher in the mixture."})
    skew_lambda: float = field(default=0.1, metadata={"help": "sfkl, srkl: share of the other distribution mixed in."})
    adaptive_kl_alpha: float = field(default=0.5, metadata={"help": "akl: teacher mass that counts as the tail."})
    ab_alpha: float = field(default=0.2, metadata={"help": "abkd: alpha."})
    ab_beta: float = field(default=0.7, metadata={"help": "abkd: beta."})
    adakd_base: str = field(default="rkl", metadata={"help": "adakd: the objective it wraps."})
    adakd_latf: Literal["adaptive", "fixed", "off"] = field(
        default="adaptive", metadata={"help": "adakd: which positions train (LATF)."}
    )
    adakd_ratio: float = field(default=1.0, metadata={"help": "adakd: share of positions at the start, or fixed."})
    adakd_ratio_min: float = field(default=0.1, metadata={"help": "adakd: floor of the adaptive share."})
    adakd_idts: Literal["inverse", "direct", "off"] = field(
        default="inverse", metadata={"help": "adakd: temperature of a position by its difficulty (IDTS)."}
    )
    adakd_difficulty: Literal["hellinger", "fkl", "rkl", "js", "cross_entropy"] = field(
        default="hellinger", metadata={"help": "adakd: what makes a position difficult."}
    )
    adakd_tau_base: float = field(
        default=1.0, metadata={"help": "adakd: temperature of the difficulty and centre of IDTS; not --kd-temperature."}
    )
    adakd_c: float = field(default=0.5, metadata={"help": "adakd: strength of IDTS."})
    adakd_beta: float = field(default=0.99, metadata={"help": "adakd: decay of the loss average that drives LATF."})
    adakd_epsilon: float = field(default=0.05, metadata={"help": "adakd: relative change of it that moves the share."})
    adakd_delta: float = field(default=0.05, metadata={"help": "adakd: relative size of such a move."})
    adakd_warmup_ratio: float = field(default=0.05, metadata={"help": "adakd: share of steps with all positions."})
    loss_chunk_mb: int | None = field(
        default=None,
        metadata={
            "help": "Size in MB of one model's logits in the chunked loss, counted in fp32; default: 64 on a CPU, 256 "
            "on a GPU."
        },
    )
    compile_loss: bool = field(
        default=False,
        metadata={"help": "torch.compile the chunked loss: faster steps after a first one of 10 to 20 seconds."},
    )

    def __post_init__(self):
        _finite(self, "ab_alpha", "ab_beta")
        _in_range(self, 0, 1, "kd_rate", "js_beta", "skew_lambda", "adaptive_kl_alpha", "adakd_warmup_ratio")
        _require(0 < self.js_beta < 1, "js_beta", self.js_beta, "pass a number between 0 and 1; at the ends js is 0")
        _require(self.skew_lambda < 1, "skew_lambda", self.skew_lambda, "pass less than 1; at 1 sfkl and srkl are 0")
        _require(
            self.ab_alpha + self.ab_beta >= 0,
            "ab_beta",
            self.ab_beta,
            "pass at least minus --ab-alpha; below, abkd diverges",
        )
        _in_range(self, 0, 1, "adakd_beta", "adakd_delta")
        _positive(self, "kd_temperature", "adakd_tau_base", "adakd_ratio", "adakd_ratio_min")
        if self.loss_chunk_mb is not None:
            _positive(self, "loss_chunk_mb")
        _in_range(self, 0, 1, "adakd_ratio", "adakd_ratio_min")
        for name in ("adakd_c", "adakd_epsilon"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "pass 0 or more")
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
class DataArguments:
    """Instruction data: `train.jsonl`, `dev.jsonl` and `valid.jsonl` in one folder."""

    data_dir: str = field(metadata={"help": "Folder of the jsonl files."})
    train_num: int = field(default=-1, metadata={"help": "Use the first rows only; -1: all."})
    dev_num: int = field(default=-1, metadata={"help": "Use the first dev rows only; -1: all."})
    max_length: int = field(default=512, metadata={"help": "Tokens of prompt and response together."})
    max_prompt_length: int = field(default=256, metadata={"help": "Longer prompts are cut in the middle."})
    prompt_template: str = field(
        default="alpaca",
        metadata={"help": "For rows without a prompt: alpaca, none (as they are), or one of your own."},
    )
    packing: bool = field(
        default=True, metadata={"help": "Place several examples in one row; off, or for models that cannot: padding."}
    )
    data_process_workers: int = field(default=-1, metadata={"help": "Tokenisation processes; -1: one a core."})
    processed_data_dir: str | None = field(
        default=None, metadata={"help": "Where tokenised rows are kept; default: the datasets library's cache."}
    )
    force_process: bool = field(default=False, metadata={"help": "Tokenise again even if a cache is there."})

    def __post_init__(self):
        _rows(self, "train_num", "dev_num")
        _require(self.max_prompt_length >= 32, "max_prompt_length", self.max_prompt_length, "pass 32 or more")
        _require(
            self.max_length > self.max_prompt_length,
            "max_length",
            self.max_length,
            f"pass more than --max-prompt-length {self.max_prompt_length}, or no response would fit",
        )
        workers = self.data_process_workers
        _require(workers == -1 or workers > 0, "data_process_workers", workers, "pass 1 or more, or -1 for one a core")


@dataclass(frozen=True)
class TrainArguments:
    """Batches, steps, optimiser and schedule. A step is an optimiser step."""

    batch_size: int = field(default=8, metadata={"help": "Examples of a micro-batch on one rank."})
    tokens_per_micro_batch: int | None = field(
        default=None, metadata={"help": "Instead of --batch-size: as many examples as fit; at least --max-length."}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro-batches of an optimiser step."})
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Examples per optimiser step over all ranks; derives --gradient-accumulation-steps."},
    )
    eval_batch_size: int = field(
        default=16, metadata={"help": "Dev examples of --max-length that one rank has room for; of shorter ones, more."}
    )
    num_epochs: int = option(
        default=10, aliases=["--epochs", "--training-epochs", "--training_epochs"], help="Passes over the data."
    )
    total_iters: int | None = field(default=None, metadata={"help": "Stop after this many optimiser steps."})
    lr: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    lr_min: float = field(default=1e-7, metadata={"help": "Last learning rate of linear and cosine."})
    lr_decay_style: Literal["constant", "linear", "cosine", "noam"] = field(
        default="cosine", metadata={"help": "Schedule after the warm-up."}
    )
    warmup_iters: int = field(default=0, metadata={"help": "Steps of linear warm-up."})
    warmup_ratio: float = field(default=0.0, metadata={"help": "The same as a share of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "On matrices only: no biases, no norms."})
    clip_grad: float = field(default=1.0, metadata={"help": "Global gradient norm; 0: no clipping."})
    seed: int = field(default=10, metadata={"help": "Decides initialisation, dropout and the order of the data."})
    save_dir: str | None = option(
        default=None,
        aliases=["--save"],
        help="Checkpoints and logs go here; default: outputs/<model-type>/<ckpt-name>/<objective>/<settings>.",
    )
    save_interval: int = field(default=1, metadata={"help": "Epochs between checkpoints."})
    eval_interval: int = field(
        default=1, metadata={"help": "Epochs between dev evaluations; a checkpoint is always evaluated."}
    )
    log_interval: int = field(default=10, metadata={"help": "Steps between log lines."})
    keep_best_n_checkpoints: int = field(default=1, metadata={"help": "Checkpoints that stay; -1: all."})
    eval_gen: bool = field(default=False, metadata={"help": "Also generate for dev; ROUGE-L then ranks checkpoints."})
    resume: str = field(
        default="auto",
        metadata={
            "help": "auto: continue the run in --save-dir where there is one; never: start over, and move what is "
            "there to previous/; or the folder of a run to start from."
        },
    )
    resume_interval: int = field(
        default=500, metadata={"help": "Steps between saves of the resume state; 0: at the ends of epochs only."}
    )
    max_bad_steps: int = field(
        default=5, metadata={"help": "Stop after so many steps in a row whose loss or gradient is not finite."}
    )
    deepspeed_config: str | None = field(
        default=None, metadata={"help": "DeepSpeed's JSON file (ZeRO stage, dtype); default: ZeRO-0 in fp32."}
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] | None = field(
        default=None,
        metadata={
            "help": "Instead of --deepspeed_config: ZeRO-1 in this precision; auto: bf16, else fp16, on a GPU that has "
            "it, fp32 on a CPU."
        },
    )

    def __post_init__(self):
        _positive(self, "batch_size", "gradient_accumulation_steps", "eval_batch_size", "num_epochs", "lr")
        _positive(self, "log_interval", "max_bad_steps")
        tokens = self.tokens_per_micro_batch
        _require(tokens is None or tokens > 0, "tokens_per_micro_batch", tokens, "pass a number of tokens")
        batch = self.global_batch_size
        _require(batch is None or batch > 0, "global_batch_size", batch, "pass a number of examples")
        _require(
            batch is None or tokens is None,
            "global_batch_size",
            batch,
            f"counts examples, and --tokens-per-micro-batch {tokens} fills by tokens; pass one of the two (in front "
            "of a script: TOKENS_PER_MICRO_BATCH without GLOBAL_BATCH)",
        )
        _require(self.resume_interval >= 0, "resume_interval", self.resume_interval, "pass 0 or more steps")
        for name in ("save_interval", "eval_interval"):
            value = getattr(self, name)
            _require(value == -1 or value > 0, name, value, "pass a number of epochs, or -1 for each")
        _require(self.total_iters is None or self.total_iters > 0, "total_iters", self.total_iters, "pass 1 or more")
        for name in ("lr_min", "warmup_iters", "weight_decay", "clip_grad", "seed"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "pass 0 or more")
        _require(self.lr_min <= self.lr, "lr_min", self.lr_min, f"pass no more than --lr {self.lr}")
        _in_range(self, 0, 1, "warmup_ratio")
        _require(
            self.warmup_iters == 0 or self.warmup_ratio == 0,
            "warmup_ratio",
            self.warmup_ratio,
            f"pass it or --warmup-iters {self.warmup_iters}, not both",
        )
        keep = self.keep_best_n_checkpoints
        _require(keep == -1 or keep > 0, "keep_best_n_checkpoints", keep, "pass 1 or more, or -1 to keep all")


@dataclass(frozen=True)
class GenerationArguments:
    """How answers are generated and scored, in evaluation and (with --eval-gen) in training."""

    do_sample: bool = field(default=False, metadata={"help": "Sample; off: greedy, or beams with --num-beams."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus mass; 1: everything."})
    top_k: int = field(default=0, metadata={"help": "Most likely tokens to sample from; 0: all."})
    num_beams: int = field(default=1, metadata={"help": "Beams; 1: no beam search."})
    repetition_penalty: float | None = field(default=None, metadata={"help": "Above 1 discourages repetition."})
    no_repeat_ngram_size: int = field(default=0, metadata={"help": "No n-gram of this size twice; 0: no limit."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest answer in tokens; default: --max-length less --max-prompt-length."}
    )
    rouge_tokenizer: Literal["ascii", "unicode"] = field(
        default="ascii", metadata={"help": "Words of ROUGE-L: rouge_score's own (a-z and digits), or of any script."}
    )

    def __post_init__(self):
        _positive(self, "temperature", "top_p", "num_beams")
        _in_range(self, 0, 1, "top_p")
        for name in ("top_k", "no_repeat_ngram_size"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "pass 0 or more")
        for name in ("repetition_penalty", "max_new_tokens"):
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, name, value, "pass a number above 0")


@dataclass(frozen=True)
class EvaluateArguments:
    """What is evaluated, on what, and where the results go."""

    model_path: str = field(
        metadata={"help": "A checkpoint or a run (its best checkpoint), full or LoRA; or a base with --peft-path."}
    )
    data_dir: list[str] | None = field(
        default=None, metadata={"help": "One or more folders with the split to answer; default: the run's own data."}
    )
    peft_path: str | None = field(default=None, metadata={"help": "Adapter to put on --model-path."})
    model_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch of a hub id in --model-path."}
    )
    split: str = field(default="valid", metadata={"help": "Evaluate <data-dir>/<split>.jsonl."})
    seed: list[int] = option(default_factory=lambda: [10], aliases=["--seeds"], help="One pass of answers a seed.")
    eval_batch_size: int = option(
        default=16,
        aliases=["--batch-size", "--batch_size"],
        help="Prompts with answers of --max-length together that a batch has room for; of shorter ones, more.",
    )
    dev_num: int = option(default=-1, aliases=["--eval-num", "--eval_num"], help="Use the first rows only; -1: all.")
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of prompt and answer together; default: as the run, else 512."}
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Longer prompts are cut in the middle; default: as the run, else 256."}
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "For rows without a prompt of their own; default: as the run, else alpaca."}
    )
    save_dir: str | None = option(
        default=None, aliases=["--save"], help="Results; default: eval/<checkpoint's name> beside the checkpoint."
    )
    force: bool = field(default=False, metadata={"help": "Answer again what the results have already."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Weights in memory; auto: as they were saved."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "See training."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})

    def __post_init__(self):
        _positive(self, "eval_batch_size")
        _rows(self, "dev_num")
        longest, longest_prompt = self.max_length, self.max_prompt_length
        _require(longest_prompt is None or longest_prompt >= 32, "max_prompt_length", longest_prompt, "pass 32 or more")
        _require(
            longest is None or longest > (longest_prompt or 32),
            "max_length",
            longest,
            f"pass more than --max-prompt-length {longest_prompt or 32}",
        )
        _require(len(set(self.seed)) == len(self.seed), "seed", self.seed, "name each seed once")


class TrainConfig(NamedTuple):
    """All groups of `code/distillation.py`, and the accepted flags that had no effect."""

    model: ModelArguments
    teacher: TeacherArguments
    kd: KDArguments
    data: DataArguments
    train: TrainArguments
    generation: GenerationArguments
    ignored_flags: tuple[str, ...]

    @property
    def flags(self) -> dict[str, object]:
        """The value of every flag, by the name of its field."""
        return {name: value for group in self[:-1] for name, value in asdict(group).items()}


class EvaluateConfig(NamedTuple):
    """All groups of `code/evaluate.py`, and the accepted flags that had no effect."""

    evaluate: EvaluateArguments
    generation: GenerationArguments
    ignored_flags: tuple[str, ...]


def parse_train_arguments(argv: Sequence[str]) -> TrainConfig:
    """Flags of `code/distillation.py`. Raises ValueError with the flag, its value and the remedy."""
    groups = (ModelArguments, TeacherArguments, KDArguments, DataArguments, TrainArguments, GenerationArguments)
    return TrainConfig(*parse(argv, groups, "code/distillation.py"))


def parse_evaluate_arguments(argv: Sequence[str]) -> EvaluateConfig:
    """Flags of `code/evaluate.py`. Raises ValueError with the flag, its value and the remedy."""
    return EvaluateConfig(*parse(argv, (EvaluateArguments, GenerationArguments), "code/evaluate.py"))
