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

from arguments import (
    TrainArguments,
    parse_evaluate_arguments,
    parse_generate_arguments,
    parse_train_arguments,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.relative_to(ROOT) for end in ("sh", "sbatch") for path in ROOT.glob(f"scripts/**/*.{end}"))
CONFIGS = sorted((ROOT / "configs/deepspeed").glob("*.json"))
SFT = [str(path) for path in SCRIPTS if path.name.startswith("sft_")]
KD = [str(path) for path in SCRIPTS if path.name.startswith("kd_")]
GPT2_SFT, GPT2_KD = "scripts/gpt2/sft_gpt2_base.sh", "scripts/gpt2/kd_gpt2_base.sh"
TINYLLAMA_KD, TINY_KD = "scripts/tinyllama/kd_tinyllama.sh", "scripts/tiny/kd_student.sh"
EVAL, EVAL_LORA = "scripts/eval/run_eval.sh", "scripts/eval/run_eval_lora.sh"
GENERATE = "scripts/generate.sh"
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
    return parse_train_arguments(dry_run(script, *arguments, **variables)[2])


@pytest.fixture
def copied_repository(tmp_path):
    """The scripts in a folder with a space in its name; the entry point there prints what it was given."""
    root = tmp_path / "a copy"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "code/criterions").mkdir(parents=True)
    for module in ("arguments.py", "flags.py", "foreign_flags.py"):
        shutil.copy(ROOT / "code" / module, root / "code")
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


def test_appended_flags_win_and_misspelt_ones_are_refused():
    config = train_config(GPT2_KD, "--lr", "0.25", "--attn-implementation", "my kernel")
    assert (config.train.lr, config.model.attn_implementation) == (0.25, "my kernel")
    with pytest.raises(ValueError, match=r"--kd-tempreature: unknown flag; did you mean --kd-temperature\?"):
        train_config(GPT2_KD, "--kd-tempreature", 2)


# ---- families --------------------------------------------------------------------------------------------------------

SHARED = "--global-batch-size 32", "--eval-gen --do-sample --precision auto", "--data-dir data/dolly"
RECIPES = {
    "scripts/gpt2/sft_gpt2_xlarge.sh": [*SHARED, "--model-path model_hub/gpt2/gpt2-xlarge", "--eval-batch-size 16"],
    GPT2_KD: [
        *(*SHARED, "--batch-size 4", "--eval-batch-size 32 --num-epochs 20 --lr 0.0005"),
        "--model-type gpt2 --ckpt-name gpt2-base --model-path model_hub/gpt2/gpt2-base",
        "--teacher-ckpt-name gpt2-xlarge --teacher-model-path outputs/gpt2/gpt2-xlarge/sft",
        "--kd-objective todi --kd-rate 0.5 --kd-temperature 2.0",
    ],
    TINYLLAMA_KD: [
        *(*SHARED, "--batch-size 4", "--num-epochs 10 --lr 0.001", "--gradient-checkpointing"),
        *("--peft lora", "--peft-lora-r 256 --peft-lora-alpha 8 --peft-lora-dropout 0.1"),
        "--teacher-model-path model_hub/llama2/llama2-7b-hf --teacher-peft-path outputs/llama2/llama2-7b-hf/sft",
    ],
    TINY_KD: [
        "--data-dir data/sample --train-num 600 --max-length 192 --max-prompt-length 128 --batch-size 16",
        "--deepspeed_config configs/deepspeed/ds_config_zero0.json",
    ],
}


@pytest.mark.parametrize("script", SFT + KD)
def test_training_script(script):
    flags = dry_run(script)[2]
    assert [words for words in RECIPES.get(script, []) if words not in " ".join(flags)] == []
    config = parse_train_arguments(flags)
    assert (config.kd.objective, config.ignored_flags) == ("cross_entropy" if script in SFT else "todi", ())
    assert (config.teacher.teacher_model_path is None) == (script in SFT)


@pytest.mark.parametrize("objective", ["cross_entropy", "sft"])
def test_cross_entropy_in_a_kd_script_is_the_sft_run(objective):
    assert train_config(GPT2_KD, KD_OBJ=objective) == train_config(GPT2_SFT)
    assert train_config(TINY_KD, KD_OBJ=objective) == train_config("scripts/tiny/sft_student.sh", KD_OBJ="todi")


