"""Flags: every spelling parses, the reference scripts parse, mistakes name the flag, the value and the remedy."""

import dataclasses
import math
import re
import subprocess
import sys
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flags
import foreign_flags
from arguments import (
    READ_BY,
    SHORTHANDS,
    CheckpointArguments,
    DataArguments,
    EvaluateArguments,
    EvaluateConfig,
    GenerateArguments,
    GenerateConfig,
    GenerationArguments,
    KDArguments,
    ModelArguments,
    OnPolicyArguments,
    TeacherArguments,
    TrainArguments,
    TrainConfig,
    hyper_parameters,
    parse_evaluate_arguments,
    parse_generate_arguments,
    parse_train_arguments,
    registered_objectives,
    unknown_objective,
)
from flags import Group, option
from flags import parse as parse_groups
from official_flags import TODI_KD, TODI_SFT

TRAIN_GROUPS = (
    *(ModelArguments, TeacherArguments, KDArguments, DataArguments, TrainArguments, GenerationArguments),
    OnPolicyArguments,
)
OF_EVALUATION = (CheckpointArguments, EvaluateArguments)
EVALUATE_GROUPS = (*OF_EVALUATION, GenerationArguments)
REQUIRED = ("--model-path", "student", "--data-dir", "data/dolly")

# The flags of the other reference scripts, as they stand there.
MINILLM_KD = """
    --base-path . --model-path checkpoints/gpt2-base/ --teacher-model-path results/gpt2-xlarge/ --ckpt-name gpt2-base
    --teacher-ckpt-name xlarge-sft --teacher-model-fp16 --n-gpu 16 --model-type gpt2 --gradient-checkpointing
    --data-dir data/dolly --num-workers 4 --dev-num 1000 --lr 0.0005 --batch-size 2 --eval-batch-size 8
    --gradient-accumulation-steps 1 --warmup-iters 0 --lr-decay-style cosine --weight-decay 1e-2 --clip-grad 1.0
    --epochs 20 --kd-ratio 0.5 --max-length 512 --max-prompt-length 256 --do-train --do-valid --eval-gen
    --save-interval -1 --eval-interval -1 --log-interval 4 --mid-log-num -1 --save results/kd --seed 20
    --seed-order 10 --deepspeed --deepspeed_config configs/deepspeed/ds_config.json --type kd
    --peft lora --peft-name lora --teacher-peft-name lora-13B --teacher-peft-path results/lora-13B
    --do-sample --top-k 0 --top-p 1.0 --temperature 1.0"""
DSKD_EVALUATE = """
    --base-path . --model-path model_hub/tinyllama --peft-path outputs/epoch10 --peft lora --n-gpu 4
    --model-type tinyllama --task eval_main --data-dir data/dolly --data-names dolly --num-workers 0 --dev-num -1
    --data-process-workers -1 --json-data --eval-batch-size 16 --max-length 512 --max-prompt-length 256 --do-eval
    --save-dir outputs --seed 10 --deepspeed --deepspeed_config configs/deepspeed/ds_config_bf16.json
    --do-sample --top-k 0 --top-p 1.0 --temperature 1.0"""
MINILLM_EVALUATE = """
    --base-path . --model-path results/gpt2/ --ckpt-name gpt2-base --n-gpu 1 --model-type gpt2 --data-dir data/dolly
    --data-names dolly --num-workers 0 --dev-num -1 --data-process-workers -1 --json-data --eval-batch-size 16
    --max-length 512 --max-prompt-length 256 --do-eval --save results/eval_main/ --seed 10 --deepspeed
    --deepspeed_config configs/deepspeed/ds_config_zero1_fp16.json --type eval_main
    --do-sample --top-k 0 --top-p 1.0 --temperature 1.0"""
