"""The shell scripts without a model: the command that each prints in a dry run, read by the parser it is meant for.

Also: errors name the variable and the remedy, commands run with spaces in paths and on two processes, a family can be
added as docs/extending.md says, and DeepSpeed accepts every shipped configuration.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from arguments import TrainArguments, parse_evaluate_arguments, parse_train_arguments

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.relative_to(ROOT) for path in ROOT.glob("scripts/**/*.sh"))
CONFIGS = sorted((ROOT / "configs/deepspeed").glob("*.json"))
SFT = [str(path) for path in SCRIPTS if path.name.startswith("sft_")]
KD = [str(path) for path in SCRIPTS if path.name.startswith("kd_")]
GPT2_SFT, GPT2_KD = "scripts/gpt2/sft_gpt2_base.sh", "scripts/gpt2/kd_gpt2_base.sh"
TINYLLAMA_KD, TINY_KD = "scripts/tinyllama/kd_tinyllama.sh", "scripts/tiny/kd_student.sh"
EVAL, EVAL_LORA = "scripts/eval/run_eval.sh", "scripts/eval/run_eval_lora.sh"
# All that a script inherits from the tests' environment: the scripts' own variables must not leak in.
INHERITED = ("PATH", "HOME", "LD_LIBRARY_PATH")
DEEPSPEED = ["-m", "deepspeed.launcher.runner"]
TORCHRUN = ["-m", "torch.distributed.run"]


def fake_gpus(folder, count):
    """A PATH on which nvidia-smi lists this many GPUs."""
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {n}: Some GPU (UUID: GPU-{n})'\n" for n in range(count)))
    tool.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture(autouse=True, scope="module")
def no_gpu(tmp_path_factory):
    """The machine that runs the tests does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", fake_gpus(tmp_path_factory.mktemp("no_gpu"), 0))
        yield


def run_bash(*words, cwd=ROOT, **variables):
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment = inherited | {"PYTHON": sys.executable} | {name: str(value) for name, value in variables.items()}
    command = ["bash", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def run_script(script, *arguments, cwd=ROOT, **variables):
    return run_bash(ROOT / script, *arguments, cwd=cwd, **variables)


def dry_run(script, *arguments, **variables):
    """The printed command: (launcher words, entry point, flags)."""
    result = run_script(script, *arguments, **({"DRY_RUN": 1, "GPUS": 4} | variables))
    assert result.returncode == 0, result.stderr
    words = shlex.split(result.stdout.splitlines()[-1])
    entry = next(n for n, word in enumerate(words) if word.startswith("code/"))
    return words[:entry], words[entry], words[entry + 1 :]


def train_config(script, *arguments, **variables):
    _, entry, flags = dry_run(script, *arguments, **variables)
    assert entry == "code/distillation.py"
    return parse_train_arguments(flags)


def eval_config(script, *arguments, **variables):
    _, entry, flags = dry_run(script, *arguments, **variables)
    assert entry == "code/evaluate.py"
    return parse_evaluate_arguments(flags)


def settings(config, fields):
    """The values of `group.field` names."""
    return {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in fields}


@pytest.fixture
def copied_repository(tmp_path):
    """The scripts in a folder with a space in its name; the entry point there prints what it was given."""
    root = tmp_path / "a copy"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "code").mkdir()
    (root / "code/distillation.py").write_text(
        "import json, os, sys\n"
        "line = json.dumps([os.environ.get('RANK'), os.environ.get('WORLD_SIZE'), sys.argv[1:]])\n"
        "sys.stdout.write(line + '\\n')  # one write: print makes two, which another process can come between\n"
    )
    return root


# ---- every script ----------------------------------------------------------------------------------------------------


def test_scripts_are_valid_bash():
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    subprocess.run(["shellcheck", "-x", "-P", ".", *map(str, SCRIPTS)], cwd=ROOT, check=True)