def test_the_documented_family(copied_repository):
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/extending.md").read_text(), flags=re.DOTALL)
    (family,) = [block for block in blocks if "family.sh <<" in block]
    assert run_bash("-euc", family, cwd=copied_repository).returncode == 0
    scripts = copied_repository / "scripts/pythia"
    teacher, student, kd = (
        train_config(scripts / f"{name}.sh") for name in ("sft_teacher", "sft_student", "kd_student")
    )
    assert (teacher.model.model_path, student.model.model_path) == ("EleutherAI/pythia-1.4b", "EleutherAI/pythia-160m")
    assert (teacher.model.gradient_checkpointing, student.model.gradient_checkpointing) == (True, False)
    assert (kd.model, kd.data, kd.train) == (student.model, student.data, student.train)
    assert (kd.kd.objective, kd.teacher.teacher_model_path) == ("todi", "outputs/pythia/pythia-1.4b/sft")
    (lora,) = [block for block in blocks if "LORA_RANK" in block]
    family = (scripts / "family.sh").read_text()
    (scripts / "family.sh").write_text(family.partition("TEACHER_MODEL_PATH")[0] + lora)
    kd = train_config(scripts / "kd_student.sh")
    assert (kd.model.peft, kd.model.peft_lora_r, kd.teacher.teacher_model_path) == (
        "lora",
        64,
        "EleutherAI/pythia-1.4b",
    )
    assert kd.teacher.teacher_peft_path == "outputs/pythia/pythia-1.4b/sft"


# ---- variables -------------------------------------------------------------------------------------------------------

VALUES = """
    CKPT_TYPE=family CKPT_NAME=name CKPT_PATH=org/model LORA_RANK=16 LORA_ALPHA=5 LORA_DROPOUT=0.25
    LORA_TARGETS=q_proj,v_proj PEFT_PATH=adapter GRADIENT_CHECKPOINTING=1 TEACHER_MODEL_NAME=teacher
    TEACHER_MODEL_PATH=org/teacher TEACHER_PEFT_PATH=org/adapter TEACHER_CACHE=outputs/cache MODEL_BITS=4 TEACHER_BITS=8
    KD_OBJ=adakd KD_RATE=0.9 KD_TEMP=3 ADAKD_BASE=fkl ON_POLICY=distillm
    DATA_DIR=my/data TRAIN_NUM=100 DEV_NUM=50 PROMPT_TEMPLATE=none MAX_LENGTH=1024 MAX_PROMPT_LENGTH=64
    DATA_SPLIT=train_sft DATA_REVISION=abc TRAIN_ON=last BATCH_SIZE=1 EVAL_BATCH_SIZE=3
    TOKENS_PER_MICRO_BATCH=4096 GLOBAL_BATCH= GRAD_ACC=7 SAVE_DIR=/tmp/lr=1 EPOCH=3 TOTAL_ITERS=60 LR=0.002 LR_MIN=0
    LR_DECAY_STYLE=noam WARMUP_RATIO=0.1 WEIGHT_DECAY=0.2 CLIP_GRAD=0 SEED=20 LOG_INTERVAL=1 SAVE_INTERVAL=2
    EVAL_INTERVAL=4 KEEP_BEST=-1 EVAL_GEN=1 PRECISION=fp16 DS_CONFIG=my.json DO_SAMPLE=1 TOP_P=0.9 TOP_K=50
    TEMPERATURE=0.7 SPLIT=dev EVAL_NUM=7
"""
VALUES = dict(word.split("=", 1) for word in VALUES.split())


@pytest.mark.parametrize(
    ("run", "script"), [("sft", GPT2_SFT), ("kd", GPT2_KD), ("eval", EVAL), ("generate", GENERATE)]
)
def test_every_variable_becomes_its_flag(run, script):
    lines = (ROOT / "scripts/lib/flags.txt").read_text().splitlines()
    table = [line.split() for line in lines if not line.startswith("#") and f" {run} " in f"{line} "]
    parse = {"eval": parse_evaluate_arguments, "generate": parse_generate_arguments}.get(run, parse_train_arguments)
    flags = dry_run(script, *["run"] * (run in ("eval", "generate")), **VALUES)[2]
    parse(flags)  # refuses flags that it does not know
    for name, flag, *_ in table:
        words = flag.removesuffix("=1") if flag.endswith("=1") else f"{flag} {VALUES[name]}"
        if flag == "--*":
            words = f"--{VALUES[name]}"
        assert not VALUES[name] or f" {words} " in f" {' '.join(flags)} "


def test_another_count_replaces_the_recipes_examples_per_step():
    for name in ("GRAD_ACC", "TOKENS_PER_MICRO_BATCH"):
        assert train_config(GPT2_KD, **{name: 4096}).train.global_batch_size is None