# What the reference's training parser knows beside them. Each is accepted, or refused with what to use instead.
OTHER_REFERENCE_FLAGS = """
    n-nodes teacher-model-type model-parallel model-parallel-size no-value dropout-path-rate fp32 model-dtype load
    local_rank save-additional-suffix save-rollout eb-sample-times eval-tqdm report-logits only-save-projector debug
    processed-data-dir force-process force-process-demo train-num train-ratio dev-ratio gen-num prompt-type
    min-prompt-length bin-data txt-data prompt-data-dir pretrain-data-dir lm-data-dir eval-ppl eval-rw only-prompt
    total-iters train-iters-per-epoch seed-data seed-ppo seed-lm training-epochs attn-dtype loss-scale
    teacher-temperature label-smoothing adaptive-kl-alpha lr-decay-iters scheduler-name
    no-repeat-ngram-size repetition-penalty num-beams eval-gen-repeat-times projector-config-path projector-path
    projector-lr pretrained-projector pretrained-projector-lr vocab-alignment-path teacher-to-student-token-mapping
    teacher-to-student-id-mapping student-to-teacher-token-mapping student-to-teacher-id-mapping""".split()


def parse_train(*flags: str) -> TrainConfig:
    return parse_train_arguments([*REQUIRED, *flags])


def parse_evaluate(*flags: str) -> EvaluateConfig:
    return parse_evaluate_arguments([*REQUIRED, *flags])


def parse_generate(*flags: str) -> GenerateConfig:
    return parse_generate_arguments([*REQUIRED, "--save-dir", "out", *flags])


def train_flags(config: TrainConfig | EvaluateConfig | GenerateConfig) -> dict:
    """The values of all groups by name."""
    return {name: value for group in config[:-1] for name, value in dataclasses.asdict(group).items()}


def options_of(group: type, field: dataclasses.Field) -> list[str]:
    """Every spelling that should reach a field."""
    names = [field.name, *(alias.removeprefix("--") for alias in field.metadata.get("aliases", ()))]
    return sorted({f"--{spelling}" for name in names for spelling in (name, name.replace("_", "-"))})


def base_type(annotation: object) -> object:
    """`int | None` and `list[int]` -> int; a Literal stays."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is list else annotation


def valid_text(group: type, field: dataclasses.Field) -> str:
    """A valid value that is not the default's."""
    special = {
        "max_length": "300",
        "max_prompt_length": "100",
        "lr_min": "1e-06",
        "adakd_ratio_min": "0.05",
        "peft": "lora",
        **dict.fromkeys(("criterion", "kd_objective", "student_kd_objective"), "todi"),
    }
    if field.name in special:
        return special[field.name]
    kind = base_type(typing.get_type_hints(group)[field.name])
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in typing.get_args(kind) if choice != field.default)
    return {int: "3", float: "0.25", bool: str(not field.default).lower(), str: "some/text"}[kind]


FIELDS = [
    pytest.param(parse, group, field, option, id=f"{parse.__name__.removeprefix('parse_')}{option}")
    for parse, groups in (
        (parse_train, TRAIN_GROUPS),
        (parse_evaluate, EVALUATE_GROUPS),
        (parse_generate, (GenerateArguments,)),
    )
    for group in groups
    for field in dataclasses.fields(group)
    for option in options_of(group, field)
]


@pytest.mark.parametrize(("parse", "group", "field", "option"), FIELDS)
def test_every_field_parses_in_every_spelling_and_with_equals_sign(parse, group, field, option):
    text = valid_text(group, field)
    company = []
    if group is ModelArguments and field.name.startswith(("peft_", "model_bits")):
        company = ["--peft", "lora"]
    elif field.name in ("teacher_peft_path", "teacher_revision"):
        company = ["--teacher-model-path", "t"]
    elif group is OnPolicyArguments and field.name not in ("student_gen", *SHORTHANDS):
        company = ["--student-gen"]
        if field.name in READ_BY:
            company += ["--gen-schedule", READ_BY[field.name]]
    spaced, joined = parse(*company, option, text), parse(*company, f"{option}={text}")
    assert spaced == joined
    value = train_flags(spaced)[field.name]
    kind = base_type(typing.get_type_hints(group)[field.name])
    wanted = {int: int, float: float, bool: lambda word: word == "true"}.get(kind, str)(text)
    assert value in (wanted, [wanted])
    assert value != field.default
    assert spaced.ignored_flags == ()