@pytest.mark.parametrize("script", SFT + KD)
def test_training_script_flags_parse(script):
    config = train_config(script)
    assert config.ignored_flags == ()
    assert config.train.precision == "auto" or Path(ROOT, config.train.deepspeed_config) in CONFIGS
    assert config.kd.objective == ("cross_entropy" if script in SFT else "todi")
    assert (config.teacher.teacher_model_path is None) == (script in SFT)


def test_appended_flags_win_and_misspelt_ones_are_refused():
    config = train_config(GPT2_KD, "--lr", "0.25", "--attn-implementation", "my kernel")
    assert (config.train.lr, config.model.attn_implementation) == (0.25, "my kernel")
    with pytest.raises(ValueError, match=r"--kd-tempreature: unknown flag; did you mean --kd-temperature\?"):
        train_config(GPT2_KD, "--kd-tempreature", 2)


# ---- families --------------------------------------------------------------------------------------------------------

DOLLY = {"train.global_batch_size": 32, "train.eval_gen": True, "train.precision": "auto", "generation.do_sample": True}
GPT2 = DOLLY | {"train.num_epochs": 20, "train.lr": 5e-4, "train.batch_size": 4, "model.peft": None}
LORA = {"model.peft": "lora", "model.peft_lora_r": 256, "model.peft_lora_alpha": 8, "model.peft_lora_dropout": 0.1}
LLAMA = DOLLY | LORA | {"train.num_epochs": 10, "train.lr": 1e-3}
XL_RUN, LLAMA_RUN = "outputs/gpt2/gpt2-xlarge/sft", "outputs/llama2/llama2-7b-hf/sft"
RECIPES = {
    GPT2_SFT: GPT2 | {"model.model_path": "model_hub/gpt2/gpt2-base", "train.eval_batch_size": 32},
    "scripts/gpt2/sft_gpt2_xlarge.sh": GPT2 | {"model.ckpt_name": "gpt2-xlarge", "train.eval_batch_size": 16},
    GPT2_KD: GPT2
    | {"model.model_type": "gpt2", "model.ckpt_name": "gpt2-base", "teacher.teacher_ckpt_name": "gpt2-xlarge"}
    | {"teacher.teacher_model_path": XL_RUN, "teacher.teacher_peft_path": None}
    | {"kd.kd_rate": 0.5, "kd.kd_temperature": 2},
    "scripts/tinyllama/sft_tinyllama.sh": LLAMA | {"train.batch_size": 8, "model.gradient_checkpointing": False},
    "scripts/tinyllama/sft_teacher_llama2.sh": LLAMA
    | {"train.batch_size": 8, "model.gradient_checkpointing": True, "model.model_type": "llama2"},
    TINYLLAMA_KD: LLAMA
    | {"train.batch_size": 4, "model.gradient_checkpointing": True, "model.ckpt_name": "tinyllama-1.1b-3T"}
    | {"teacher.teacher_model_path": "model_hub/llama2/llama2-7b-hf", "teacher.teacher_peft_path": LLAMA_RUN},
    TINY_KD: {"train.deepspeed_config": "configs/deepspeed/ds_config_zero0.json", "train.global_batch_size": None}
    | {"data.max_length": 192, "data.max_prompt_length": 128, "data.data_dir": "data/sample", "data.train_num": 600},
}


@pytest.mark.parametrize("script", RECIPES)
def test_recipe(script):
    assert settings(train_config(script), RECIPES[script]) == RECIPES[script]


def test_tiny_scripts_run_on_the_cpu():
    assert dry_run(TINY_KD, GPUS="")[0] == [sys.executable]


@pytest.mark.parametrize("objective", ["cross_entropy", "sft"])
def test_cross_entropy_in_a_kd_script_is_the_sft_run(objective):
    assert train_config(GPT2_KD, KD_OBJ=objective) == train_config(GPT2_SFT)
    assert train_config(TINY_KD, KD_OBJ=objective) == train_config("scripts/tiny/sft_student.sh", KD_OBJ="todi")