def test_empty_variables():
    config = train_config(TINYLLAMA_KD, TEACHER_PEFT_PATH="", LORA_RANK=0, LR="")
    assert (config.teacher.teacher_peft_path, config.model.peft, config.train.lr) == (None, None, 1e-3)


# ---- launchers -------------------------------------------------------------------------------------------------------

HIDDEN = ["env", "CUDA_VISIBLE_DEVICES=", "DS_ACCELERATOR=cpu"]
LOCAL = ["--master_addr", "127.0.0.1", "--master_port", "1234"]
NODES = "--nnodes 2 --node_rank 1 --nproc_per_node 4 --master_addr node0 --master_port".split()
SECOND = {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "node0"}
LAUNCHERS = {  # GPUs of the machine, variables, what starts the processes
    "no GPU": (0, {}, [sys.executable]),
    "CPU": (2, {"DEVICE": "cpu"}, [*HIDDEN, sys.executable]),
    "no process for a GPU": (2, {"GPUS": 0}, [*HIDDEN, sys.executable]),
    "two on a CPU": (0, {"DEVICE": "cpu", "GPUS": 2}, [sys.executable, *TORCHRUN, "--nproc_per_node", "2", *LOCAL]),
    "all GPUs": (3, {}, [sys.executable, *DEEPSPEED, "--num_gpus", "3", "--master_port", "1234"]),
    "some GPUs": (3, {"GPUS": 2}, [sys.executable, *DEEPSPEED, "--num_gpus", "2", "--master_port", "1234"]),
    "chosen": (3, {"CUDA_VISIBLE_DEVICES": "0,2"}, [sys.executable, *TORCHRUN, "--nproc_per_node", "2", *LOCAL]),
    "hidden": (3, {"CUDA_VISIBLE_DEVICES": ""}, [sys.executable]),
    "two nodes": (4, SECOND, [sys.executable, *TORCHRUN, *NODES, "1234"]),
    "two nodes, no port": (4, SECOND | {"MASTER_PORT": ""}, [sys.executable, *TORCHRUN, *NODES, "29500"]),
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
    nodes = "--num_nodes 2 --num_gpus 8 --master_port 1234 --master_addr worker-1".split()
    assert launcher == [sys.executable, *DEEPSPEED, "--hostfile", str(hostfile), *nodes]
    assert flags == dry_run(GPT2_SFT)[2]


def test_the_doctor_gets_the_flags_of_the_run():
    launcher, entry, flags = dry_run(GPT2_KD, DOCTOR=1, GPUS=4, NNODES=2)
    assert launcher == ["env", "WORLD_SIZE=8", "LOCAL_WORLD_SIZE=4", sys.executable]
    assert (entry, flags) == ("code/doctor.py", dry_run(GPT2_KD)[2])


# ---- Slurm -----------------------------------------------------------------------------------------------------------

SBATCH = "scripts/slurm/train.sbatch"
TOOLS = {
    "srun": """#!/bin/bash
        while [[ $1 == -* ]]; do shift; done
        worst=0 tasks=()
        for rank in 0 1 2 3; do
            SLURM_PROCID=$rank SLURM_LOCALID=$((rank % 2)) "$@" & tasks+=($!)
        done
        for task in "${tasks[@]}"; do wait "$task"; code=$?; if [[ $code -gt $worst ]]; then worst=$code; fi; done
        exit $worst""",
    "scontrol": """#!/bin/bash
        if [[ $1 == show ]]; then printf 'node1\\nnode2\\n'; else echo "$@" >>"$REQUEUED"; fi""",
}


@pytest.mark.parametrize("code", [0, 75, 3])
def test_a_slurm_job_that_was_stopped_is_requeued(copied_repository, tmp_path, code):
    tools, requeued = tmp_path / "tools", tmp_path / "requeued"
    tools.mkdir()
    for name, text in TOOLS.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    entry = copied_repository / "code/distillation.py"
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    entry.write_text(
        f"import os, sys\nvalues = [os.environ[name] for name in {names.split()}]\n"
        f"open('ran' + values[0], 'w').write(' '.join([*values, *sys.argv[-2:]]))\nsys.exit({code})\n"
    )
    job = {"SLURM_JOB_ID": 20123, "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": 4, "SLURM_NTASKS_PER_NODE": 2}
    job |= {"SLURM_JOBID": 20123, "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_NODELIST": "node[1-2]", "SLURM_NPROCS": 4}
    path = f"{tools}:{os.environ['PATH']}"
    words = (SBATCH, GPT2_SFT, "--seed", "3")
    done = run_bash(*words, cwd=copied_repository, PATH=path, REQUEUED=requeued, GPUS=2, **job)
    assert done.returncode == code, done.stderr
    ran = [(copied_repository / f"ran{rank}").read_text() for rank in range(4)]
    assert ran == [f"{rank} {rank % 2} 4 2 node1 20123 --seed 3" for rank in range(4)]
    assert (requeued.read_text() if requeued.exists() else None) == ("requeue 20123\n" if code == 75 else None)


def test_srun_without_slurm_is_refused():
    for variables, message in (({"LAUNCHER": "srun"}, "SLURM_PROCID is not set"), ({"LAUNCHER": "mpi"}, "pass srun")):
        result = run_script(GPT2_SFT, GPUS=1, **variables)
        assert result.returncode == 1 and message in result.stderr


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EPOCHS": 1}, "EPOCHS=1: not a variable of the scripts; did you mean EPOCH?"),
        ({"KD_TEMPERATURE": 3}, "KD_TEMPERATURE=3: not a variable of the scripts; did you mean KD_TEMP?"),
        ({"TEACHER": "x"}, "TEACHER=x: not a variable of the scripts; did you mean TEACHER_MODEL_PATH?"),
        ({"MAX_LEN": 512}, "MAX_LEN=512: not a variable of the scripts; did you mean MAX_LENGTH?"),
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
    assert result.returncode == 1 and message in result.stderr


@pytest.mark.parametrize("script", KD)
def test_every_kd_script_can_sample(script):
    assert train_config(script).on_policy.schedule is None
    assert train_config(script, ON_POLICY="gkd").on_policy.schedule == "mixed"
    for variables, message in (
        ({"ON_POLICY": "minillm"}, "ON_POLICY=minillm: pass gkd, distillm or distillm2, or leave it unset"),
        ({"ON_POLICY": "gkd", "KD_OBJ": "sft"}, "ON_POLICY=gkd: needs a divergence to a teacher"),
    ):
        result = run_script(script, **variables)
        assert result.returncode == 1 and message in result.stderr


def test_mistakes_of_an_evaluation():
    for arguments, message in (
        ([], "pass the checkpoint: bash"),
        (["model", "0"], "EVAL_BATCH_SIZE=0: pass a whole number"),
        (["model"], "DATA_DIRS=absent: none of them is there; see data/README.md"),
    ):
        result = run_script(EVAL, *arguments, DATA_DIRS="absent", GPUS=0)
        assert result.returncode == 1 and message in result.stderr


def test_a_variable_of_another_program_is_noted():
    result = run_script(GPT2_SFT, MODEL_PATH="x", N_GPUS=2, DRY_RUN=1, GPUS=0)
    assert result.returncode == 0
    for name, meant in (("MODEL_PATH=x", "CKPT_PATH"), ("N_GPUS=2", "GPUS")):
        assert f"{name} is not read by this script; its variable is {meant}" in result.stderr


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_recipes():
    sets = "data/dolly data/self-inst data/vicuna data/sinst/11_ data/uinst/11_"
    flags = (
        f"--model-path run --data-dir {sets} --seeds 10 20 30 40 50 --eval-num 10000 --eval-batch-size 32 --do-sample"
    )
    assert dry_run(EVAL, "run", 32)[1:] == ("code/evaluate.py", flags.split())
    flags = "--model-path run --data-dir data/sample --seeds 10 --max-length 192 --max-prompt-length 128"
    assert dry_run("scripts/tiny/evaluate.sh", "run")[2] == [*flags.split(), "--eval-batch-size", "64"]


def test_evaluation_variables_and_flags():
    variables = {"DATA_DIRS": "a b:c", "SEEDS": "1 2", "EVAL_NUM": "", "DO_SAMPLE": 0, "BASE_MODEL_PATH": "org/base"}
    flags = ["--model-path", "org/base", "--peft-path", "adapter", "--data-dir", "a b", "c", "--seeds", "1", "2"]
    for script in (EVAL, EVAL_LORA):
        assert dry_run(script, "adapter", "--dtype", "float32", **variables)[2] == [*flags, "--dtype", "float32"]


def test_evaluation_of_several_runs():
    flags = dry_run(EVAL, "a", "b", "c", 8, "--force", DATA_DIRS="data/sample")[2]
    assert flags[:6] == ["--model-path", "a", "b", "c", "--data-dir", "data/sample"]
    assert flags[-4:] == ["--eval-batch-size", "8", "--do-sample", "--force"]


def test_the_teachers_answers():
    flags = "--model-path run --splits train --seeds 10 --data-dir data/dolly --save-dir out --generator vllm"
    assert dry_run(GENERATE, "run", "--generator", "vllm", SAVE_DIR="out")[1:] == ("code/generate.py", flags.split())
    flags = dry_run(GENERATE, "run", SAVE_DIR="out", DO_SAMPLE=1, SEEDS="1 2", SPLITS="train dev")[2]
    assert parse_generate_arguments(flags).generate.seed == [1, 2]
    for arguments, variables, message in (
        ([], {"SAVE_DIR": "out"}, "pass one teacher: SAVE_DIR=FOLDER bash"),
        (["a", "b"], {"SAVE_DIR": "out"}, "pass one teacher"),
        (["run"], {}, "SAVE_DIR: name the data folder"),
    ):
        result = run_script(GENERATE, *arguments, GPUS=0, **variables)
        assert result.returncode == 1 and message in result.stderr


def test_comparison():
    words = ["a", "b", "--teacher", "c"]
    for script in ("scripts/compare.sh", "scripts/eval/compare.sh"):
        assert dry_run(script, *words)[1:] == ("code/compare.py", words)
    result = run_script("scripts/compare.sh")
    assert result.returncode == 1 and result.stdout == "" and "pass two runs or more: bash" in result.stderr


def test_the_judge():
    words = ["a", "b", "--max-calls", "9"]
    result = run_script("scripts/eval/judge.sh", *words, DRY_RUN=1, JUDGE_API_KEY="sk-secret")
    assert shlex.split(result.stdout)[1:] == ["code/judge.py", *words] and "sk-secret" not in result.stdout
    result = run_script("scripts/eval/judge.sh")
    assert result.returncode == 1 and result.stdout == "" and "pass two runs: bash" in result.stderr
    result = run_script("scripts/eval/judge.sh", *words, DRY_RUN=1, JUDGE_APIKEY="sk-secret")
    assert "JUDGE_APIKEY=...: not a variable of the scripts; did you mean JUDGE_API_KEY?" in result.stderr


def test_export_takes_paths_relative_to_where_it_is_called(tmp_path):
    (tmp_path / "a run").mkdir()
    result = run_script("scripts/export.sh", "a run", "an out", "--gguf", cwd=tmp_path, DRY_RUN=1)
    assert shlex.split(result.stdout)[1:] == [
        *("code/export.py", "--model-path", str(tmp_path / "a run"), "--save-dir", str(tmp_path / "an out"), "--gguf")
    ]
    result = run_script("scripts/export.sh", "a run", cwd=tmp_path)
    assert result.returncode == 1 and "pass the run and the folder" in result.stderr


def test_evaluation_finds_the_run_from_where_it_is_called(tmp_path):
    (tmp_path / "a run").mkdir()
    result = run_script(EVAL, "a run", cwd=tmp_path, DRY_RUN=1, GPUS=0)
    assert shlex.split(result.stdout)[2:4] == ["--model-path", str(tmp_path / "a run")]


def test_evaluation_skips_sets_that_are_not_there(copied_repository):
    (copied_repository / "a set").mkdir()
    (copied_repository / "a set/valid.jsonl").touch()
    (copied_repository / "other").mkdir()
    (copied_repository / "other/valid.csv").touch()
    (copied_repository / "rows.json").touch()
    (copied_repository / "run").mkdir()
    cases = (
        ({"DATA_DIRS": "a set:absent"}, ["--data-dir", "a set"], "skipped: absent has no valid.jsonl (or .json,"),
        ({"DATA_DIRS": "other:rows.json"}, ["--data-dir", "other", "rows.json"], ""),
        ({}, [], "none of the data sets is there"),
    )
    for variables, data, message in cases:
        result = run_script(copied_repository / EVAL, "run", GPUS=0, PYTHON="/bin/true", **variables)
        assert result.returncode == 0 and message in result.stderr
        assert shlex.split(result.stdout)[4:][: len(data) + 1] == [*data, "--seeds"]


def test_only_the_shipped_sample_is_cut_for_the_tiny_student():
    script = ROOT / "scripts/tiny/kd_student.sh"
    assert "--train-num 600" in run_script(script, DRY_RUN=1, GPUS=0).stdout
    assert "--train-num" not in run_script(script, DRY_RUN=1, GPUS=0, DATA_DIR="own.csv").stdout


def test_evaluation_on_own_data_needs_the_run(copied_repository):
    result = run_script(copied_repository / EVAL, "mistyped", GPUS=0, PYTHON="/bin/true")
    assert result.returncode == 1 and "mistyped: no such run or checkpoint" in result.stderr
    assert result.stdout == "" and "its own data" not in result.stderr


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
