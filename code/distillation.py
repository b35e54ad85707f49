"""Distil a teacher into a student, or fine-tune one model (SFT).

    python code/distillation.py --model-path STUDENT --teacher-model-path TEACHER --data-dir data/dolly \
        --kd-objective todi --save-dir outputs/run

Starts under `deepspeed`, under `torchrun`, or plainly with `python` for one process. Writes `epoch*/` checkpoints,
`args.json`, `train.log`, `metrics.jsonl`, `dev_metrics.jsonl` and `resume/` into --save-dir; the same command continues
a run that was cut off. Exit code 2, on every rank: the input is wrong, and the message says which flag and what to do;
the other codes are in docs/reliability.md. `code/doctor.py` makes the same checks and trains nothing.
"""

from arguments import TrainConfig, parse_train_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_train_arguments)

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from criterions import Criterion
from data_utils.batches import Layout
from data_utils.dataset import InstructionDataset, load_train_and_dev, read_rows
from data_utils.epoch_plan import EpochPlan, epoch_plan, total_steps
from distiller import Distiller
from evaluation.rouge import tokenizer_warning
from models.heads import SplitModel
from models.loading import load_student, load_tokenizer
from models.probes import batch_layout, split
from models.sharding import gathering, partitioned_loading, sharding_settings, whole_shape
from models.vocabulary import shared_vocabulary
from preflight.checks import Examination, check
from preflight.plans import Ranks
from runtime.atomic import WriteError, write_text
from runtime.deepspeed_settings import DeepSpeedSettings, dtype_name
from runtime.exit_codes import (
    DIVERGED,
    NOT_WRITTEN,
    STOPPED,
    USER_ERROR_CODES,
    exit_on,
    naming_save_dir,
    run_entry,
)
from runtime.log import logger, start_log
from runtime.random_state import seed_everything
from runtime.ranks import (
    all_ranks,
    from_main_process,
    init_distributed,
    is_first_of_node,
    is_main_process,
    rank,
    world_size,
)
from teacher.building import build_teacher
from teacher.states import LiveTeacher, Teacher
from training.engine import build_engine
from training.guard import Diverged
from training.loop import Data, Trainer
from training.metrics import Metrics
from training.provenance import provenance
from training.resume import extension, open_resume

REMEDY = (
    "what was complete is intact: make room, or move the folder and pass its new place, and run the same command "
    "again; it continues from its last saved state"
)


def main(argv: list[str]) -> None:
    with exit_on(USER_ERROR_CODES):  # what a user can get wrong; a failure in training keeps its traceback
        trainer = prepare(argv)
    if trainer is None:
        return
    codes = {WriteError: NOT_WRITTEN, Diverged: DIVERGED}
    with exit_on(codes, every_rank=True), naming_save_dir(trainer.args.save_dir, REMEDY):
        finished = trainer.run()
    if not finished:
        sys.exit(STOPPED)


def prepare(argv: list[str]) -> Trainer | None:
    """Checks, loads and builds everything; None if the run is finished already.

    Raises ValueError, OSError with the flag and the remedy.
    """
    config = parse_train_arguments(argv)
    device = init_distributed()
    with all_ranks():
        config, criterion, settings = check(config)
    config = from_main_process(config)  # the best checkpoint of a run that still trains could differ between ranks
    with all_ranks():
        examined = examine(config, criterion, settings) if is_main_process() else None
    save_dir = Path(config.train.save_dir)
    resume = open_resume(config, settings)
    start_log(save_dir)
    for note in resume.notes:
        logger.info(note)
    if resume.finished:
        further = extension(resume.start, save_dir)
        logger.info("this run is finished: nothing to do; %s; --resume never starts it over", further)
        return None
    log_start(config, criterion, settings, argv, device)

    tokenizer, train, dev = load_data(config)
    with all_ranks():
        if is_main_process():
            plan_run(examined, train, dev)
    datasets = [data for data in (train, dev) if data is not None]
    distiller, teacher, layout = load_models(config, criterion, tokenizer, settings, datasets, device)
    check_token_ids(config, train, dev, distiller)
    resume.set_layout(layout, config.train)

    plan = epoch_plan(train, config.train, world_size(), layout)
    steps = total_steps(plan, config.train)
    engine = build_engine(distiller, settings, config.train, steps)
    seed_everything(config.train.seed + 1 + rank())
    log_plan(plan, steps)
    # Only generation needs the text again; the dev loss has its token ids.
    dev_file = Path(config.data.data_dir) / "dev.jsonl"
    dev_rows = read_rows(dev_file, config.data.dev_num) if config.train.eval_gen else []
    references = (response for row in dev_rows for response in row.responses)
    if warning := tokenizer_warning("dev references", references, config.generation.rouge_tokenizer):
        logger.warning(warning)
    return Trainer(
        engine=engine,
        teacher=teacher,
        tokenizer=tokenizer,
        data=Data(train, dev, dev_rows, layout),
        plan=plan,
        data_args=config.data,
        args=config.train,
        generation=config.generation,
        metrics=Metrics(save_dir / "metrics.jsonl", device, is_main_process()),
        resume=resume,
    )