def test_the_documented_family(copied_repository):
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/extending.md").read_text(), flags=re.DOTALL)
    (family,) = [block for block in blocks if "family.sh <<" in block]
    assert run_bash("-euc", family, cwd=copied_repository).returncode == 0
    scripts = copied_repository / "scripts/qwen2.5"
    teacher, student, kd = (
        train_config(scripts / f"{name}.sh") for name in ("sft_qwen2.5_7b", "sft_qwen2.5_0.5b", "kd_qwen2.5_0.5b")
    )
    assert (teacher.model.model_path, student.model.model_path) == ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-0.5B")
    assert (teacher.model.gradient_checkpointing, student.model.gradient_checkpointing) == (True, False)
    assert (kd.model, kd.data, kd.train) == (student.model, student.data, student.train)
    assert (kd.kd.objective, kd.teacher.teacher_model_path) == ("todi", "outputs/qwen2.5/qwen2.5-7b/sft")
    lora = next(block for block in blocks if "LORA_RANK" in block)
    with (scripts / "family.sh").open("r+") as file:
        facts, recipe = file.read().split("\nBATCH_SIZE", 1)
        facts = "".join(line for line in facts.splitlines(True) if not line.startswith("TEACHER_MODEL_PATH"))
        file.seek(0)
        file.write(f"{facts}\n{lora}\nBATCH_SIZE{recipe}")
    kd = train_config(scripts / "kd_qwen2.5_0.5b.sh")
    assert (kd.model.peft, kd.model.peft_lora_r, kd.teacher.teacher_model_path) == ("lora", 64, "Qwen/Qwen2.5-7B")
    assert kd.teacher.teacher_peft_path == "outputs/qwen2.5/qwen2.5-7b/sft"


# ---- variables -------------------------------------------------------------------------------------------------------

VALUES = {  # a field of each variable's flag, and a value that no script sets
    "CKPT_TYPE": ("model.model_type", "family"),
    "CKPT_NAME": ("model.ckpt_name", "name"),
    "CKPT_PATH": ("model.model_path", "org/model"),
    "LORA_RANK": ("model.peft_lora_r", 16),
    "LORA_ALPHA": ("model.peft_lora_alpha", 5),
    "LORA_DROPOUT": ("model.peft_lora_dropout", 0.25),
    "PEFT_PATH": ("model.peft_path", "adapter"),
    "GRADIENT_CHECKPOINTING": ("model.gradient_checkpointing", True),
    "TEACHER_MODEL_NAME": ("teacher.teacher_ckpt_name", "teacher"),
    "TEACHER_MODEL_PATH": ("teacher.teacher_model_path", "org/teacher"),
    "TEACHER_PEFT_PATH": ("teacher.teacher_peft_path", "org/adapter"),
    "TEACHER_CACHE": ("teacher.teacher_cache", "outputs/with a space"),
    "KD_OBJ": ("kd.kd_objective", "adakd"),
    "KD_RATE": ("kd.kd_rate", 0.9),
    "KD_TEMP": ("kd.kd_temperature", 3),
    "ADAKD_BASE": ("kd.adakd_base", "fkl"),
    "DATA_DIR": ("data.data_dir", "data/with a space"),
    "TRAIN_NUM": ("data.train_num", 100),
    "DEV_NUM": ("data.dev_num", 50),
    "MAX_LENGTH": ("data.max_length", 1024),
    "MAX_PROMPT_LENGTH": ("data.max_prompt_length", 64),
    "BATCH_SIZE": ("train.batch_size", 1),
    "EVAL_BATCH_SIZE": ("train.eval_batch_size", 3),
    "TOKENS_PER_MICRO_BATCH": ("train.tokens_per_micro_batch", 4096),
    "GLOBAL_BATCH": ("train.global_batch_size", 64),
    "GRAD_ACC": ("train.gradient_accumulation_steps", 7),
    "SAVE_DIR": ("train.save_dir", "/tmp/lr=1"),  # ends as a switch in flags.txt does
    "EPOCH": ("train.num_epochs", 3),
    "TOTAL_ITERS": ("train.total_iters", 60),
    "LR": ("train.lr", 0.002),
    "LR_MIN": ("train.lr_min", 0),
    "LR_DECAY_STYLE": ("train.lr_decay_style", "noam"),
    "WARMUP_RATIO": ("train.warmup_ratio", 0.1),
    "WEIGHT_DECAY": ("train.weight_decay", 0.1),
    "CLIP_GRAD": ("train.clip_grad", 0),
    "SEED": ("train.seed", 20),
    "LOG_INTERVAL": ("train.log_interval", 1),
    "SAVE_INTERVAL": ("train.save_interval", 2),
    "EVAL_INTERVAL": ("train.eval_interval", 4),
    "KEEP_BEST": ("train.keep_best_n_checkpoints", -1),
    "EVAL_GEN": ("train.eval_gen", False),
    "PRECISION": ("train.precision", "fp16"),
    "DS_CONFIG": ("train.deepspeed_config", "my own.json"),
    "DO_SAMPLE": ("generation.do_sample", False),
    "TOP_P": ("generation.top_p", 0.9),
    "TOP_K": ("generation.top_k", 50),
    "TEMPERATURE": ("generation.temperature", 0.7),
}


