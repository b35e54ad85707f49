"""Run files, runs repeated from their args.json, and sweeps."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arguments import parse_train_arguments
from preflight.checks import check

sys.path.append(str(Path(__file__).parents[2] / "scripts/lib"))
import run_file
import sweep

ROOT = Path(__file__).resolve().parents[2]
RUN_FILES = sorted((ROOT / "configs/runs").glob("*.yaml"))
# The script, with variables, that makes the same run.
SCRIPTS = {
    "gpt2_todi": ("scripts/gpt2/kd_gpt2_base.sh", {}),
    "gpt2_adakd": ("scripts/gpt2/kd_gpt2_base.sh", {"KD_OBJ": "adakd", "KD_RATE": "1", "KD_TEMP": "1"}),
    "tinyllama_todi": ("scripts/tinyllama/kd_tinyllama.sh", {}),
    "qwen2.5_todi": ("scripts/qwen2.5/kd_student.sh", {}),
    "tiny_todi": ("scripts/tiny/kd_student.sh", {}),
}


def bash(*words, root=ROOT, **variables):
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"PYTHON": sys.executable, "GPUS": "0", **variables}
    command = ["bash", *map(str, words)]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)


def printed_flags(done):
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.splitlines()[-1])
    return words[words.index("code/distillation.py") + 1 :]


# ---- run files -------------------------------------------------------------------------------------------------------


def test_every_run_file_has_its_script():
    assert {path.stem for path in RUN_FILES} == SCRIPTS.keys()


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_a_run_file_is_the_run_of_its_script(path):
    script, variables = SCRIPTS[path.stem]
    ours = parse_train_arguments(printed_flags(bash("scripts/run.sh", path, DRY_RUN="1")))
    assert ours == parse_train_arguments(printed_flags(bash(script, DRY_RUN="1", **variables)))


def test_flags_override_the_file_and_the_environment_its_variables(tmp_path):
    path = tmp_path / "a run.yaml"
    path.write_text("model_path: a model\ndata-dir: rows\nlr: 1e-4\nreport-to: [tensorboard, wandb]\nseed:\nGPUS: 3\n")
    done = bash("scripts/run.sh", path, "--seed", "3", "--lr", "0.5", DRY_RUN="1", GPUS="")
    assert "--nproc_per_node 3" in done.stdout or "--num_gpus 3" in done.stdout
    config = parse_train_arguments(printed_flags(done))
    assert (config.model.model_path, config.train.lr, config.train.seed) == ("a model", 0.5, 3)
    assert config.train.report_to == ["tensorboard", "wandb"]
    assert f"{sys.executable} code/distillation.py" in bash("scripts/run.sh", path, DRY_RUN="1").stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kd-tempreature: 2", "--kd-tempreature: unknown flag; did you mean --kd-temperature?"),
        ("lr: fast", "--lr fast: pass a number"),
        ("kd-rate: 2", "--kd-rate 2.0: pass a number of at least 0 and at most 1"),
        ("lr: 1\nlr: 2", "line 4: lr: stands there twice"),
        ("kd-rate: 1\nkd_rate: 1", "line 4: kd_rate: stands there twice"),
        ("train:\n  lr: 1", "line 3: train: the file is flat"),
        ("GPU: 2", "line 3: GPU: not a variable of the launcher; did you mean GPUS?"),
        ("KD_TEMP: 2", "line 3: KD_TEMP: a variable of the scripts; here it is kd-temperature"),
        ("EVAL_GEN: 1", "here it is eval-gen"),
        ("lr: [", "line 4"),
    ],
)
def test_a_mistake_in_a_run_file_names_file_and_remedy(tmp_path, text, said):
    path = tmp_path / "run.yaml"
    path.write_text(f"model-path: m\ndata-dir: d\n{text}\n")
    with pytest.raises(ValueError) as error:
        run_file.read_run(path, [])
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("absent.yaml", None, "No such file"),
        ("run.yaml", "- lr", "not a list of `flag: value` lines"),
        ("args.json", "{}", "not the args.json of a run"),
        ("args.json", "{", "Expecting property name"),
    ],
)
def test_a_file_that_is_none(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        run_file.read_run(tmp_path / name, ["--save-dir", "x"])
    done = bash("scripts/run.sh", tmp_path / name, "--save-dir", "x")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and said in done.stderr


# ---- repeating a run -------------------------------------------------------------------------------------------------


def test_args_json_has_the_flags_of_the_run(tiny, rows, tmp_path):
    """And the same run comes of them, to the bit: tests/integration/test_families.py."""
    argv = [
        *("--model-path", str(tiny / "student"), "--teacher-model-path", str(tiny / "teacher")),
        *("--data-dir", str(rows), "--kd-objective", "srkl", "--skew-lambda", "0.3", "--peft", "lora", "--no-packing"),
        *("--precision", "auto", "--global-batch-size", "16", "--batch-size", "2", "--report-to", "tensorboard"),
    ]
    first = check(parse_train_arguments([*argv, "--save-dir", "first"])).config
    path = tmp_path / "args.json"
    path.write_text(json.dumps(first.flags | {"deepspeed": {}, "run": {}}))
    _, flags = run_file.read_run(path, ["--save-dir", "again"])
    again = check(parse_train_arguments(flags)).config
    assert [name for name in first.flags if first.flags[name] != again.flags[name]] == ["save_dir"]
    assert again.train.gradient_accumulation_steps == 8
    with pytest.raises(ValueError, match="pass --save-dir FOLDER; first is the run's own"):
        run_file.read_run(path, [])


# ---- sweeps ----------------------------------------------------------------------------------------------------------

ENTRY = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from arguments import parse_train_arguments
config = parse_train_arguments(sys.argv[1:])
folder = Path(config.train.save_dir)
(folder / "resume").mkdir(parents=True, exist_ok=True)
with open("starts", "a") as starts:
    print(folder.name, file=starts)
if config.train.lr == float(os.environ.get("BREAK_AT_LR", "0")):
    sys.exit(int(os.environ["BREAK_CODE"]))
record = {"step": 4, "loss": 2.0 + config.train.lr, "rougel": 10.0 * config.train.lr}
(folder / "dev_metrics.jsonl").write_text(json.dumps(record) + "\\n")
(folder / "args.json").write_text(json.dumps(config.flags))
(folder / "resume/state.json").write_text(json.dumps({"position": {"finished": True}}))
"""
SWEEP = ("scripts/sweep.sh", "scripts/tiny/kd_student.sh", "KD_OBJ=fkl", "--lr=0.5 0.25")
NAMES = ["KD_OBJ=fkl__lr=0.5", "KD_OBJ=fkl__lr=0.25"]


