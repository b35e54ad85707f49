"""Nothing that is loaded can run code unasked, revisions are pinned, and file names are words to the shell."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from arguments import ModelArguments, TeacherArguments
from models import loading
from models.loading import load_checkpoint, load_student, load_teacher, load_tokenizer
from preflight.report import Report
from preflight.skeleton import student_facts, teacher_facts

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("code", "scripts") for path in (ROOT / folder).rglob("*.py"))
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"}


# --- what the code may call ------------------------------------------------------------------------------------------


def offences(source: str) -> list[str]:
    """Calls and imports that could run what a file or a file's name holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.partition(".")[0] in FORBIDDEN_IMPORTS]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        found += [name] if name in FORBIDDEN_CALLS else []
        if name.endswith("torch.load") and given.get("weights_only") != "True":
            found.append(f"{name} without weights_only=True")
        if given.get("shell", "False") != "False":
            found.append(f"{name} with a shell")
        if given.get("trust_remote_code") == "True":
            found.append(f"{name} with remote code")
        if name.startswith("AutoModel") and name.endswith("from_pretrained") and given.get("use_safetensors") != "True":
            found.append(f"{name} of pickles")
    return found


def test_nothing_runs_what_a_file_holds():
    found = {str(path.relative_to(ROOT)): offences(path.read_text()) for path in FILES}
    assert found == {path: [] for path in found}


def test_an_offence_is_seen():
    lines = """import pickle
        from pickle import load
        torch.load(path, weights_only=False)
        subprocess.run(f'rm {path}', shell=True)
        os.system(path)
        AutoModelForCausalLM.from_pretrained(path)
        AutoTokenizer.from_pretrained(path, trust_remote_code=True)"""
    assert all(offences(line.strip()) for line in lines.splitlines())


# --- weights ---------------------------------------------------------------------------------------------------------


class Bomb(str):
    """A path; unpickling it makes the file."""

    def __reduce__(self):
        return Path.touch, (Path(self),)


def test_a_pickle_is_never_opened(tiny, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / "student" / name).read_bytes())
    torch.save({"model.norm.weight": Bomb(tmp_path / "exploded")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"--model-path .*: pytorch_model.bin but no model.safeten.* convert them"):
        load_checkpoint(str(tmp_path))
    with pytest.raises(ValueError, match="safetensors"):  # past the checks, Transformers refuses it too
        load_student(ModelArguments(str(tmp_path)), torch.float32)
    assert not (tmp_path / "exploded").exists()


@pytest.fixture
def remote(tiny, tmp_path):
    """A model folder whose configuration asks for code of its own, which makes a file."""
    folder = tmp_path / "remote"
    folder.mkdir()
    for file in (tiny / "student").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "remote", "auto_map": {"AutoConfig": "remote.C", "AutoModelForCausalLM": "remote.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "remote.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class C(LlamaConfig):\n    model_type = 'remote'\n"
        "class M(LlamaForCausalLM):\n    config_class = C\n"
    )
    return folder


def test_remote_code_runs_only_where_it_is_asked_for(remote, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "modules")])
    for load in (
        lambda: load_checkpoint(str(remote)),
        lambda: student_facts(ModelArguments(str(remote)), Report()),
        lambda: load_student(ModelArguments(str(remote)), torch.float32),
    ):
        with pytest.raises(ValueError, match=r"trust[-_]remote[-_]code"):
            load()
    assert not (tmp_path / "ran").exists()
    student_facts(ModelArguments(str(remote), trust_remote_code=True), Report())
    assert (tmp_path / "ran").exists()


# --- revisions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tiny, monkeypatch):
    """`org/NAME` stands for the tiny model NAME; returns the (class, name, revision) that were asked for."""
    asked = []

    def record(auto):
        original = auto.from_pretrained

        def from_pretrained(path, *args, revision=None, **kwargs):
            if path.startswith("org/"):
                asked.append((auto.__name__, path, revision))
                path = str(tiny / path.removeprefix("org/"))
            return original(path, *args, **kwargs)

        monkeypatch.setattr(auto, "from_pretrained", from_pretrained)

    for auto in (AutoModelForCausalLM, AutoTokenizer, AutoConfig):
        record(auto)
    return asked