def flags_table():
    """The runs of each variable in flags.txt."""
    lines = (ROOT / "scripts/lib/flags.txt").read_text().splitlines()
    return {line.split()[0]: line.split()[2:] for line in lines if not line.startswith("#")}


@pytest.mark.parametrize("script", [GPT2_KD, GPT2_SFT])
@pytest.mark.parametrize("left_out", [{"GLOBAL_BATCH", "GRAD_ACC"}, {"TOKENS_PER_MICRO_BATCH"}])
def test_every_variable_of_training(script, left_out):
    run = "kd" if script == GPT2_KD else "sft"
    expected = {name: VALUES[name] for name, runs in flags_table().items() if run in runs and name not in left_out}
    variables = {name: int(value) if isinstance(value, bool) else value for name, (_, value) in expected.items()}
    config = train_config(script, **variables)
    assert settings(config, [field for field, _ in expected.values()]) == dict(expected.values())
    if run == "sft":  # the same environment may distil later
        assert config == train_config(script, **{name: VALUES[name][1] for name in ("KD_OBJ", "KD_RATE")} | variables)


def test_another_count_replaces_the_recipes_examples_per_step():
    for name in ("GRAD_ACC", "TOKENS_PER_MICRO_BATCH"):
        assert train_config(GPT2_KD, **{name: 4096}).train.global_batch_size is None


def test_empty_variables():
    config = train_config(TINYLLAMA_KD, TEACHER_PEFT_PATH="", LORA_RANK=0, LR="")
    assert (config.teacher.teacher_peft_path, config.model.peft, config.train.lr) == (None, None, 1e-3)


# ---- launchers -------------------------------------------------------------------------------------------------------

HIDDEN = ["env", "CUDA_VISIBLE_DEVICES=", "DS_ACCELERATOR=cpu"]
LOCAL = ["--master_addr", "127.0.0.1", "--master_port", "1234"]
NODES = ["--nnodes", "2", "--node_rank", "1", "--nproc_per_node", "4"]
LAUNCHERS = {  # GPUs of the machine, variables, what starts the processes
    "no GPU": (0, {}, [sys.executable]),
    "CPU": (2, {"DEVICE": "cpu"}, [*HIDDEN, sys.executable]),
    "no process for a GPU": (2, {"GPUS": 0}, [*HIDDEN, sys.executable]),
    "two on a CPU": (0, {"DEVICE": "cpu", "GPUS": 2}, [sys.executable, *TORCHRUN, "--nproc_per_node", "2", *LOCAL]),
    "all GPUs": (3, {}, [sys.executable, *DEEPSPEED, "--num_gpus", "3", "--master_port", "1234"]),
    "some GPUs": (3, {"GPUS": 2}, [sys.executable, *DEEPSPEED, "--num_gpus", "2", "--master_port", "1234"]),
    "chosen": (3, {"CUDA_VISIBLE_DEVICES": "0,2"}, [sys.executable, *TORCHRUN, "--nproc_per_node", "2", *LOCAL]),
    "hidden": (3, {"CUDA_VISIBLE_DEVICES": ""}, [sys.executable]),
    "two nodes": (
        4,
        {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "node0"},
        [sys.executable, *TORCHRUN, *NODES, "--master_addr", "node0", "--master_port", "1234"],
    ),
    "nodes agree on the port": (
        4,
        {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "node0", "MASTER_PORT": ""},
        [sys.executable, *TORCHRUN, *NODES, "--master_addr", "node0", "--master_port", "29500"],
    ),
}