def examine(config: TrainConfig, criterion: Criterion, settings: DeepSpeedSettings) -> Examination:
    """Raises ValueError with all that is wrong with the models, the tokenizers and the disk."""
    examined = Examination(config, criterion, settings, Ranks.from_environment())
    examined.report.stop_on_errors()
    return examined


def plan_run(examined: Examination, train: InstructionDataset, dev: InstructionDataset | None) -> None:
    """The whole report into the log. Raises ValueError if the run cannot fit."""
    examined.plan(train, dev)
    logger.info("%s", examined.report)
    examined.report.stop_on_errors()


def log_start(
    config: TrainConfig,
    criterion: Criterion,
    settings: DeepSpeedSettings,
    argv: Sequence[str],
    device: torch.device,
) -> None:
    """What the run is, into args.json and train.log."""
    if is_main_process():
        everything = config.flags | {"deepspeed": settings.raw, "run": provenance(argv)}
        write_text(Path(config.train.save_dir) / "args.json", json.dumps(everything, indent=2) + "\n")
    logger.info("run folder %s", config.train.save_dir)
    dtype = dtype_name(settings.dtype)
    logger.info("objective %s, %d ranks, device %s, %s", config.kd.objective, world_size(), device.type, dtype)
    if config.ignored_flags:
        logger.info("without effect here: %s", " ".join(config.ignored_flags))
    if not criterion.needs_teacher and config.teacher.teacher_model_path is not None:
        logger.info("%s needs no teacher: %s is not loaded", config.kd.objective, config.teacher.teacher_model_path)


def load_data(
    config: TrainConfig,
) -> tuple[PreTrainedTokenizerBase, InstructionDataset, InstructionDataset | None]:
    """The tokenizer, train and, where there is one, dev.

    The first process of each node tokenises, the others read its cache.
    """
    model, from_cache = config.model, replace(config.data, force_process=False)
    with all_ranks():
        tokenizer = load_tokenizer(model.model_path, model.trust_remote_code, model.model_revision)
    with all_ranks():
        if is_first_of_node():
            train, dev = load_train_and_dev(tokenizer, config.data)
    with all_ranks():
        if not is_first_of_node():
            train, dev = load_train_and_dev(tokenizer, from_cache)
    return tokenizer, train, dev


def load_models(
    config: TrainConfig,
    criterion: Criterion,
    tokenizer: PreTrainedTokenizerBase,
    settings: DeepSpeedSettings,
    datasets: Sequence[InstructionDataset],
    device: torch.device,
) -> tuple[Distiller, Teacher | None, Layout]:
    """The distiller, the teacher if the objective needs one, and how examples are laid out in a batch."""
    teacher = None
    if criterion.needs_teacher:  # first: its body may be gone before the student comes
        teacher = build_teacher(config, settings, datasets, tokenizer.pad_token_id, device)
    seed_everything(config.train.seed)
    model = load_sharded_student(config, settings).to(device)
    with gathering(model):
        student = split(model)
    parts = {"student": student}
    if teacher is not None:
        with all_ranks():
            size = shared_ids(config, tokenizer, student, teacher)
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
    return Distiller(student, criterion, config.kd.loss_chunk_mb, config.kd.compile_loss), teacher, layout


def load_sharded_student(config: TrainConfig, settings: DeepSpeedSettings) -> nn.Module:
    """The student, whole; under ZeRO-3, this rank's share of it."""
    sharding = sharding_settings(settings, settings.dtype)
    if sharding is None:
        with all_ranks():
            return load_student(config.model, settings.dtype)
    with partitioned_loading(sharding):  # collective
        return load_student(config.model, settings.dtype)


def shared_ids(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, student: SplitModel, teacher: Teacher) -> int:
    args, trust_remote_code = config.teacher, config.model.trust_remote_code
    teacher_tokenizer = load_tokenizer(args.teacher_model_path, trust_remote_code, args.teacher_revision)
    return shared_vocabulary(tokenizer, teacher_tokenizer, student.head.vocabulary_size, teacher.head.vocabulary_size)


def check_token_ids(
    config: TrainConfig, train: InstructionDataset, dev: InstructionDataset | None, distiller: Distiller
) -> None:
    """Raises ValueError if a row has a token that the models do not share."""
    limit = distiller.split_student.head.vocabulary_size
    for data in filter(None, (train, dev)):
        if data.max_token_id >= limit:
            raise ValueError(
                f"--data-dir {config.data.data_dir}: a row has token id {data.max_token_id}, and the models share the "
                f"ids below {limit}; remove the special tokens from the text"
            )


def log_plan(plan: EpochPlan, steps: int) -> None:
    if plan.tokens_per_micro_batch is not None:
        logger.info("micro-batches of at most %d tokens; --batch-size has no effect", plan.tokens_per_micro_batch)
    a_step = len(plan.lengths) / len(plan), plan.lengths.sum() / len(plan)
    logger.info("%d steps an epoch, %d steps in all; %.1f examples, %d tokens a step", len(plan), steps, *a_step)


if __name__ == "__main__":
    run_entry(main)