@pytest.mark.parametrize(
    ("parse", "flag", "name"),
    [(parse_train, "--gradient-checkpointing", "gradient_checkpointing"), (parse_evaluate, "--do_sample", "do_sample")],
)
@pytest.mark.parametrize(("word", "value"), [(None, True), ("true", True), ("False", False), ("1", True)])
def test_switches_take_an_optional_value(parse, flag, name, word, value):
    assert train_flags(parse(flag, *([word] if word else [])))[name] is value


@pytest.mark.parametrize("flag", ["--no-packing", "--no_packing", "--packing=false"])
def test_a_switch_that_is_on_can_be_turned_off(flag):
    assert parse_train().data.packing
    assert not parse_train(flag).data.packing


# --- every field is read ---------------------------------------------------------------------------------------------

READ = re.compile(
    r"\b(?:\w*args|model|teacher|kd|data|train|generation|on_policy|evaluate|self)(?=\.(\w+))|getattr\(\w+, \"(\w+)"
)
READ_HERE = {"criterion", "kd_objective"}  # by KDArguments.objective
READ_HERE |= {"student_gen", "gen_schedule", "gkd", "distillm", "distillm2"}  # by OnPolicyArguments.schedule


@pytest.mark.parametrize(
    "group", dict.fromkeys((*TRAIN_GROUPS, *EVALUATE_GROUPS, GenerateArguments)), ids=lambda group: group.__name__
)
def test_every_field_is_read_somewhere(root, group):
    of_evaluation = {root / "code/evaluate.py", *(root / "code/evaluation").glob("*.py")}
    files = of_evaluation if group in OF_EVALUATION else {*(root / "code").rglob("*.py")} - of_evaluation
    texts = [path.read_text() for path in files if path.name != "arguments.py"]
    found = {name for text in texts for names in READ.findall(text) for name in names} | READ_HERE
    unread = [field.name for field in dataclasses.fields(group) if field.name not in found]
    assert not unread, f"flags that nothing reads: {unread}"


# --- reference scripts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "script"),
    [
        pytest.param(parse_train_arguments, TODI_KD, id="todi-kd"),
        pytest.param(parse_train_arguments, TODI_SFT, id="todi-sft"),
        pytest.param(parse_train_arguments, MINILLM_KD, id="minillm-kd"),
        pytest.param(parse_evaluate_arguments, DSKD_EVALUATE, id="dskd-evaluate-lora"),
        pytest.param(parse_evaluate_arguments, MINILLM_EVALUATE, id="minillm-evaluate"),
    ],
)
@pytest.mark.parametrize("spelling", ["as it stands", "underscores"])
def test_reference_scripts_parse(parse, script, spelling):
    words = script.split()
    if spelling == "underscores":
        words = [word[:2] + word[2:].replace("-", "_") if word.startswith("--") else word for word in words]
    config = parse(words)
    assert "n-gpu" in " ".join(config.ignored_flags).replace("_", "-")


def test_reference_values_arrive():
    config = parse_train_arguments(TODI_KD.split())
    assert (config.kd.objective, config.kd.kd_rate, config.kd.kd_temperature) == ("ToDi", 0.5, 2.0)
    assert (config.model.peft, config.model.peft_lora_r, config.model.peft_lora_alpha) == ("lora", 256, 8)
    assert (config.train.num_epochs, config.train.lr, config.data.dev_num) == (10, 1e-3, 1000)
    assert config.generation.do_sample
    assert config.teacher.teacher_peft_path == "teacher/epoch10"
    assert set(config.ignored_flags) == {
        *("--base-path", "--n-gpu", "--teacher-model-fp16", "--num-workers", "--task", "--do-train", "--do-valid")
    }


