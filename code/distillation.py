"""Distil a teacher into a student, or fine-tune one model (SFT).

    python code/distillation.py --model-path STUDENT --teacher-model-path TEACHER --data-dir data/dolly \
        --kd-objective todi --save-dir outputs/run

Starts under `deepspeed`, under `torchrun`, or plainly with `python` for one process. Writes `epoch*/` checkpoints,
`args.json`, `train.log`, `metrics.jsonl`, `dev_metrics.jsonl`, `resume/` and, at the end, `report.html` into
--save-dir; the same command resumes an interrupted run. Exit code 2, on every rank: the input is wrong, and the message
says which flag and what to do; the other codes are in docs/reliability.md. `code/doctor.py` makes the same checks and
trains nothing.
"""

from arguments import parse_train_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_train_arguments)

import sys
from pathlib import Path

from data_utils.dataset import load_data
from models.loading import load_tokenizer
from preflight.checks import check
from reporting.page import write_report
from runtime.atomic import WriteError
from runtime.exit_codes import DIVERGED, NOT_WRITTEN, STOPPED, USER_ERROR_CODES, exit_on, naming_save_dir, run_entry
from runtime.log import logger, start_log
from runtime.ranks import all_ranks, from_main_process, init_distributed, is_main_process
from training.building import build_models, build_trainer
from training.guard import Diverged
from training.loop import Trainer
from training.provenance import record_rows, record_start
from training.resume import open_resume
from training.resume_settings import check_layout

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
    if is_main_process():
        write_own_report(Path(trainer.args.save_dir))


def write_own_report(save_dir: Path) -> None:
    """report.html of this run. The run is complete: no failure here may change its exit code."""
    try:
        write_report([save_dir], save_dir / "report.html")
    except Exception as error:
        logger.warning("report.html was not written (%s); to try again: bash scripts/report.sh %s", error, save_dir)
    else:
        logger.info("report in %s", save_dir / "report.html")


def prepare(argv: list[str]) -> Trainer | None:
    """Checks, loads and builds everything; None if the run is finished already.

    Raises ValueError, OSError with the flag and the remedy, the same on every rank.
    """
    config = parse_train_arguments(argv)
    device = init_distributed()

    # Check.
    with all_ranks():
        preflight = check(config)
    # The best checkpoint of a run that is still training could differ between ranks.
    preflight.config = config = from_main_process(preflight.config)
    criterion, settings = preflight.criterion, preflight.settings
    with all_ranks():
        if is_main_process():
            preflight.describe_models()
            preflight.report.stop_on_errors()

    # Open the run folder.
    save_dir = Path(config.train.save_dir)
    resume = open_resume(config, settings)
    with all_ranks():
        start_log(save_dir)
    for note in resume.notes:
        logger.info(note)
    if resume.finished:
        return None
    with all_ranks():
        record_start(config, criterion, settings, argv, device)

    # Data.
    with all_ranks():
        tokenizer = load_tokenizer(config.model.model_path, config.model.trust_remote_code, config.model.model_revision)
    train, dev = load_data(tokenizer, config.data)
    with all_ranks():
        if is_main_process():
            record_rows(save_dir, {"train": train, "dev": dev})
            preflight.estimate(train, dev)
            preflight.show_examples(train)
            logger.info("%s", preflight.report)
            preflight.report.stop_on_errors()

    # Models.
    datasets = [data for data in (train, dev) if data is not None]
    models = build_models(config, criterion, tokenizer, settings, datasets, device)
    check_layout(resume, models.layout, config.train)

    return build_trainer(config, models, tokenizer, settings, train, dev, resume)


if __name__ == "__main__":
    run_entry(main)
