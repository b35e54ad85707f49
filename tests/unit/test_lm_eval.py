"""scripts/eval/lm_eval.sh: what it passes to a stub of lm_eval, for full and LoRA runs, and what it says without it."""

import json
import os
import runpy
import shlex
import subprocess
import sys

import pytest


@pytest.fixture
def run_script(root, tmp_path):
    """Runs it from tmp_path, where `stub/lm_eval` is the package that it finds, if it is there."""

    def run(*words, code=0, **variables):
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": sys.executable, "GPUS": "0"}
        environment |= {"PYTHONPATH": str(tmp_path / "stub"), **variables}
        command = ["bash", str(root / "scripts/eval/lm_eval.sh"), *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    return run


@pytest.fixture
def lm_eval(tmp_path):
    folder = tmp_path / "stub/lm_eval"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text("import json, sys; print(json.dumps(sys.argv[1:]))")


def write_run(folder, **files):
    checkpoint = folder / "epoch2_step9_loss1.5"
    checkpoint.mkdir(parents=True)
    for name, content in files.items():
        (checkpoint / f"{name}.json").write_text(json.dumps(content))
    return checkpoint


def test_a_run_is_passed_to_it(run_script, lm_eval, tmp_path):
    checkpoint = write_run(tmp_path / "a run", config={})
    printed, passed = run_script("a run", "hellaswag,arc_easy", "--limit", "10").splitlines()
    flags = ["--model", "hf", "--model_args", f"pretrained={checkpoint}", "--tasks", "hellaswag,arc_easy"]
    flags += ["--batch_size", "auto", "--output_path", f"{tmp_path}/a run/eval/{checkpoint.name}/lm_eval"]
    assert json.loads(passed) == [*flags, "--device", "cpu", "--limit", "10"]
    assert shlex.split(printed) == [sys.executable, "-m", "lm_eval", *json.loads(passed)]


def test_an_adapter_is_passed_with_its_base_and_its_tokenizer(root, tmp_path):
    base = write_run(tmp_path / "base", config={})
    config = {"base_model_name_or_path": str(base)}
    checkpoint = write_run(tmp_path / "lora", adapter_config=config)
    model_args = runpy.run_path(str(root / "scripts/eval/lm_eval_model.py"))["model_args"]
    assert model_args(str(checkpoint)) == f"pretrained={base},peft={checkpoint}"
    (checkpoint / "tokenizer_config.json").touch()
    assert model_args(str(checkpoint)) == f"pretrained={base},peft={checkpoint},tokenizer={checkpoint}"
    with pytest.raises(ValueError, match=r"pretrained=a,b: lm_eval splits its --model_args at commas; rename"):
        model_args("a,b")


def test_without_the_package_the_command_is_named(run_script, tmp_path):
    write_run(tmp_path / "run", config={})
    try:
        import lm_eval  # noqa: F401

        pytest.skip("lm_eval is installed")
    except ImportError:
        said = f"lm_eval is not installed: {sys.executable} -m pip install lm_eval"
        assert said in run_script("run", "hellaswag", code=1)
    assert "pretrained=" in run_script("run", "hellaswag", DRY_RUN="1")


@pytest.mark.parametrize("words", [[], ["run"], ["run", "--limit", "3"]])
def test_run_and_tasks_are_needed(run_script, words):
    assert "pass the run and the tasks: bash" in run_script(*words, code=1)