def test_the_names_of_the_first_reference_repository_mean_the_same():
    config = parse_train("--epochs", "20", "--kd-ratio", "0.25", "--kd-temp", "3")
    assert (config.train.num_epochs, config.kd.kd_rate, config.kd.kd_temperature) == (20, 0.25, 3.0)


@pytest.mark.parametrize("flag", OTHER_REFERENCE_FLAGS)
def test_other_reference_flags_are_accepted_or_refused_with_a_remedy(flag):
    switch = flag in "no-value fp32 eval-tqdm debug only-prompt force-process bin-data txt-data eval-ppl".split()
    try:
        parse_train(f"--{flag}", *([] if switch else ["1"]))
    except ValueError as error:
        assert "not supported; " in str(error), error


@pytest.mark.parametrize("flag", sorted(foreign_flags.REPLACED_FLAGS))
def test_replaced_flags_name_what_to_use(flag):
    with pytest.raises(ValueError, match=f"^--{flag}: not supported; ") as error:
        parse_train(f"--{flag}", "1")
    named = re.findall(r"--[\w-]+", str(error.value).split("; ", 1)[1])
    known = {option for group in TRAIN_GROUPS for f in dataclasses.fields(group) for option in options_of(group, f)}
    assert set(named) <= known


def test_ignored_flags_are_no_real_flags_of_training():
    fields = {f.name.replace("_", "-") for group in TRAIN_GROUPS for f in dataclasses.fields(group)}
    ignored_in_evaluation_only = {"peft", "eval-gen", "data-process-workers"}
    ignored_in_evaluation_only |= {"model-type", "ckpt-name", "teacher-ckpt-name"}
    assert foreign_flags.IGNORED_FLAGS & fields == ignored_in_evaluation_only
    assert not foreign_flags.IGNORED_FLAGS & set(foreign_flags.REPLACED_FLAGS)


def test_launchers_flags_are_accepted_silently():
    for parse in (parse_train, parse_evaluate):
        assert parse("--local_rank=3", "--deepspeed", "--deepspeed-config", "x.json").ignored_flags == ()
    assert parse_train("--deepspeed", "--deepspeed_config", "x.json").train.deepspeed_config == "x.json"


@pytest.mark.parametrize("words", [["--deepspeed", "x.json"], ["--deepspeed=x.json"]], ids=" ".join)
def test_a_file_after_deepspeed_is_no_configuration(words):
    with pytest.raises(
        ValueError, match=r"^--deepspeed .*x\.json: takes no value; pass the file with --deepspeed_config"
    ):
        parse_train(*words)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "misspelt", "meant"),
    [
        (parse_train, "--kd_objectives", "--kd-objective"),
        (parse_train, "--lrr", "--lr"),
        (parse_train, "--gradient-acumulation-steps", "--gradient-accumulation-steps"),
        (parse_evaluate, "--sede", "--seed"),
    ],
)
@pytest.mark.parametrize("form", ["{} 1", "{}=1"])
def test_a_misspelt_flag_is_refused_with_a_suggestion(parse, misspelt, meant, form):
    with pytest.raises(ValueError, match=f"^{misspelt}: unknown flag; did you mean {meant}\\?$"):
        parse(*form.format(misspelt).split())


def test_flags_are_not_abbreviated():
    with pytest.raises(ValueError, match="--gradient-accumulation: unknown flag"):
        parse_train("--gradient-accumulation", "2")


@pytest.mark.parametrize(
    ("parse", "words", "said"),
    [
        (parse_train, "--learning_rate 1", "--learning_rate: a flag of other trainers; here it is --lr"),
        (parse_train, "--resume-from-checkpoint x", "here it is --resume"),
        (parse_train, "--run-name x", "--run-name: not supported; logs are in --save-dir"),
        (parse_train, "--bf16", "--bf16: not supported; pass --precision bf16 (PRECISION=bf16 in front"),
        (parse_evaluate, "--bf16", "--bf16: a flag of other trainers; here it is --dtype bfloat16"),
        (parse_evaluate, "--fp32", "here it is --dtype float32"),
        (
            parse_train,
            "--kd-rate 0.5 KD_OBJ=rkl",
            "KD_OBJ=rkl: a variable behind the command; put it in front: ",
        ),
        (parse_train, "--base-path KD_OBJ=rkl", "KD_OBJ=rkl: a variable behind the command"),
    ],
)
def test_what_other_programs_take_is_answered_with_what_to_use(parse, words, said):
    with pytest.raises(ValueError) as error:
        parse(*words.split())
    assert said in str(error.value)


