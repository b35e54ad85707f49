"""What sampled rows need and cost, counted before the run: flags that fit, groups, passes, bytes.

In: the flags, the models' facts, the rows. Out: facts and warnings in the report, or a ValueError. Seconds are not
guessed: the log has those of the first sampled steps (`generation_s`).
"""

from arguments import TrainConfig
from criterions import Criterion
from data_utils.batches import longest_prompt
from data_utils.dataset import InstructionDataset
from data_utils.epoch_plan import EpochPlan
from data_utils.sources import training_sources
from generation.building import key_value_bytes
from generation.vllm_generator import check_vllm
from models.loading import positions_of
from preflight.report import Report, size
from preflight.skeleton import ModelFacts
from runtime.deepspeed_settings import DeepSpeedSettings


def check_rows(config: TrainConfig, criterion: Criterion) -> None:
    """Raises ValueError where sampled rows would teach nothing, or the schedule lacks what it follows."""
    args, data = config.on_policy, config.data
    if not args.samples:
        return
    if not criterion.needs_teacher:
        raise ValueError(
            f"--student-gen: {config.kd.objective} has no teacher, and the student would be trained to repeat itself; "
            "pass a divergence as --kd-objective, or drop the flag"
        )
    if config.kd.kd_rate == 0:
        raise ValueError("--kd-rate 0.0: sampled rows (--student-gen) train KD alone; pass more than 0, or drop them")
    if args.schedule == "adaptive" and training_sources(data)[1] is None:
        raise ValueError(
            f"--gen-schedule adaptive: follows the dev NLL, and --data-dir {data.data_dir} has no dev rows; add them, "
            "or use --gen-schedule mixed"
        )
    if args.gen_engine == "vllm":
        check_vllm("--gen-engine")


def describe_rows(
    config: TrainConfig,
    settings: DeepSpeedSettings,
    train: InstructionDataset,
    plan: EpochPlan,
    student: ModelFacts | None,
    teacher: ModelFacts | None,
    report: Report,
) -> None:
    """Share of sampled steps, and what such a step costs.

    Raises ValueError if --capacity is below a step's rows, or if an answer may need more positions than there are.
    """
    args, ranks = config.on_policy, plan.world_size
    rows, answer = -(-len(train) // len(plan)), args.gen_max_new_tokens
    if args.schedule == "adaptive" and args.capacity < rows:
        raise ValueError(
            f"--capacity {args.capacity}: a step takes {rows:,} rows, and so does a replay; pass at least that"
        )
    shares = {
        "mixed": f"{args.mixed_alpha:.0%} of the steps are sampled",
        "adaptive": f"{args.init_threshold:.0%} of the steps are sampled or replayed at first, 10 points more each "
        f"time that the dev NLL has risen by --loss-eps {args.loss_eps:g}; in the paper, the objective is a skewed KL "
        "(sfkl or srkl)",
        "pair": "every step trains its data and the student's answers to the same prompts; in the paper, the data are "
        "the teacher's answers, and the objectives sfkl (--kd-objective) and srkl",
    }
    report.fact("rows", shares[args.schedule])
    if not args.samples:
        return
    longest = longest_prompt(train, config.data.max_prompt_length) + answer
    if student is not None:
        _check_positions(student, longest, answer)
    groups = -(-rows // max(1, args.gen_tokens_per_batch // longest))
    text = (
        f"a sampled step: {rows:,} answers of at most {answer:,} tokens, in at most {groups:,} groups of "
        f"--gen-tokens-per-batch {args.gen_tokens_per_batch:,}, {-(-groups // ranks) * answer:,} passes of the student "
        "one after the other on a rank"
    )
    if student is not None and teacher is not None:
        sampling, training = 2 * student.parameters, 6 * student.parameters + 2 * teacher.parameters
        text += f"; at full length {sampling / (sampling + training):.0%} of its arithmetic"
    report.fact("", text)
    if student is not None:
        parts = sampling_bytes(config, settings, student)
        report.fact("", "per rank for it: " + ", ".join(f"{name} {size(count)}" for name, count in parts.items()))
    if groups < ranks:
        report.warn(
            f"the answers of a step make {groups:,} groups at --gen-tokens-per-batch {args.gen_tokens_per_batch:,}, "
            f"and there are {ranks:,} ranks: the others wait while these sample; lower it"
        )
    if config.teacher.teacher_cache is not None:
        report.fact("", "sampled rows are not in --teacher-cache: the whole teacher stays in memory beside it")


def _check_positions(student: ModelFacts, longest: int, answer: int) -> None:
    """longest: prompt and answer while it is sampled, before it is cut to --max-length."""
    positions = positions_of(student.config)
    if positions is not None and longest > positions:
        raise ValueError(
            f"--gen-max-new-tokens {answer}: with its prompt an answer may have {longest:,} tokens, and {student.path} "
            f"has {positions:,} positions; lower it"
        )


def sampling_bytes(config: TrainConfig, settings: DeepSpeedSettings, student: ModelFacts) -> dict[str, int]:
    """Of a rank while it samples: keys and values of the fullest group; under ZeRO-3 the whole copy."""
    args, parts = config.on_policy, {}
    if not args.samples:
        return parts
    if hasattr(student.text_config, "num_attention_heads"):
        tokens = max(args.gen_tokens_per_batch, config.data.max_length)
        parts["keys and values"] = tokens * key_value_bytes(student.text_config, settings.dtype)
    if settings.stage == 3:
        parts["whole copy"] = student.parameters * settings.dtype.itemsize
    return parts