@pytest.mark.parametrize("case", LAUNCHERS)
def test_launcher(tmp_path, case):
    gpus, variables, launcher = LAUNCHERS[case]
    variables = {"GPUS": "", "MASTER_PORT": 1234, "PATH": fake_gpus(tmp_path, gpus)} | variables
    assert dry_run(GPT2_SFT, **variables)[0] == launcher


def test_several_nodes_with_a_hostfile(tmp_path):
    hostfile = tmp_path / "my hosts"
    hostfile.write_text("# two nodes\nworker-1 slots=8\n\nworker-2 slots=8\n")
    launcher, _, flags = dry_run(GPT2_SFT, GPUS=8, HOSTFILE=hostfile, MASTER_ADDR="worker-1", MASTER_PORT=1234)
    assert launcher == [
        sys.executable, *DEEPSPEED, "--hostfile", str(hostfile), "--num_nodes", "2", "--num_gpus", "8",
        "--master_port", "1234", "--master_addr", "worker-1",
    ]  # fmt: skip
    assert flags == dry_run(GPT2_SFT)[2]


@pytest.mark.parametrize("gpus", [1, 4])
def test_the_doctor_gets_the_flags_of_the_run(gpus):
    launcher, entry, flags = dry_run(GPT2_KD, DOCTOR=1, GPUS=gpus)
    assert launcher == ["env", f"WORLD_SIZE={gpus}", f"LOCAL_WORLD_SIZE={gpus}", sys.executable]
    assert (entry, flags) == ("code/doctor.py", dry_run(GPT2_KD, GPUS=gpus)[2])


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EPOCHS": 1}, "EPOCHS=1: no variable of the scripts; did you mean EPOCH?"),
        ({"KD_TEMPERATURE": 3}, "KD_TEMPERATURE=3: no variable of the scripts; did you mean KD_TEMP?"),
        ({"GRADIENT_CHECKPOINTING": "yes"}, "GRADIENT_CHECKPOINTING=yes: pass 1 or 0"),
        ({"GPUS": "0,1"}, "GPUS=0,1: pass a whole number"),
        ({"DEVICE": "tpu"}, "DEVICE=tpu: pass cuda or cpu"),
        ({"NNODES": 2}, "NNODES=2: set MASTER_ADDR"),
        ({"NNODES": 2, "MASTER_ADDR": "a", "NODE_RANK": 2}, "NODE_RANK=2: the last of NNODES=2 is 1"),
        ({"HOSTFILE": "absent"}, "HOSTFILE=absent: no such file"),
        ({"HOSTFILE": "configs/README.md", "SAVE_DIR": "it's"}, "no path or value may have a single quote; rename it"),
        ({"PYTHON": "absent-python"}, "PYTHON=absent-python: not found"),
    ],
)
def test_mistake_names_the_variable_and_the_remedy(variables, message):
    result = run_script(GPT2_SFT, **({"GPUS": 1} | variables))
    assert result.returncode == 1
    assert message in result.stderr