def test_flags_of_other_trainers_lead_to_flags_that_parse():
    known = {f.name.replace("_", "-") for group in (*TRAIN_GROUPS, *OF_EVALUATION) for f in dataclasses.fields(group)}
    renamed = {theirs: ours.split()[0] for theirs, ours in foreign_flags.RENAMED_FLAGS.items()}
    assert set(renamed.values()) <= known
    assert not renamed.keys() & (known | foreign_flags.IGNORED_FLAGS)


def test_an_unknown_flag_like_no_other_points_to_help():
    with pytest.raises(ValueError, match="--xyzzy: unknown flag; see --help"):
        parse_train("--xyzzy")


@pytest.mark.parametrize("flag", ["--kd-rate", "--lr", "--packing"])
def test_evaluation_suggests_only_what_resembles(flag):
    with pytest.raises(ValueError, match=f"{flag}: unknown flag; see --help"):
        parse_evaluate(flag, "1")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("outputs/x", id="alone"),
        pytest.param("--save-dir my folder", id="unquoted space"),
        pytest.param("--base-path . --save-dir my folder", id="unquoted space after an ignored flag"),
        pytest.param("--do-train -lr 5", id="one dash"),
    ],
)
def test_a_value_without_a_flag_is_refused(words):
    with pytest.raises(ValueError, match=r"folder|outputs/x|-lr"):
        parse_train(*words.split())


@pytest.mark.parametrize(
    ("argv", "missing"),
    [([], "--model-path"), (["--model-path", "m"], "--data-dir"), (["--data-dir", "d"], "--model-path")],
)
@pytest.mark.parametrize("parse", [parse_train_arguments, parse_evaluate_arguments])
def test_required_flags(parse, argv, missing):
    if parse is parse_evaluate_arguments and missing == "--data-dir":
        assert parse(argv).evaluate.data_dir is None  # the run's own
        return
    with pytest.raises(ValueError, match=f"required.*{missing}"):
        parse(argv)


@pytest.mark.parametrize(
    ("parse", "groups"), [(parse_train_arguments, TRAIN_GROUPS), (parse_evaluate_arguments, EVALUATE_GROUPS)]
)
def test_help_has_each_flag_once_in_its_group(capsys, monkeypatch, parse, groups):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as exit_code:
        parse(["--help"])
    assert exit_code.value.code == 0
    out = capsys.readouterr().out
    for group, section in zip(groups, out.split("\n\n")[2:], strict=True):
        assert section.startswith(group.__doc__.splitlines()[0])
        wanted = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(group)]
        assert re.findall(r"^  (--[\w-]+)", section, re.MULTILINE) == wanted
    assert "default: None" not in out and max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize("entry", ["distillation", "evaluate", "compare", "judge", "doctor"])
@pytest.mark.parametrize(
    ("words", "code", "said"), [(["--help"], 0, "usage: python code/{entry}.py "), (["--lrr", "1"], 2, "error: ")]
)
def test_help_and_a_wrong_flag_are_answered_without_torch(root, entry, words, code, said):
    run = timed_imports(root, entry, *(() if code == 0 else REQUIRED), *words)
    assert run.returncode == code and said.format(entry=entry) in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kd-objective", "kl"], "--kd-objective kl: unknown objective; did you mean fkl or rkl? choose one of abkd"),
        (["--kd-objective", "adakd+tody"], "--kd-objective adakd+tody: unknown objective; did you mean todi? choose"),
        (["--distillm2", "--student-kd-objective", "x"], "--student-kd-objective x: unknown objective; choose one of"),
    ],
)
def test_an_unknown_objective_is_refused_without_torch(root, words, said):
    run = timed_imports(root, "distillation", *REQUIRED, *words)
    assert run.returncode == 2 and f"error: {said}" in run.stderr


