"""What can be known of a run before its models are loaded, in order: flags and files, models, rows.

    preflight = check(config)             on every rank
    preflight.describe_models()           on rank 0, or in code/doctor.py
    preflight.estimate(train, dev)
    print(preflight.report)

`check` raises what is wrong with flags and files. The methods collect errors in the report; `report.stop_on_errors`
raises them.
"""

from dataclasses import dataclass, field

import torch
from deepspeed.accelerator import get_accelerator
from transformers.utils import is_bitsandbytes_available

from arguments import TrainConfig
from criterions import Criterion, build_criterion, unused_arguments
from criterions.fused import check_compiler
from criterions.pair import Pair
from data_utils.dataset import InstructionDataset
from data_utils.prompts import check_template
from data_utils.sources import find_source, training_sources
from generation.building import check_generator
from models.attention import check_attention
from models.files import check_adapter_path, check_model_path, check_revision
from models.loading import load_tokenizer
from models.sharding import sharding_settings
from preflight.defaults import with_accumulation, with_checkpoints, with_precision, with_rows, with_save_dir
from preflight.estimates import (
    check_positions,
    describe_data,
    estimate_cache,
    estimate_disk,
    estimate_memory,
    estimate_steps,
)
from preflight.examples import show_examples
from preflight.on_policy import check_rows, describe_rows
from preflight.report import Report
from preflight.skeleton import ModelFacts, student_facts, teacher_facts
from preflight.tokens import check_tokenizers
from runtime.deepspeed_settings import (
    DeepSpeedSettings,
    check_precision,
    dtype_name,
    read_deepspeed_settings,
    slow_on_this_cpu,
    supported_dtypes,
)
from runtime.ranks import Ranks
from teacher.building import teacher_dtype
from training.writers import check_trackers


@dataclass
class Preflight:
    """A run before its models are loaded. Its methods add to the report, errors too.

    config: the flags, with defaults filled in. student, teacher: set by `describe_models`; None where the files are
    wrong, or the objective needs no teacher.
    """

    config: TrainConfig
    criterion: Criterion
    settings: DeepSpeedSettings
    ranks: Ranks
    report: Report = field(default_factory=Report)
    student: ModelFacts | None = None
    teacher: ModelFacts | None = None

    def describe_models(self) -> None:
        """Models, adapters, tokenizers; the run's folder and the disk; flags without effect."""
        config, report = self.config, self.report
        report.fact("folder", str(config.train.save_dir))
        for name, value in unused_arguments(self.criterion, config.kd).items():
            flag = f"--{name.replace('_', '-')}"
            report.warn(f"{flag} {value} has no effect: {config.kd.objective} does not use it")
        if slow_on_this_cpu(self.settings.dtype):
            report.warn(
                f"this CPU has no {self.settings.precision} instructions: a step takes many times as long as with "
                "--precision fp32"
            )
        with report.collect_errors():
            self.student = student_facts(config.model, report)
            self._describe("student", self.student, self.settings.dtype)
        if self.criterion.needs_teacher:
            with report.collect_errors():
                self.teacher = teacher_facts(config.teacher, config.model.trust_remote_code, report)
                self._describe("teacher", self.teacher, teacher_dtype(config, self.settings.dtype))
        if self.student is None:
            return
        with report.collect_errors():
            check_tokenizers(config, self.student, self.teacher, report)
        with report.collect_errors():
            estimate_disk(config, self.settings, self.student, report)

    def estimate(self, train: InstructionDataset, dev: InstructionDataset | None) -> None:
        """What depends on the rows: cuts, steps, the teacher's cache, memory."""
        config, report = self.config, self.report
        datasets = [data for data in (train, dev) if data is not None]
        describe_data(config, train, dev, report)
        with report.collect_errors():
            longest = int(max(data.lengths.max() for data in datasets))
            models = [model for model in (self.student, self.teacher) if model is not None]
            check_positions(config, longest, models, report)
        plan = estimate_steps(config, train, self.ranks, report)
        if config.on_policy.enabled:
            with report.collect_errors():
                describe_rows(config, self.settings, train, plan, self.student, self.teacher, report)
        if self.teacher is not None:
            with report.collect_errors():
                tokens = sum(int(data.responses.sum()) for data in datasets)
                estimate_cache(config, self.settings, self.teacher, tokens, report)
        if self.student is not None:
            with report.collect_errors():
                estimate_memory(config, self.settings, self.student, self.teacher, train.lengths, self.ranks, report)

    def show_examples(self, train: InstructionDataset, count: int = 1) -> None:
        """The first rows as the model sees them, what is learnt in marks."""
        model = self.config.model
        tokenizer = load_tokenizer(model.model_path, model.trust_remote_code, model.model_revision)
        show_examples(train, tokenizer, self.report, count)

    def _describe(self, name: str, model: ModelFacts, dtype: torch.dtype) -> None:
        trainable = ""
        if name == "student":
            trainable = f" ({'all' if model.trainable == model.parameters else f'{model.trainable:,}'} trainable)"
        layers = getattr(model.text_config, "num_hidden_layers", "?")
        self.report.fact(
            name,
            f"{model.path}: {model.config.model_type}, {layers} layers, {model.parameters:,} parameters{trainable}, "
            f"{dtype_name(dtype)}",
        )


