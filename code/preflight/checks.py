"""The checks in their order: files first, then what is in them, then what the run will take.

`check` runs on every rank; `examine` and `plan` on rank 0, or in `code/doctor.py`, and fill one report.
"""

from pathlib import Path

from deepspeed.accelerator import get_accelerator

from arguments import TrainConfig
from criterions import Criterion, build_criterion, unused_arguments
from criterions.fused import check_compiler
from data_utils.dataset import InstructionDataset, check_rows_file
from models.attention import check_attention
from models.files import check_adapter_path, check_model_path, check_revision
from models.sharding import sharding_settings
from preflight.defaults import with_accumulation, with_checkpoints, with_precision, with_save_dir
from preflight.estimates import (
    check_positions,
    describe_data,
    estimate_cache,
    estimate_disk,
    estimate_memory,
    estimate_steps,
)
from preflight.report import Report
from preflight.skeleton import ModelFacts, student_facts, teacher_facts
from preflight.tokens import check_tokenizers
from runtime.deepspeed_settings import (
    DeepSpeedSettings,
    check_precision,
    dtype_name,
    read_deepspeed_settings,
    supported_dtypes,
)
from runtime.ranks import Ranks
from teacher.building import teacher_dtype


def check(config: TrainConfig) -> tuple[TrainConfig, Criterion, DeepSpeedSettings]:
    """The flags with what they leave open filled in, the objective and DeepSpeed's settings.

    Raises ValueError, a line for each file or flag that is wrong.
    """
    report, criterion, settings, ranks = Report(), None, None, Ranks.from_environment()
    with report.check():
        criterion = build_criterion(config.kd.objective, config.kd)
    with report.check():
        config = with_checkpoints(config, criterion is None or criterion.needs_teacher)
    with report.check():
        config = with_precision(config)
    with report.check():
        config = with_accumulation(config, ranks)
    with report.check():
        settings = read_deepspeed_settings(config.train)
    with report.check():
        if config.kd.compile_loss:
            check_compiler(get_accelerator().device_name())
    with report.check():
        check_revision("--model-revision", config.model.model_revision, config.model.model_path)
        check_model_path("--model-path", config.model.model_path)
        if config.model.peft_path is not None:
            check_adapter_path("--peft-path", config.model.peft_path)
    if criterion is not None and criterion.needs_teacher:
        with report.check():
            _check_teacher(config)
    with report.check():
        _check_data(config)
    report.stop_on_errors()
    _check_dtypes(config, settings, criterion.needs_teacher)
    return with_save_dir(config, criterion, settings, ranks), criterion, settings


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


def _check_dtypes(config: TrainConfig, settings: DeepSpeedSettings, needs_teacher: bool) -> None:
    """What the machine and the attention kernel can compute in, of what student and teacher will be held in."""
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
    train_file = Path(config.data.data_dir) / "train.jsonl"
    check_rows_file(train_file)
    if config.train.eval_gen and not train_file.with_name("dev.jsonl").is_file():
        raise FileNotFoundError(
            f"--eval-gen: no dev.jsonl in --data-dir {config.data.data_dir}; add one, or drop the flag"
        )


class Examination:
    """What is known of the models before they are loaded; its report grows with `plan`."""

    def __init__(self, config: TrainConfig, criterion: Criterion, settings: DeepSpeedSettings, ranks: Ranks):
        self.config, self.settings, self.ranks = config, settings, ranks
        self.report = Report()
        self.student: ModelFacts | None = None
        self.teacher: ModelFacts | None = None
        self.report.fact("folder", str(config.train.save_dir))
        for name, value in unused_arguments(criterion, config.kd).items():
            flag = f"--{name.replace('_', '-')}"
            self.report.warn(f"{flag} {value} has no effect: {config.kd.objective} does not use it")
        self._examine(criterion.needs_teacher)

    def _examine(self, needs_teacher: bool) -> None:
        """Models, adapters, tokenizers, disk; errors stay in the report."""
        config, report = self.config, self.report
        with report.check():
            self.student = student_facts(config.model, report)
            self._describe("student", self.student)
        if needs_teacher:
            with report.check():
                self.teacher = teacher_facts(config.teacher, config.model.trust_remote_code, report)
                self._describe("teacher", self.teacher)
        if self.student is None:
            return
        with report.check():
            check_tokenizers(config, self.student, self.teacher, report)
        with report.check():
            estimate_disk(config, self.settings, self.student, report)

    def plan(self, train: InstructionDataset, dev: InstructionDataset | None) -> None:
        """What depends on the rows: cuts, steps, memory."""
        config, report = self.config, self.report
        models = [model for model in (self.student, self.teacher) if model is not None]
        describe_data(config, train, dev, report)
        longest = max(data.lengths.max() for data in (train, dev) if data is not None)
        with report.check():
            check_positions(config, int(longest), models)
        estimate_steps(config, train, self.ranks, report)
        if self.teacher is not None:
            with report.check():
                tokens = sum(int(data.responses.sum()) for data in (train, dev) if data is not None)
                estimate_cache(config, self.settings, self.teacher, tokens, report)
        if self.student is not None:
            with report.check():
                estimate_memory(config, self.settings, self.student, self.teacher, train.lengths, self.ranks, report)

    def _describe(self, name: str, model: ModelFacts) -> None:
        dtype = self.settings.dtype
        dtype = dtype_name(dtype if name == "student" else teacher_dtype(self.config, dtype))
        trainable = "all" if model.trainable == model.parameters else f"{model.trainable:,}"
        of_student = f", {trainable} trainable" if name == "student" else ""
        layers = getattr(model.text_config, "num_hidden_layers", "?")
        self.report.fact(
            name,
            f"{model.path}: {model.config.model_type}, {layers} layers, {model.parameters:,} parameters{of_student}, "
            f"in {dtype}",
        )
