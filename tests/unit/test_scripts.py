"""The shell scripts, without a model: the command each prints in a dry run, read by the parser it is meant for.

Also: errors name the variable and the remedy, commands run with spaces in paths and on two processes, and every shipped
DeepSpeed configuration is one that DeepSpeed accepts.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from arguments import TrainArguments, parse_evaluate_arguments, parse_train_arguments

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.relative_to(ROOT) for path in ROOT.glob("scripts/*/*.sh"))
CONFIGS = sorted((ROOT / "configs/deepspeed").glob("*.json"))
SFT = [
    "scripts/gpt2/sft_gpt2_base.sh",
    "scripts/gpt2/sft_gpt2_xlarge.sh",
    "scripts/tinyllama/sft_teacher_llama2.sh",
    "scripts/tinyllama/sft_tinyllama.sh",
    "scripts/tiny/sft_teacher.sh",
    "scripts/tiny/sft_student.sh",
]
KD = ["scripts/gpt2/kd_gpt2_base.sh", "scripts/tinyllama/kd_tinyllama.sh", "scripts/tiny/kd_student.sh"]
GPT2_SFT, GPT2_KD, TINYLLAMA_KD = "scripts/gpt2/sft_gpt2_base.sh", KD[0], KD[1]
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


def make_data(folder):
    folder.mkdir(parents=True)
    for split in ("train", "dev", "valid"):
        (folder / f"{split}.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    return folder


# ---- every script ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_script_is_valid_bash(script):
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    subprocess.run(["shellcheck", "-x", "-P", ".", *map(str, SCRIPTS)], cwd=ROOT, check=True)


def test_every_training_script_is_tested():
    training = {str(path) for path in SCRIPTS if path.name.startswith(("sft_", "kd_"))}
    assert training == set(SFT + KD)


@pytest.mark.parametrize("script", SFT + KD)
def test_training_script_flags_parse(script):
    config = train_config(script)
    assert config.ignored_flags == ()
    assert config.train.precision == "auto" or Path(ROOT, config.train.deepspeed_config) in CONFIGS
    assert config.kd.objective == ("cross_entropy" if script in SFT else "todi")
    assert (config.teacher.teacher_model_path is None) == (script in SFT)


@pytest.mark.parametrize("script", SFT + KD)
def test_misspelt_flag_is_refused(script):
    with pytest.raises(ValueError, match=r"--kd-tempreature: unknown flag; did you mean --kd-temperature\?"):
        train_config(script, "--kd-tempreature", 2)


# ---- recipes ---------------------------------------------------------------------------------------------------------


def test_gpt2_recipe():
    config = train_config(GPT2_KD)
    train = config.train
    assert (train.num_epochs, train.lr, train.lr_min, train.lr_decay_style) == (20, 5e-4, 1e-7, "cosine")
    assert (train.batch_size, train.global_batch_size, train.seed) == (4, 32, 10)
    assert (train.warmup_iters, train.warmup_ratio, train.weight_decay, train.clip_grad) == (0, 0, 0.01, 1)
    assert (train.keep_best_n_checkpoints, train.save_interval, train.eval_interval, train.eval_gen) == (1, 1, 1, True)
    assert (config.kd.kd_rate, config.kd.kd_temperature, config.model.peft) == (0.5, 2, None)
    assert (config.data.max_length, config.data.max_prompt_length) == (512, 256)
    generation = config.generation
    assert (generation.do_sample, generation.top_p, generation.top_k, generation.temperature) == (True, 1, 0, 1)
    assert (train.precision, train.deepspeed_config, train.save_dir) == ("auto", None, None)
    assert (config.model.model_type, config.model.ckpt_name) == ("gpt2", "gpt2-base")
    assert config.teacher.teacher_ckpt_name == "gpt2-xlarge"


@pytest.mark.parametrize(
    ("script", "batch", "checkpointing"),
    [
        ("scripts/tinyllama/sft_tinyllama.sh", (8, 32), False),
        ("scripts/tinyllama/sft_teacher_llama2.sh", (8, 32), True),
        (TINYLLAMA_KD, (4, 32), True),
    ],
)
def test_tinyllama_recipe(script, batch, checkpointing):
    config = train_config(script)
    assert (config.train.num_epochs, config.train.lr) == (10, 1e-3)
    assert (config.train.batch_size, config.train.global_batch_size) == batch
    model = config.model
    assert (model.peft, model.peft_lora_r, model.peft_lora_alpha, model.peft_lora_dropout) == ("lora", 256, 8, 0.1)
    assert model.gradient_checkpointing == checkpointing
    assert (config.teacher.teacher_peft_path is not None) == (script == TINYLLAMA_KD)


def test_tiny_scripts_run_on_the_cpu_in_fp32():
    launcher, _, flags = dry_run("scripts/tiny/kd_student.sh", GPUS="")
    assert launcher[-1] == sys.executable and "-m" not in launcher
    config = parse_train_arguments(flags)
    assert config.train.deepspeed_config == "configs/deepspeed/ds_config_zero0.json"
    assert (config.data.max_length, config.data.max_prompt_length, config.data.data_dir) == (192, 128, "data/sample")


@pytest.mark.parametrize("script", KD)
@pytest.mark.parametrize("objective", ["cross_entropy", "sft"])
def test_cross_entropy_in_a_kd_script_is_the_sft_run(script, objective):
    config = train_config(script, KD_OBJ=objective)
    assert config.kd.objective == "cross_entropy"
    assert config.teacher.teacher_model_path is None
    if script == GPT2_KD:
        assert config == train_config(GPT2_SFT)


# ---- variables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "group", "field", "value"),
    [
        ({"KD_OBJ": "rkl"}, "kd", "kd_objective", "rkl"),
        ({"KD_OBJ": "adakd+todi"}, "kd", "kd_objective", "adakd+todi"),
        ({"KD_OBJ": "adakd", "ADAKD_BASE": "fkl"}, "kd", "adakd_base", "fkl"),
        ({"KD_RATE": 0.9}, "kd", "kd_rate", 0.9),
        ({"KD_TEMP": 1}, "kd", "kd_temperature", 1),
        ({"CKPT_PATH": "org/model"}, "model", "model_path", "org/model"),
        ({"LORA_RANK": 16}, "model", "peft_lora_r", 16),
        ({"LORA_RANK": 16}, "model", "peft_lora_alpha", 8),
        ({"LORA_RANK": 16, "PEFT_PATH": "adapter"}, "model", "peft_path", "adapter"),
        ({"GRADIENT_CHECKPOINTING": 1}, "model", "gradient_checkpointing", True),
        ({"TEACHER_MODEL_PATH": "org/teacher"}, "teacher", "teacher_model_path", "org/teacher"),
        ({"TEACHER_PEFT_PATH": "org/adapter"}, "teacher", "teacher_peft_path", "org/adapter"),
        ({"TEACHER_CACHE": "outputs/with a space"}, "teacher", "teacher_cache", "outputs/with a space"),
        ({"DATA_DIR": "data/with a space"}, "data", "data_dir", "data/with a space"),
        ({"TRAIN_NUM": 100}, "data", "train_num", 100),
        ({"DEV_NUM": 50}, "data", "dev_num", 50),
        ({"MAX_LENGTH": 1024}, "data", "max_length", 1024),
        ({"MAX_PROMPT_LENGTH": 128}, "data", "max_prompt_length", 128),
        ({"BATCH_SIZE": 1}, "train", "batch_size", 1),
        ({"EVAL_BATCH_SIZE": 3}, "train", "eval_batch_size", 3),
        ({"TOKENS_PER_MICRO_BATCH": 4096}, "train", "tokens_per_micro_batch", 4096),
        ({"GLOBAL_BATCH": 64}, "train", "global_batch_size", 64),
        ({"GRAD_ACC": 8}, "train", "gradient_accumulation_steps", 8),
        ({"GRAD_ACC": 8}, "train", "global_batch_size", None),
        ({"GRAD_ACC": 8, "GLOBAL_BATCH": 64}, "train", "global_batch_size", 64),
        ({"SAVE_DIR": "/tmp/a folder"}, "train", "save_dir", "/tmp/a folder"),
        ({"EPOCH": 3}, "train", "num_epochs", 3),
        ({"TOTAL_ITERS": 60}, "train", "total_iters", 60),
        ({"LR": 0.001}, "train", "lr", 0.001),
        ({"LR_MIN": 0}, "train", "lr_min", 0),
        ({"LR_DECAY_STYLE": "noam"}, "train", "lr_decay_style", "noam"),
        ({"WARMUP_RATIO": 0.1}, "train", "warmup_ratio", 0.1),
        ({"WEIGHT_DECAY": 0.1}, "train", "weight_decay", 0.1),
        ({"CLIP_GRAD": 0}, "train", "clip_grad", 0),
        ({"SEED": 20}, "train", "seed", 20),
        ({"LOG_INTERVAL": 1}, "train", "log_interval", 1),
        ({"SAVE_INTERVAL": 2}, "train", "save_interval", 2),
        ({"EVAL_INTERVAL": 2}, "train", "eval_interval", 2),
        ({"KEEP_BEST": -1}, "train", "keep_best_n_checkpoints", -1),
        ({"EVAL_GEN": 0}, "train", "eval_gen", False),
        ({"PRECISION": "fp16"}, "train", "precision", "fp16"),
        ({"DS_CONFIG": "my own.json"}, "train", "deepspeed_config", "my own.json"),
        ({"DO_SAMPLE": 0}, "generation", "do_sample", False),
        ({"TOP_P": 0.9}, "generation", "top_p", 0.9),
        ({"TOP_K": 50}, "generation", "top_k", 50),
        ({"TEMPERATURE": 0.7}, "generation", "temperature", 0.7),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_variable_from_the_environment(variables, group, field, value):
    assert getattr(getattr(train_config(GPT2_KD, **variables), group), field) == value


def test_an_empty_teacher_adapter_is_none():
    assert train_config(TINYLLAMA_KD, TEACHER_PEFT_PATH="").teacher.teacher_peft_path is None


def test_arguments_of_the_script_come_last_and_win():
    config = train_config(GPT2_KD, "--lr", "0.25", "--attn-implementation", "my kernel")
    assert (config.train.lr, config.model.attn_implementation) == (0.25, "my kernel")


# ---- launchers -------------------------------------------------------------------------------------------------------


def test_no_gpu_is_one_process():
    assert dry_run(GPT2_SFT, GPUS=0)[0] == [sys.executable]


def test_one_node_runs_under_deepspeed():
    assert dry_run(GPT2_SFT, GPUS=2, MASTER_PORT=1234)[0] == [
        sys.executable, *DEEPSPEED, "--num_gpus", "2", "--master_port", "1234"
    ]  # fmt: skip


def test_chosen_gpus_run_under_torchrun():
    launcher = dry_run(GPT2_SFT, GPUS=2, CUDA_VISIBLE_DEVICES="2,3")[0]
    assert launcher[:5] == [sys.executable, *TORCHRUN, "--nproc_per_node", "2"]


def test_cpu_processes_run_under_torchrun():
    launcher = dry_run(GPT2_SFT, GPUS=2, DEVICE="cpu", MASTER_PORT=1234)[0]
    expected = [*TORCHRUN, "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port", "1234"]
    assert launcher[-len(expected) :] == expected


def test_several_nodes_without_a_hostfile():
    variables = {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "node0", "MASTER_PORT": 1234}
    assert dry_run(GPT2_SFT, **variables)[0] == [
        sys.executable, *TORCHRUN, "--nnodes", "2", "--node_rank", "1", "--nproc_per_node", "4",
        "--master_addr", "node0", "--master_port", "1234",
    ]  # fmt: skip


def test_several_nodes_agree_on_the_port():
    assert dry_run(GPT2_SFT, NNODES=2, MASTER_ADDR="node0")[0][-1] == "29500"


def test_several_nodes_with_a_hostfile(tmp_path):
    hostfile = tmp_path / "my hosts"
    hostfile.write_text("# two nodes\nworker-1 slots=8\n\nworker-2 slots=8\n")
    launcher, _, flags = dry_run(GPT2_SFT, GPUS=8, HOSTFILE=hostfile, MASTER_ADDR="worker-1", MASTER_PORT=1234)
    assert launcher == [
        sys.executable, *DEEPSPEED, "--hostfile", str(hostfile), "--num_nodes", "2", "--num_gpus", "8",
        "--master_port", "1234", "--master_addr", "worker-1",
    ]  # fmt: skip
    assert flags == dry_run(GPT2_SFT)[2]


@pytest.mark.parametrize(
    ("gpus", "variables", "processes"),
    [
        (3, {}, ["--num_gpus", "3"]),
        (3, {"CUDA_VISIBLE_DEVICES": "0,2"}, ["--nproc_per_node", "2"]),
        (3, {"CUDA_VISIBLE_DEVICES": ""}, []),
        (0, {}, []),
    ],
)
def test_visible_gpus_are_the_default(tmp_path, gpus, variables, processes):
    launcher = dry_run(GPT2_SFT, GPUS="", PATH=fake_gpus(tmp_path, gpus), **variables)[0]
    assert launcher[3:5] == processes


@pytest.mark.parametrize("variables", [{"DEVICE": "cpu", "GPUS": ""}, {"GPUS": 0}])
def test_cpu_run_hides_the_gpus(tmp_path, variables):
    launcher = dry_run(GPT2_SFT, PATH=fake_gpus(tmp_path, 2), **variables)[0]
    assert launcher == ["env", "CUDA_VISIBLE_DEVICES=", "DS_ACCELERATOR=cpu", sys.executable]


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        (GPT2_SFT, {"EPOCHS": 1}, "EPOCHS=1: no variable of the scripts; did you mean EPOCH?"),
        (GPT2_KD, {"KD_TEMPERATURE": 3}, "KD_TEMPERATURE=3: no variable of the scripts; did you mean KD_TEMP?"),
        (GPT2_SFT, {"GRADIENT_CHECKPOINTING": "yes"}, "GRADIENT_CHECKPOINTING=yes: pass 1 or 0"),
        (GPT2_SFT, {"GPUS": "0,1"}, "GPUS=0,1: pass a whole number"),
        (GPT2_SFT, {"DEVICE": "tpu"}, "DEVICE=tpu: pass cuda or cpu"),
        (GPT2_SFT, {"NNODES": 2}, "NNODES=2: set MASTER_ADDR"),
        (GPT2_SFT, {"NNODES": 2, "MASTER_ADDR": "a", "NODE_RANK": 2}, "NODE_RANK=2: the last of NNODES=2 is 1"),
        (GPT2_SFT, {"HOSTFILE": "absent"}, "HOSTFILE=absent: no such file"),
        (GPT2_SFT, {"PYTHON": "absent-python"}, "PYTHON=absent-python: not found"),
    ],
)
def test_mistake_names_the_variable_and_the_remedy(script, variables, message):
    result = run_script(script, **({"GPUS": 1} | variables))
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
    config = eval_config(
        EVAL, "ckpt", "--dtype", "float32", DATA_DIRS="a b:c", SEEDS="1 2", EVAL_NUM=7, SPLIT="dev", DO_SAMPLE=0
    )
    evaluate = config.evaluate
    assert (evaluate.data_dir, evaluate.seed, evaluate.dev_num) == (["a b", "c"], [1, 2], 7)
    assert (evaluate.split, evaluate.eval_batch_size, evaluate.dtype) == ("dev", 16, "float32")
    assert not config.generation.do_sample


@pytest.mark.parametrize("script", [EVAL, EVAL_LORA])
def test_evaluation_of_models_and_adapters(script):
    config = eval_config(script, "adapter")
    assert (config.evaluate.model_path, config.evaluate.peft_path) == ("adapter", None)
    config = eval_config(script, "adapter", BASE_MODEL_PATH="org/base")
    assert (config.evaluate.model_path, config.evaluate.peft_path) == ("org/base", "adapter")


def test_misspelt_evaluation_flag_is_refused():
    with pytest.raises(ValueError, match="--max-lenght: unknown flag"):
        eval_config(EVAL, "ckpt", 16, "--max-lenght", 9)


def test_evaluation_finds_the_run_from_where_it_is_called(tmp_path):
    (tmp_path / "a run").mkdir()
    result = run_script(EVAL, "a run", cwd=tmp_path, DRY_RUN=1, GPUS=0)
    assert parse_evaluate_arguments(shlex.split(result.stdout)[2:]).evaluate.model_path == str(tmp_path / "a run")


def test_evaluation_skips_sets_that_are_not_there(tmp_path):
    there = make_data(tmp_path / "a set")
    result = run_script(EVAL, "run", DATA_DIRS=f"{there}:{tmp_path}/absent", GPUS=0, PYTHON="/bin/true")
    assert result.returncode == 0, result.stderr
    assert f"skipped: {tmp_path}/absent/valid.jsonl is not there" in result.stderr
    assert parse_evaluate_arguments(shlex.split(result.stdout)[2:]).evaluate.data_dir == [str(there)]


def test_evaluation_without_a_set_is_on_the_data_of_the_run(copied_repository):
    result = run_script(copied_repository / EVAL, "run", GPUS=0, PYTHON="/bin/true")
    assert result.returncode == 0 and "none of the data sets is there" in result.stderr
    assert parse_evaluate_arguments(shlex.split(result.stdout)[2:]).evaluate.data_dir is None


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


@pytest.fixture
def copied_repository(tmp_path):
    """The scripts in a folder with a space in its name; the entry points there print what they were given."""
    root = tmp_path / "a copy"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    shutil.copytree(ROOT / "configs", root / "configs")
    (root / "code").mkdir()
    (root / "code/distillation.py").write_text(
        "import json, os, sys\n"
        "line = json.dumps([os.environ.get('RANK'), os.environ.get('WORLD_SIZE'), sys.argv[1:]])\n"
        "sys.stdout.write(line + '\\n')  # one write: print makes two, which another process can come between\n"
    )
    return root


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


@pytest.mark.parametrize("gpus", [1, 4])
def test_the_doctor_gets_the_flags_of_the_run(gpus):
    launcher, entry, flags = dry_run(GPT2_KD, DOCTOR=1, GPUS=gpus)
    assert launcher == ["env", f"WORLD_SIZE={gpus}", f"LOCAL_WORLD_SIZE={gpus}", sys.executable]
    assert (entry, flags) == ("code/doctor.py", dry_run(GPT2_KD, GPUS=gpus)[2])


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
    from runtime.deepspeed_settings import read_deepspeed_settings

    config = read_deepspeed_settings(TrainArguments(deepspeed_config=str(path))).raw
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