def check(config: TrainConfig) -> Preflight:
    """Flags and files; fills in what the flags leave open. Raises ValueError with one line per mistake."""
    report, criterion, settings, ranks = Report(), None, None, Ranks.from_environment()
    with report.collect_errors():
        criterion = _build_criterion(config)
    resolved = False
    with report.collect_errors():
        config = with_checkpoints(config, criterion is None or criterion.needs_teacher)
        resolved = True
    with report.collect_errors():
        config = with_precision(config)
    with report.collect_errors():
        config = with_accumulation(config, ranks)
    config = with_rows(config)
    with report.collect_errors():
        settings = read_deepspeed_settings(config.train)
    with report.collect_errors():
        if config.kd.compile_loss:
            check_compiler(get_accelerator().device_name())
    with report.collect_errors():
        check_trackers(config.train.report_to or ())
    with report.collect_errors():
        if resolved:  # otherwise a path still means several runs
            _check_student(config)
    with report.collect_errors():
        if resolved and criterion is not None and criterion.needs_teacher:
            _check_teacher(config)
    with report.collect_errors():
        _check_bits(config, settings, criterion is None or criterion.needs_teacher)
    with report.collect_errors():
        if config.train.eval_gen:
            check_generator(config.generation, training=True, zero_stage=settings.stage if settings else 0)
    with report.collect_errors():
        check_template(config.data.prompt_template)
    with report.collect_errors():
        if criterion is not None:
            check_rows(config, criterion)
    with report.collect_errors():
        _check_data(config)
    report.stop_on_errors()
    if config.train.diagnose_every and not criterion.needs_teacher:
        raise ValueError(
            f"--diagnose-every {config.train.diagnose_every}: compares the gradient of KD with that of SFT, and "
            f"{config.kd.objective} has no teacher; drop the flag"
        )
    _check_dtypes(config, settings, criterion.needs_teacher)
    return Preflight(with_save_dir(config, criterion, settings, ranks), criterion, settings, ranks)


def _build_criterion(config: TrainConfig) -> Criterion:
    criterion, args = build_criterion(config.kd.objective, config.kd), config.on_policy
    if args.schedule != "pair":
        return criterion
    student = build_criterion(args.student_kd_objective, config.kd, "--student-kd-objective")
    return Pair(criterion, student, args.pair_weight)


def _check_student(config: TrainConfig) -> None:
    model = config.model
    check_revision("--model-revision", model.model_revision, model.model_path)
    check_model_path("--model-path", model.model_path)
    if model.peft_path is not None:
        check_adapter_path("--peft-path", model.peft_path)


def _check_teacher(config: TrainConfig) -> None:
    teacher = config.teacher
    if teacher.teacher_model_path is None:
        raise ValueError(
            f"--kd-objective {config.kd.objective}: needs a teacher; pass --teacher-model-path, "
            "or --kd-objective cross_entropy to fine-tune without one"
        )
    check_revision("--teacher-revision", teacher.teacher_revision, teacher.teacher_model_path)
    check_model_path("--teacher-model-path", teacher.teacher_model_path)
    if teacher.teacher_peft_path is not None:
        check_adapter_path("--teacher-peft-path", teacher.teacher_peft_path)


def _check_bits(config: TrainConfig, settings: DeepSpeedSettings | None, needs_teacher: bool) -> None:
    """Raises ValueError if a model cannot be held in 4 or 8 bits here."""
    for flag, bits in (("--model-bits", config.model.model_bits), ("--teacher-bits", config.teacher.teacher_bits)):
        if bits is None or (flag == "--teacher-bits" and not needs_teacher):
            continue
        device = get_accelerator().device_name()
        if device != "cuda":
            raise ValueError(f"{flag} {bits}: needs a CUDA GPU, and this machine's device is {device}; drop the flag")
        if not is_bitsandbytes_available():
            raise ValueError(
                f"{flag} {bits}: bitsandbytes is not installed; pip install bitsandbytes, or drop the flag"
            )
        if settings is not None and settings.stage == 3:
            raise ValueError(
                f"{flag} {bits}: ZeRO-3 cannot partition quantised weights; use a file of ZeRO-0 to ZeRO-2"
            )
        if flag == "--teacher-bits" and config.teacher.teacher_peft_path is not None:
            raise ValueError(
                f"{flag} {bits}: --teacher-peft-path {config.teacher.teacher_peft_path} would be merged into rounded "
                "weights; merge it first (bash scripts/export.sh RUN OUT), and pass OUT as --teacher-model-path"
            )


def _check_dtypes(config: TrainConfig, settings: DeepSpeedSettings, needs_teacher: bool) -> None:
    """Whether device and attention kernel support the dtypes of student and teacher."""
    check_precision(config.train, settings)
    dtypes = {f"--deepspeed_config {config.train.deepspeed_config}": settings.dtype}
    if needs_teacher and config.teacher.teacher_dtype is not None:
        flag = f"--teacher-dtype {config.teacher.teacher_dtype}"
        dtypes[flag] = dtype = teacher_dtype(config, settings.dtype)
        if sharding_settings(settings, dtype) and dtype not in supported_dtypes():
            raise ValueError(
                f"{flag}: ZeRO-3 partitions the teacher, and {dtype_name(dtype)} is not supported by "
                f"this machine's {get_accelerator().device_name()} device; pass --teacher-dtype float32"
            )
    check_attention(config.model.attn_implementation, dtypes, get_accelerator().device_name())


def _check_data(config: TrainConfig) -> None:
    tokens, longest = config.train.tokens_per_micro_batch, config.data.max_length
    if tokens is not None and tokens < longest:
        raise ValueError(f"--tokens-per-micro-batch {tokens}: pass at least --max-length {longest}, one full example")
    source = find_source(config.data.data_dir, "train", config.data)
    if config.train.eval_gen and source.hub is None and training_sources(config.data)[1] is None:
        raise FileNotFoundError(
            f"--eval-gen: no dev rows in --data-dir {config.data.data_dir}, and too few to hold some out; add a "
            "dev.jsonl, or drop the flag"
        )