def test_revisions_reach_every_load(hub):
    model = ModelArguments("org/student", model_revision="v1")
    teacher = TeacherArguments("org/teacher", teacher_revision="v2")
    load_student(model, torch.float32)
    load_teacher(teacher, torch.float32)
    load_tokenizer("org/student", revision="v1")
    student_facts(model, Report())
    teacher_facts(teacher, False, Report())
    load_checkpoint("org/student", revision="v1")
    assert {name for name, _, _ in hub} == {"AutoModelForCausalLM", "AutoTokenizer", "AutoConfig"}
    assert {(path, revision) for _, path, revision in hub} == {("org/student", "v1"), ("org/teacher", "v2")}


def test_an_adapter_remembers_the_revision_of_its_base(hub, tmp_path):
    model = load_student(ModelArguments("org/student", model_revision="v1", peft="lora"), torch.float32)
    model.peft_config["default"].base_model_name_or_path = "org/student"
    model.save_pretrained(tmp_path / "adapter")
    hub.clear()
    load_checkpoint(str(tmp_path / "adapter"))
    assert set(hub) == {("AutoModelForCausalLM", "org/student", "v1"), ("AutoTokenizer", "org/student", "v1")}


def test_a_revision_of_a_folder_is_refused(tiny):
    with pytest.raises(ValueError, match=r"--model-revision v1: .* is a folder, which has no revisions; drop"):
        load_checkpoint(str(tiny / "student"), revision="v1")


def test_missing_weights_are_not_made_up(tiny, monkeypatch):
    found = None, {"missing_keys": {"lm_head.weight"}}
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: found)
    with pytest.raises(ValueError, match=r"no weights for 1 of the model's tensors \(lm_head.weight\)"):
        load_student(ModelArguments(str(tiny / "student")), torch.float32)


# --- file names ------------------------------------------------------------------------------------------------------

NASTY = """it's "two words" $(touch pwned) `touch pwned`; touch pwned && touch pwned"""


@pytest.mark.parametrize("name", [NASTY, "*"])
@pytest.mark.parametrize("gpus", [0, 2])
def test_file_names_are_words_to_the_scripts(tmp_path, name, gpus):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "train.jsonl").write_text("")
    recorder = tmp_path / "python"
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > "{tmp_path}/words"\n')
    recorder.chmod(0o755)
    variables = {"CKPT_PATH": folder, "DATA_DIR": folder, "SAVE_DIR": folder / "run", "TEACHER_MODEL_PATH": folder}
    environment = {"PATH": os.environ["PATH"], "PYTHON": recorder, "GPUS": gpus, "DEVICE": "cpu", **variables}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/gpt2/kd_gpt2_base.sh"), "--peft-lora-target-modules", name],
        cwd=tmp_path,
        env={key: str(value) for key, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "words").read_text().split("\0")
    for flag, value in (("--model-path", folder), ("--data-dir", folder), ("--save-dir", folder / "run")):
        assert words[words.index(flag) + 1] == str(value)
    assert words[words.index("--peft-lora-target-modules") + 1] == name
    assert not list(tmp_path.rglob("pwned")) and not (ROOT / "pwned").exists()


def test_a_quote_is_refused_where_pdsh_would_hand_it_to_a_shell(tmp_path):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("worker-1 slots=2\n")
    environment = {"PATH": os.environ["PATH"], "HOSTFILE": str(hostfile), "GPUS": "2", "DRY_RUN": "1"}
    command = ["bash", str(ROOT / "scripts/gpt2/sft_gpt2_base.sh"), "--processed-data-dir", "it's"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "no path or value may have a single quote" in done.stderr