def test_a_variable_of_another_program_is_noted():
    result = run_script(GPT2_SFT, MODEL_PATH="x", DRY_RUN=1, GPUS=0)
    assert result.returncode == 0
    assert "MODEL_PATH=x is not read by this script; its variable is CKPT_PATH" in result.stderr


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_recipe():
    config = eval_config(EVAL, "some/checkpoint", 32)
    evaluate, generation = config.evaluate, config.generation
    sets = ["data/dolly", "data/self-inst", "data/vicuna", "data/sinst/11_", "data/uinst/11_"]
    assert (evaluate.model_path, evaluate.data_dir, evaluate.seed) == ("some/checkpoint", sets, [10, 20, 30, 40, 50])
    assert (evaluate.eval_batch_size, evaluate.max_length, evaluate.max_prompt_length) == (32, None, None)
    assert (generation.do_sample, generation.top_p, generation.top_k, generation.temperature) == (True, 1, 0, 1)
    assert (evaluate.dev_num, evaluate.split, config.ignored_flags) == (10000, "valid", ())


def test_evaluation_variables_and_flags():
    words = ("ckpt", "--dtype", "float32")
    lengths = {"MAX_LENGTH": 300, "MAX_PROMPT_LENGTH": 100}
    config = eval_config(
        EVAL, *words, DATA_DIRS="a b:c", SEEDS="1 2", EVAL_NUM=7, SPLIT="dev", DO_SAMPLE=0, EVAL_BATCH_SIZE=3, **lengths
    )
    evaluate = config.evaluate
    assert (evaluate.data_dir, evaluate.seed, evaluate.dev_num) == (["a b", "c"], [1, 2], 7)
    assert (evaluate.split, evaluate.eval_batch_size, evaluate.dtype) == ("dev", 3, "float32")
    assert (evaluate.max_length, evaluate.max_prompt_length, config.generation.do_sample) == (300, 100, False)
    with pytest.raises(ValueError, match="--max-lenght: unknown flag"):
        eval_config(EVAL, "ckpt", 16, "--max-lenght", 9)


def test_tiny_evaluation():
    config = eval_config("scripts/tiny/evaluate.sh", "run")
    evaluate = config.evaluate
    assert (evaluate.data_dir, evaluate.seed, evaluate.dev_num, evaluate.eval_batch_size) == (
        ["data/sample"], [10], -1, 64,
    )  # fmt: skip
    assert (evaluate.max_length, evaluate.max_prompt_length, config.generation.do_sample) == (192, 128, False)


@pytest.mark.parametrize("script", [EVAL, EVAL_LORA])
def test_evaluation_of_models_and_adapters(script):
    config = eval_config(script, "adapter")
    assert (config.evaluate.model_path, config.evaluate.peft_path) == ("adapter", None)
    config = eval_config(script, "adapter", BASE_MODEL_PATH="org/base")
    assert (config.evaluate.model_path, config.evaluate.peft_path) == ("org/base", "adapter")


def test_evaluation_finds_the_run_from_where_it_is_called(tmp_path):
    (tmp_path / "a run").mkdir()
    result = run_script(EVAL, "a run", cwd=tmp_path, DRY_RUN=1, GPUS=0)
    assert parse_evaluate_arguments(shlex.split(result.stdout)[2:]).evaluate.model_path == str(tmp_path / "a run")


def test_evaluation_skips_sets_that_are_not_there(copied_repository, tmp_path):
    there = tmp_path / "a set"
    there.mkdir()
    (there / "valid.jsonl").touch()
    for data_dirs, found, message in (
        (f"{there}:{tmp_path}/absent", [str(there)], f"skipped: {tmp_path}/absent/valid.jsonl is not there"),
        (None, None, "none of the data sets is there"),
    ):
        variables = {} if data_dirs is None else {"DATA_DIRS": data_dirs}
        result = run_script(copied_repository / EVAL, "run", GPUS=0, PYTHON="/bin/true", **variables)
        assert result.returncode == 0 and message in result.stderr
        assert parse_evaluate_arguments(shlex.split(result.stdout)[2:]).evaluate.data_dir == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass the checkpoint: bash"),
        (["model", "many"], "EVAL_BATCH_SIZE=many: pass a whole number"),
        (["model"], "none of them is there; see data/README.md"),
    ],
)
def test_evaluation_mistakes(tmp_path, arguments, message):
    result = run_script(EVAL, *arguments, DATA_DIRS=tmp_path / "absent", GPUS=0)
    assert result.returncode == 1 and message in result.stderr