def test_each_objective_is_listed_once_by_its_own_name():
    message = unknown_objective("ToDy", registered_objectives())
    assert "did you mean todi?" in message
    listed = message.partition("choose one of ")[2].split(", ")
    assert listed == [own for own, *_ in registered_objectives()] and not {"ToDi", "sft", "forward_kl"} & set(listed)


def timed_imports(root, entry, *words) -> subprocess.CompletedProcess:
    """Runs an entry, which must not import anything slow."""
    command = [sys.executable, "-X", "importtime", str(root / f"code/{entry}.py"), *words]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not re.search(r"\| +(torch|transformers|numpy|datasets|deepspeed)$", run.stderr, re.MULTILINE)
    return run


OUTSIDE = {"of at least": -1, "above": 0, "at most": 1, "below": 0}  # of a bound


@pytest.mark.parametrize(
    "group", dict.fromkeys((*TRAIN_GROUPS, *EVALUATE_GROUPS, GenerateArguments)), ids=lambda group: group.__name__
)
def test_numbers_outside_their_bounds_name_flag_value_and_remedy(group):
    parsers = {GenerateArguments: parse_generate, **dict.fromkeys(OF_EVALUATION, parse_evaluate)}
    parse = parsers.get(group, parse_train)
    for field in dataclasses.fields(group):
        flag, kind = f"--{field.name.replace('_', '-')}", base_type(typing.get_type_hints(group)[field.name])
        values = [kind(limit + OUTSIDE[word]) for word, limit in field.metadata["bounds"].items()]
        values += [float(word) for word in ("nan", "inf", "-inf") if kind is float]
        for value in values:
            if value not in field.metadata["also"]:
                with pytest.raises(ValueError, match=f"^{flag} {value}: pass a (number .*[0-9]|finite number)"):
                    parse(f"{flag}={value}")


