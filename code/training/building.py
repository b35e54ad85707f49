"""Builds what a run trains with: the models, then the engine around them and the trainer.

In: flags, data, and the state to resume. Out: `Models`, and from them a `Trainer` that is ready to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from deepspeed import DeepSpeedEngine
from torch import nn
from transformers import PreTrainedTokenizerBase

from arguments import TrainConfig
from criterions import Criterion
from data_utils.batches import Layout, longest_prompt
from data_utils.dataset import InstructionDataset
from data_utils.epoch_plan import EpochPlan, epoch_plan, total_steps
from data_utils.prompts import PromptTemplate, prompt_template
from data_utils.rows import read_rows
from data_utils.sources import training_sources
from distiller import Distiller
from evaluation.metrics import MAIN_METRIC, build_metrics
from evaluation.scoring import EvaluationSet, warnings
from generation.sampler import StudentSampler
from models.heads import SplitModel
from models.loading import load_student, load_tokenizer, place
from models.probes import batch_layout, split
from models.sharding import gathering, partitioned_loading, sharding_settings, whole_shape
from models.vocabulary import shared_vocabulary
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.log import logger
from runtime.random_state import seed_everything
from runtime.ranks import all_ranks, rank, world_size
from teacher.building import build_teacher
from teacher.states import LiveTeacher, Teacher
from training.checkpoints import BestCheckpoints
from training.dev import DevEvaluation
from training.diagnosis import Diagnosis
from training.engine import build_engine
from training.guard import StepGuard
from training.kind_metrics import KindMetrics
from training.loop import Trainer
from training.metrics import Metrics
from training.probe import Probe
from training.rank_batches import RankBatches
from training.sources import AdaptiveRows, DataRows, MixedRows, PairRows, RowSource
from training.state import Position, RandomNumbers, Resume, RunState
from training.writers import Tracker, open_trackers, record_writers


@dataclass(frozen=True)
class Models:
    """teacher: None if the objective needs none. layout: how both take examples."""

    distiller: Distiller
    teacher: Teacher | None
    layout: Layout


def build_models(
    config: TrainConfig,
    criterion: Criterion,
    tokenizer: PreTrainedTokenizerBase,
    settings: DeepSpeedSettings,
    datasets: Sequence[InstructionDataset],
    device: torch.device,
) -> Models:
    """Loads student and teacher and probes how they take examples. Raises ValueError if they do not fit the data."""
    teacher = None
    if criterion.needs_teacher:  # first: its body may be gone before the student is loaded
        teacher = build_teacher(config, settings, datasets, tokenizer.pad_token_id, device)
    seed_everything(config.train.seed)
    model = place(_load_student(config, settings), device)
    with gathering(model):
        student = split(model)
    parts = {"student": student}
    if teacher is not None:
        with all_ranks():
            size = _shared_ids(config, tokenizer, student, teacher)
        student.head.vocabulary_size = teacher.head.vocabulary_size = size
        if isinstance(teacher, LiveTeacher):
            parts["teacher"] = teacher.model
    with gathering(model):
        layout = batch_layout([part.model for part in parts.values()]) if config.data.packing else "padded"
    for name, part in parts.items():
        sizes = [(whole_shape(p).numel(), p.requires_grad) for p in part.model.parameters()]
        total, trainable = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
        logger.info("%s: %s parameters, %s trainable, %s", name, f"{total:,}", f"{trainable:,}", part.head.kind)
    logger.info("vocabulary %d, batches %s", student.head.vocabulary_size, layout)
    _check_token_ids(config, datasets, student.head.vocabulary_size)
    return Models(Distiller(student, criterion, config.kd.loss_chunk_mb, config.kd.compile_loss), teacher, layout)


def build_trainer(
    config: TrainConfig,
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    settings: DeepSpeedSettings,
    train: InstructionDataset,
    dev: InstructionDataset | None,
    resume: Resume,
) -> Trainer:
    """The engine and everything that the loop needs; the state to resume is not restored yet."""
    args, save_dir = config.train, Path(config.train.save_dir)
    plan = epoch_plan(train, args, world_size(), models.layout)
    engine = build_engine(models.distiller, settings, args, total_steps(plan, args))
    seed_everything(args.seed + 1 + rank())
    _log_plan(plan, total_steps(plan, args))
    template = prompt_template(config.data.prompt_template, tokenizer)
    batches = RankBatches(train, dev, tokenizer.pad_token_id, config.data.max_length, models.layout, engine.device)
    source = _row_source(config, engine, tokenizer, train, plan)
    metrics = Metrics(engine.device, KindMetrics(engine.device) if config.on_policy.enabled else None)
    position = Position()
    step = resume.start["position"]["step"] if resume.start is not None else 0
    with all_ranks():
        trackers = open_trackers(args.report_to or (), save_dir, config.flags, step)
    evaluation = _dev_evaluation(config, engine, tokenizer, template, batches, trackers) if dev is not None else None
    best = BestCheckpoints(args.keep_best_n_checkpoints, save_dir)
    state = RunState(
        resume,
        engine,
        shared={"position": position, "best": best} | ({"rows": source} if config.on_policy.enabled else {}),
        per_rank={"criterion": models.distiller.criterion, "metrics": metrics, "random": RandomNumbers()},
        common={"buffer": source.buffer} if isinstance(source, AdaptiveRows) else {},
    )
    return Trainer(
        engine=engine,
        teacher=models.teacher,
        tokenizer=tokenizer,
        template=template,
        batches=batches,
        plan=plan,
        source=source,
        args=args,
        guard=StepGuard(engine, save_dir, args.max_bad_steps, position),
        dev=evaluation,
        probe=_probe(config, models.teacher, template, evaluation) if evaluation and args.probe_rows else None,
        diagnosis=Diagnosis(models.distiller.criterion, save_dir) if args.diagnose_every else None,
        metrics=metrics,
        writers=record_writers(save_dir, "metrics", trackers),
        position=position,
        best=best,
        state=state,
    )


def _row_source(
    config: TrainConfig,
    engine: DeepSpeedEngine,
    tokenizer: PreTrainedTokenizerBase,
    train: InstructionDataset,
    plan: EpochPlan,
) -> RowSource:
    args, student = config.on_policy, engine.module.split_student
    if not args.enabled:
        return DataRows(train)
    partitioned = engine.zero_optimization_stage() == 3
    lengths = longest_prompt(train, config.data.max_prompt_length), config.data.max_length
    sampler = StudentSampler(student, tokenizer, args, config.train.seed, *lengths, engine.device, partitioned)
    logger.info(
        "rows %s: sampled ones train KD alone, times --kd-rate %g; CE needs data", args.schedule, config.kd.kd_rate
    )
    if args.schedule != "adaptive":
        return {"mixed": MixedRows, "pair": PairRows}[args.schedule](train, plan, sampler, args)
    return AdaptiveRows(train, plan, sampler, args, total_steps(plan, config.train))


def _load_student(config: TrainConfig, settings: DeepSpeedSettings) -> nn.Module:
    """The whole student; under ZeRO-3, this rank's share of it."""
    sharding = sharding_settings(settings, settings.dtype)
    if sharding is None:
        with all_ranks():
            return load_student(config.model, settings.dtype)
    with partitioned_loading(sharding):  # collective
        return load_student(config.model, settings.dtype)