# ---- real commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [({"GPUS": 0}, {(None, None)}), ({"GPUS": 2, "DEVICE": "cpu"}, {("0", "2"), ("1", "2")})],
    ids=["one process", "two processes"],
)
def test_command_runs_from_anywhere_with_spaces_in_paths(copied_repository, tmp_path, variables, ranks):
    result = run_script(copied_repository / GPT2_SFT, "--seed", 3, cwd=tmp_path, SAVE_DIR="an output", **variables)
    assert result.returncode == 0, result.stderr
    printed = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert {(rank, world) for rank, world, _ in printed} == ranks
    for _, _, flags in printed:
        config = parse_train_arguments(flags)
        assert (config.train.save_dir, config.train.seed) == ("an output", 3)


def test_a_taken_port_is_refused_before_the_launcher_starts(copied_repository):
    with socket.socket() as other_run:
        other_run.bind(("127.0.0.1", 0))
        other_run.listen()
        port = other_run.getsockname()[1]
        result = run_script(copied_repository / GPT2_SFT, GPUS=2, DEVICE="cpu", MASTER_PORT=port)
    assert result.returncode == 1
    assert f"MASTER_PORT={port}: another process has it; set it to a free port" in result.stderr


def test_failure_of_the_command_is_the_failure_of_the_script(copied_repository):
    (copied_repository / "code/distillation.py").write_text("raise SystemExit(3)\n")
    assert run_script(copied_repository / GPT2_SFT, GPUS=0).returncode == 3


# ---- DeepSpeed configurations ----------------------------------------------------------------------------------------

# The reference's names, each a copy of one of ours.
COPIES = {
    "ds_config": "ds_config_fp16",
    "ds_config_fp32": "ds_config_zero1_fp32",
    "ds_config_zero1_bf16": "ds_config_bf16",
    "ds_config_zero1_fp16": "ds_config_fp16",
    "ds_config_zero2": "ds_config_zero2_fp16",
    "ds_config_zero2_offload": "ds_config_zero2_offload_fp16",
    "ds_config_zero3": "ds_config_zero3_fp16",
}


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem not in COPIES], ids=lambda path: path.name)
def test_deepspeed_config(path):
    from training.engine import read_deepspeed_config

    config = read_deepspeed_config(TrainArguments(deepspeed_config=str(path)))
    zero = config["zero_optimization"]
    assert zero["stage"] == next((int(name) for name in "0123" if f"zero{name}" in path.name), 1)
    for precision in ("bf16", "fp16"):
        assert config.get(precision, {}).get("enabled", False) == (precision in path.name)
    assert ("offload" in path.name) == ("offload_optimizer" in zero)
    own = json.loads(path.read_text())
    assert own.get("zero_force_ds_cpu_optimizer", True) == ("offload" not in path.name)
    assert own.get("data_types", {}) == ({"grad_accum_dtype": "fp32"} if "bf16" in path.name else {})


def test_the_references_config_names_are_copies_of_ours():
    folder = ROOT / "configs/deepspeed"
    assert {name: (folder / f"{name}.json").read_text() for name in COPIES} == {
        name: (folder / f"{ours}.json").read_text() for name, ours in COPIES.items()
    }


def test_every_deepspeed_config_is_documented():
    readme = (ROOT / "configs/README.md").read_text()
    assert [path.name for path in CONFIGS if f"`{path.name}`" not in readme] == []
