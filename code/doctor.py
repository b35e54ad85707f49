"""Examine a run without running it: the flags of `code/distillation.py`, one report, nothing trained or written.

    python code/doctor.py --model-path STUDENT --teacher-model-path TEACHER --data-dir data/dolly --kd-objective todi

Beside what every start checks, it loads the models and probes packing and heads, as training does. The number of ranks
is that of WORLD_SIZE, where it is set. Exit code 0: the run can start (read the warnings); 2: it cannot.
"""

from arguments import TrainConfig, parse_train_arguments
from flags import answer_early, show_error

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_train_arguments)

import os
import sys

from data_utils.dataset import InstructionDataset, load_train_and_dev
from models.loading import load_tokenizer
from preflight.checks import Examination, check
from preflight.probe import STUDENT, TEACHER, probe
from preflight.report import Report
from runtime.ranks import USER_ERRORS, Ranks


def main(argv: list[str]) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        report = diagnose(parse_train_arguments(argv))
    except USER_ERRORS as error:
        show_error(error)
        sys.exit(2)
    print(report)
    sys.exit(2 if report.errors else 0)


def diagnose(config: TrainConfig) -> Report:
    """The whole report. Raises ValueError where nothing can be examined, since a file is missing or broken."""
    config, criterion, settings = check(config)
    examined = Examination(config, criterion, settings, Ranks.from_environment())
    with examined.report.check():
        examined.plan(*load_data(config))
    models = {STUDENT: examined.student, TEACHER: examined.teacher}
    with examined.report.check():
        probe(config, settings, {flag: model for flag, model in models.items() if model is not None}, examined.report)
    return examined.report


def load_data(config: TrainConfig) -> tuple[InstructionDataset, InstructionDataset | None]:
    """train and dev, tokenised into the cache that training reads too."""
    model = config.model
    tokenizer = load_tokenizer(model.model_path, model.trust_remote_code, model.model_revision)
    return load_train_and_dev(tokenizer, config.data)


if __name__ == "__main__":
    main(sys.argv[1:])
