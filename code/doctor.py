"""Check a run without starting it: the flags of `code/distillation.py` in, one report out.

    python code/doctor.py --model-path STUDENT --teacher-model-path TEACHER --data-dir data/dolly --kd-objective todi

Besides the checks of every start, it says whether training would resume what --save-dir holds, and loads the models and
probes their heads and the packing of batches as training does. It writes only the cache of tokenised rows. WORLD_SIZE
and LOCAL_WORLD_SIZE, if set, are those of the run. Exit code 0: the run can start (read the warnings); 2: it cannot.
"""

from arguments import TrainConfig, parse_doctor_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_doctor_arguments)

import os
import sys
from pathlib import Path

from deepspeed.accelerator import get_accelerator
from transformers import PreTrainedModel

from data_utils.dataset import InstructionDataset, load_train_and_dev
from models.heads import LanguageModelHead
from models.loading import load_student, load_teacher, load_tokenizer, place
from models.probes import batch_layout, split
from preflight.checks import Preflight, check
from preflight.estimates import weight_bytes
from preflight.report import Report, size
from runtime.exit_codes import USER_ERROR_CODES, WRONG_INPUT, exit_on
from teacher.building import teacher_dtype
from training.resume import find_resume, to_move_aside

EXAMPLES = 3
STUDENT, TEACHER = "--model-path", "--teacher-model-path"


def main(argv: list[str]) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    with exit_on(USER_ERROR_CODES):
        report = report_on(parse_doctor_arguments(argv))
    print(report)
    sys.exit(WRONG_INPUT if report.errors else 0)


def report_on(config: TrainConfig) -> Report:
    """Raises ValueError if files are missing or broken, so that there is nothing to report on."""
    preflight = check(config)
    preflight.describe_models()
    with preflight.report.collect_errors():
        train, dev = read_data(preflight.config)
        preflight.estimate(train, dev)
        preflight.show_examples(train, EXAMPLES)
    with preflight.report.collect_errors():
        describe_resume(preflight)
    with preflight.report.collect_errors():
        probe(preflight)
    return preflight.report


def read_data(config: TrainConfig) -> tuple[InstructionDataset, InstructionDataset | None]:
    """train and dev, tokenised into the cache that training reads too."""
    model = config.model
    tokenizer = load_tokenizer(model.model_path, model.trust_remote_code, model.model_revision)
    return load_train_and_dev(tokenizer, config.data)


def describe_resume(preflight: Preflight) -> None:
    """What training would do with what --save-dir holds. Raises ValueError where it would refuse it."""
    config, report = preflight.config, preflight.report
    resume = find_resume(config, preflight.settings, preflight.ranks.world_size)
    for note in resume.notes or ["nothing to resume: starts at the first step"]:
        report.fact("resume", note)
    if there := [path.name for path in to_move_aside(resume)]:
        report.fact("", f"moves to previous/ first: {', '.join(there[:3])}{', ...' if len(there) > 3 else ''}")


def probe(preflight: Preflight) -> None:
    """What training finds out once the models are loaded: the kind of their heads, the layout of batches.

    Raises ValueError if a model cannot be loaded.
    """
    config, report = preflight.config, preflight.report
    if reason := _obstacle(preflight):
        report.fact("probes", f"skipped: {reason}; training probes the models once they are loaded")
        return
    models = _load(preflight)
    for flag, model in models.items():
        head = split(model).head
        report.fact("probes", f"{flag}: {head.kind}")
        if not isinstance(head, LanguageModelHead):
            report.warn(f"{flag}: its head is more than a linear layer, so whole logits are made, which takes memory")
        if config.data.packing and batch_layout([model]) == "padded":
            report.warn(f"{flag}: it cannot tell packed examples apart, so batches are padded, which is slower")
    if config.data.packing:
        live = [model for flag, model in models.items() if flag == STUDENT or not config.teacher.teacher_cache]
        report.fact("", f"batches {batch_layout(live)}")


def _obstacle(preflight: Preflight) -> str | None:
    """Why the models cannot be loaded here."""
    if preflight.report.errors:
        return "correct the errors first"
    config, dtype = preflight.config, preflight.settings.dtype
    needed = weight_bytes(preflight.student, dtype, config.model.model_bits)
    paths = {STUDENT: preflight.student.path}
    if preflight.teacher is not None:
        needed += weight_bytes(preflight.teacher, teacher_dtype(config, dtype), config.teacher.teacher_bits)
        paths[TEACHER] = preflight.teacher.path
    for flag, path in paths.items():
        if not Path(path).is_dir():
            return f"{flag} {path} is a hub id, and the doctor downloads no weights"
    free = get_accelerator().available_memory()
    return f"the weights take {size(needed)}, and {size(free)} are free" if needed > free else None


def _load(preflight: Preflight) -> dict[str, PreTrainedModel]:
    """The models by their flags, on the device and in the dtypes of the run."""
    config, dtype = preflight.config, preflight.settings.dtype
    models = {STUDENT: load_student(config.model, dtype)}
    if preflight.teacher is not None:
        attention, trust_remote_code = config.model.attn_implementation, config.model.trust_remote_code
        models[TEACHER] = load_teacher(config.teacher, teacher_dtype(config, dtype), attention, trust_remote_code)
    return {flag: place(model, get_accelerator().device_name()) for flag, model in models.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