def _shared_ids(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, student: SplitModel, teacher: Teacher) -> int:
    args, trust_remote_code = config.teacher, config.model.trust_remote_code
    teacher_tokenizer = load_tokenizer(args.teacher_model_path, trust_remote_code, args.teacher_revision)
    return shared_vocabulary(tokenizer, teacher_tokenizer, student.head.vocabulary_size, teacher.head.vocabulary_size)


def _check_token_ids(config: TrainConfig, datasets: Sequence[InstructionDataset], limit: int) -> None:
    """Raises ValueError if a row has a token that the models do not share."""
    for data in datasets:
        if data.max_token_id >= limit:
            raise ValueError(
                f"--data-dir {config.data.data_dir}: a row has token id {data.max_token_id}, and the models share the "
                f"ids below {limit}; remove the special tokens from the text"
            )


def _log_plan(plan: EpochPlan, steps: int) -> None:
    if plan.tokens_per_micro_batch is not None:
        logger.info("micro-batches of at most %d tokens; --batch-size has no effect", plan.tokens_per_micro_batch)
    per_step = len(plan.lengths) / len(plan), plan.lengths.sum() / len(plan)
    logger.info(
        "%d steps per epoch, %d steps in total; %.1f examples and %d tokens per step", len(plan), steps, *per_step
    )


def _dev_evaluation(
    config: TrainConfig,
    engine: DeepSpeedEngine,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    batches: RankBatches,
    trackers: Sequence[Tracker],
) -> DevEvaluation:
    # Only generation needs the text; the dev loss has the token ids.
    rows = []
    if config.train.eval_gen:
        _, dev = training_sources(config.data)
        rows = read_rows(dev, template, config.data.dev_num)
    references = [response for row in rows for response in row.responses]
    for warning in warnings(build_metrics(config.generation, MAIN_METRIC), {"dev references": references}):
        logger.warning(warning)
    questions = EvaluationSet(rows, tokenizer, config.data.max_prompt_length, template)
    writers = record_writers(Path(config.train.save_dir), "dev_metrics", trackers)
    return DevEvaluation(engine, questions, batches, config.train, config.data, config.generation, writers)


def _probe(config: TrainConfig, teacher: Teacher | None, template: PromptTemplate, dev: DevEvaluation) -> Probe:
    count = min(config.train.probe_rows, len(dev.batches.dev))
    _, rows = training_sources(config.data)
    return Probe(
        engine=dev.engine,
        teacher=teacher,
        tokenizer=dev.questions.tokenizer,
        batches=dev.batches,
        rows=read_rows(rows, template, count),
        path=Path(config.train.save_dir) / "probe.jsonl",
        tokens_per_batch=dev.tokens_per_batch,
    )