@pytest.mark.parametrize(
    ("flag", "value", "remedy"),
    [
        ("--kd-rate", 1.5, "pass a number of at least 0 and at most 1"),
        ("--js-beta", 0.0, "pass a number above 0 and below 1"),
        ("--train-num", 0, "pass a number of at least 1, or -1 for all of them"),
        ("--weight-decay", math.inf, "pass a finite number"),
        ("--max-length", 256, "pass more than --max-prompt-length 256, or no response would fit"),
        ("--lr-min", 1.0, "pass no more than --lr 0.0005"),
        ("--peft-lora-r", 4, "add --peft lora, or all weights are trained"),
        ("--teacher-peft-path", "x", "name the adapter's base model with --teacher-model-path"),
        ("--teacher-revision", "x", "name its hub id with --teacher-model-path"),
        ("--mixed-alpha", 0.25, "add --student-gen, or all rows are data"),
    ],
)
def test_remedies(flag, value, remedy):
    with pytest.raises(ValueError, match=f"^{flag} {value}: {remedy}$"):
        parse_train(flag, str(value))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gkd --distillm", "--gkd --distillm: they contradict each other; pass one of them"),
        ("--gkd --capacity 3", "--capacity 3: only --gen-schedule adaptive reads it; drop it"),
        ("--gkd --pair-weight .5", "--pair-weight 0.5: only --gen-schedule pair reads it; drop it"),
        ("--gkd --gen-schedule adaptive", "--gen-schedule adaptive: --gkd means --gen-schedule mixed; drop one of"),
        ("--type adaptive-srkl", "--type adaptive-srkl: not supported; choose the rows with --student-gen"),
        ("--type=mixed-fkl", "--type mixed-fkl: not supported; .*--gen-schedule adaptive .short: --distillm. or mixed"),
        ("--gen-num-beams 4", "--gen-num-beams 4: not supported; training answers are sampled, without beams"),
    ],
)
def test_rows_that_would_not_be_what_was_asked_for(words, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_train(*words.split())


def test_flags_of_the_on_policy_releases():
    words = (
        "--student-gen --gen-schedule adaptive --gen-num-beams 1 --gen-top-p 1.0 --init-threshold 0.0 --loss-eps 0.1"
    )
    config = parse_train(*words.split(), "--capacity", "1000", "--kd-ratio", "1.0", "--type", "kd", "--local_rank", "3")
    assert (config.on_policy.schedule, config.kd.kd_rate) == ("adaptive", 1.0)
    assert config.ignored_flags == ("--gen-num-beams", "--type")
    assert parse_train("--gkd", "--gkd-alpha", "1").on_policy == parse_train("--gkd", "--lmbda", "1").on_policy
    assert not parse_train("--gkd", "--lmbda", "0").on_policy.samples
    assert (parse_train("--distillm2").kd.objective, parse_train().kd.objective) == ("sfkl", "cross_entropy")
    assert parse_train("--distillm2", "--kd-objective", "fkl").kd.objective == "fkl"


def test_evaluation_needs_room_for_an_answer():
    with pytest.raises(ValueError, match="--max-length 40: pass more than --max-prompt-length 64"):
        parse_evaluate("--max-length", "40", "--max-prompt-length", "64")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--batch-size", "2.5"),
        ("--lr", "fast"),
        ("--peft", "prefix"),
        ("--lr-decay-style", "exponential"),
        ("--do-sample", "maybe"),
        ("--model-path", None),
    ],
)
def test_values_of_the_wrong_type_name_the_flag(flag, value):
    with pytest.raises(ValueError, match=flag):
        parse_train(flag, *([value] if value else []))


def test_a_seed_is_named_once():
    assert parse_evaluate("--seeds", "10", "20").evaluate.seed == [10, 20]
    with pytest.raises(ValueError, match=r"--seed \[10, 10\]: "):
        parse_evaluate("--seed", "10", "10")


def test_warm_up_is_given_once():
    with pytest.raises(ValueError, match=r"--warmup-ratio 0.1: .*--warmup-iters 5"):
        parse_train("--warmup-iters", "5", "--warmup-ratio", "0.1")


# --- objective -------------------------------------------------------------------------------------------------------


def test_hyper_parameters_are_those_of_the_objectives():
    """They are read from the text of the files; here they are compared with the imported classes."""
    from criterions import build_criterion, objective_names
    from criterions.base import objectives

    assert sorted(registered_objectives()) == sorted(objectives())
    declared = {}
    for cls in {base for name in objective_names() for base in type(build_criterion(name, KDArguments())).__mro__}:
        for name, annotation in vars(cls).get("__annotations__", {}).items():
            if isinstance(vars(cls).get(name), dataclasses.Field):
                declared[name] = annotation, vars(cls)[name].default, vars(cls)[name].metadata
    hints = typing.get_type_hints(KDArguments)
    assert declared == {name: (hints[name], field.default, field.metadata) for name, _, field in hyper_parameters()}
    for name in objective_names():
        criterion = build_criterion(name, KDArguments())
        assert all(getattr(criterion, name) == declared[name][1] for name in criterion.hyper_parameters)


@pytest.mark.parametrize(
    ("line", "error", "said"),
    [
        ("power: float = option(0.5,, 'text')", SyntaxError, r"mine\.py, line 2"),
        ("power: float = option(1 / 3, 'text')", ValueError, r"mine\.py: an option takes literals"),
        ("power: float = option(0.5, atleast=0)", ValueError, r"mine\.py: an option takes literals.*'atleast'"),
        ("power: float = option(0.5)\n    power: float = option(0.5)", ValueError, r"mine\.py: power: .*another name"),
        ("kd_rate: float = option(0.5)", ValueError, r"mine\.py: kd_rate: there is such a flag already"),
    ],
)
def test_an_option_that_cannot_become_a_flag_is_refused_with_its_file(monkeypatch, tmp_path, line, error, said):
    (tmp_path / "criterions").mkdir()
    (tmp_path / "criterions/mine.py").write_text(f"class Mine(Criterion):\n    {line}\n")
    monkeypatch.setattr("arguments.__file__", str(tmp_path / "arguments.py"))
    with pytest.raises(error, match=said):
        hyper_parameters()