@pytest.fixture
def repository(tmp_path):
    """The scripts, with an entry point that only writes what a run leaves behind."""
    root = tmp_path / "a copy"
    for folder in ("scripts", "configs", "code"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "code/distillation.py").write_text(ENTRY)
    return root


def starts(root):
    path = root / "starts"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def table(done):
    return [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]


def test_a_sweep_is_the_product_of_its_values():
    _, grid, flags = sweep.parse(
        ["scripts/run.sh", "KD_OBJ=fkl adakd+todi", "--teacher-cache=a/b c", "--", "--seed", "3"]
    )
    names = [run.folder.name for run in sweep.combinations("scripts/run.sh", grid)]
    assert names == [
        f"KD_OBJ={objective}__teacher-cache={c}" for objective in ("fkl", "adakd+todi") for c in ("a-b", "c")
    ]
    assert flags == ["--seed", "3"]


def test_a_sweep_survives_a_failing_run_stops_with_a_stopped_one_and_skips_finished_ones(repository):
    failed = bash(*SWEEP, root=repository, BREAK_AT_LR="0.5", BREAK_CODE="3")
    assert failed.returncode == 1 and starts(repository) == NAMES
    assert [row[-1] for row in table(failed)] == ["exit code 3", "finished"]
    stopped = bash(*SWEEP, root=repository, BREAK_AT_LR="0.5", BREAK_CODE="75")
    assert stopped.returncode == 75 and starts(repository) == NAMES[:1]
    assert [row[-1] for row in table(stopped)] == ["exit code 75", "not started"]
    done = bash(*SWEEP, root=repository)
    assert done.returncode == 0 and starts(repository) == NAMES[:1]
    scores = [["fkl", "0.5", "2.5000", "5.00"], ["fkl", "0.25", "2.2500", "2.50"]]
    assert table(done) == [[*row, "", "finished"] for row in scores]
    text = (repository / "outputs/sweeps/tiny-kd_student/sweep.md").read_text()
    assert text in done.stdout and text.splitlines()[0].endswith("| ROUGE-L | state |")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no such script"),
        (("absent.sh", "LR=1"), "'absent.sh': no such script"),
        (("scripts/tiny/kd_student.sh",), "nothing to sweep"),
        (("scripts/tiny/kd_student.sh", "LR"), "LR: pass NAME='values'"),
        (("scripts/tiny/kd_student.sh", "LEARNING_RATE=1 2"), "did you mean LR?"),
        (("scripts/tiny/kd_student.sh", "--lrr=1 2"), "--lrr: unknown flag; did you mean --lr?"),
        (("scripts/tiny/kd_student.sh", "LR=1 fast"), "LR=fast: --lr fast: pass a number"),
        (("scripts/report.sh", "LR=1"), "does not train"),
    ],
)
def test_a_mistake_ends_a_sweep_before_its_first_run(words, said):
    done = bash("scripts/sweep.sh", *words)
    assert done.returncode == 1 and done.stderr.startswith("sweep.sh: ") and said in done.stderr


def test_a_run_file_is_swept_and_finished_runs_of_other_flags_are_not_skipped(repository):
    words = ("scripts/sweep.sh", "configs/runs/tiny_todi.yaml", "--lr=0.5", "--", "--seed")
    for seed, started in (("3", ["lr=0.5"]), ("3", []), ("4", ["lr=0.5"])):  # the entry point may refuse the folder
        done = bash(*words, seed, root=repository, SWEEP_DIR="elsewhere")
        assert table(done) == [["0.5", "2.5000", "5.00", "", "finished"]]
        assert starts(repository) == started
    assert json.loads((repository / "elsewhere/lr=0.5/args.json").read_text())["seed"] == 4