@pytest.mark.parametrize(
    ("criterion", "kd_objective", "objective"),
    [
        (None, None, "cross_entropy"),
        ("cross_entropy", None, "cross_entropy"),
        ("cross_entropy", "sft", "sft"),
        ("various_divergence", None, "forward_kl"),
        ("various_divergence", "ToDi", "ToDi"),
        (None, "adakd+todi", "adakd+todi"),
        ("todi", None, "todi"),
        ("todi", "todi", "todi"),
    ],
)
def test_criterion_and_objective_together_name_an_objective(criterion, kd_objective, objective):
    assert KDArguments(criterion=criterion, kd_objective=kd_objective).objective == objective


@pytest.mark.parametrize(
    ("criterion", "kd_objective"), [("cross_entropy", "fkl"), ("dual_space_kd", "forward_kl"), ("todi", "fkl")]
)
def test_criterion_and_objective_must_not_contradict(criterion, kd_objective):
    with pytest.raises(ValueError, match=f"--criterion {criterion} --kd-objective {kd_objective}: .*contradict"):
        parse_train("--criterion", criterion, "--kd-objective", kd_objective)


# --- any words -------------------------------------------------------------------------------------------------------

FLAGS = [option for group in TRAIN_GROUPS for f in dataclasses.fields(group) for option in options_of(group, f)]


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.sampled_from(FLAGS) | st.text(max_size=8) | st.integers().map(str), max_size=5))
def test_no_words_raise_anything_but_value_error(words):
    """Whatever stands on the command line ends in a configuration or in one message about it."""
    if {"-h", "--help"} & set(words):
        return
    try:
        config = parse_train(*words)
    except ValueError as error:
        assert str(error)
    else:
        assert isinstance(config, TrainConfig)


def test_negative_numbers_are_values():
    config = parse_train("--train-num", "-1", "--ab-alpha", "-0.5", "--loss-scale", "-1")
    assert (config.data.train_num, config.kd.ab_alpha) == (-1, -0.5)
    assert config.ignored_flags == ("--loss-scale",)


def test_positional_arguments(capsys):
    group = dataclasses.make_dataclass(
        "Runs",
        [("run", list[str], option(help="Runs.", positional=True)), ("name", str, option("x"))],
        bases=(Group,),
        frozen=True,
    )
    for words in (["a", "b", "--name", "c"], ["--name", "c", "a", "b"]):
        assert dataclasses.astuple(parse_groups(words, [group], "p.py")[0]) == (["a", "b"], "c")
    with pytest.raises(ValueError, match=r"required: RUN$"):
        parse_groups([], [group], "p.py")
    with pytest.raises(SystemExit):
        parse_groups(["--help"], [group], "p.py")
    assert "usage: python p.py RUN ... [FLAGS]" in capsys.readouterr().out


@pytest.mark.parametrize("group", [TrainArguments(), KDArguments()])
def test_groups_are_frozen(group):
    with pytest.raises(dataclasses.FrozenInstanceError):
        group.lr = 1.0


@pytest.mark.parametrize(("name", "aliases"), [("lr", ()), ("rate", ("--epochs",))])
def test_an_option_with_the_name_of_another_flag_is_refused(name, aliases):
    fields = [(name, float, flags.option(1.0, "Own.", aliases=aliases))]
    group = dataclasses.make_dataclass("Own", fields, bases=(flags.Group,))
    with pytest.raises(ValueError, match="is a flag already; give the option another name or alias"):
        flags.parse([], [group, TrainArguments], "program")
