"""scripts/models/download.py against a stub of the hub: what is fetched, which commit, resuming, pickled weights."""

import importlib.util
import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.tiny import llama
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/models/download.py"
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("download", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hub:
    """One repository: its files by name; `main` is a commit that may move; `broken`: the next download stops midway."""

    def __init__(self, files):
        self.files, self.main, self.broken, self.fetched = files, FIRST, False, []

    def model_info(self, hub_id, revision):
        return SimpleNamespace(sha=self.main if revision == "main" else revision)

    def list_repo_files(self, hub_id, revision):
        assert revision in (FIRST, SECOND)
        return list(self.files)

    def snapshot_download(self, hub_id, *, revision, local_dir, allow_patterns):
        for name, content in self.files.items():
            if not any(fnmatch(name, pattern) for pattern in allow_patterns):
                continue
            if self.broken and name != "config.json":
                raise OSError("connection lost")
            self.fetched.append((revision, name))
            (local_dir / name).write_bytes(content)


@pytest.fixture
def hub(tool, monkeypatch):
    def use(files):
        stub = Hub(files)
        monkeypatch.setattr(tool, "HfApi", lambda: stub)
        monkeypatch.setattr(tool, "snapshot_download", stub.snapshot_download)
        return stub

    return use


FILES = dict.fromkeys(
    "config.json model.safetensors tokenizer.model merges.txt LICENSE pytorch_model.bin tf_model.h5 onnx/model.onnx "
    "original/consolidated.00.pth .gitattributes".split(),
    b"content",
)


def record(folder):
    return json.loads((folder / "download.json").read_text())


def test_config_tokenizer_and_safetensors_of_one_commit(tool, hub, tmp_path):
    stub = hub(FILES)
    tool.main(["--student", "org/model", str(tmp_path / "model")])
    assert record(tmp_path / "model") == {"hub_id": "org/model", "revision": "main", "commit": FIRST}
    assert stub.fetched == [(FIRST, name) for name in list(FILES)[:5]]


def test_an_interrupted_download_continues_its_commit(tool, hub, tmp_path):
    stub = hub(FILES)
    stub.broken = True
    words = ["--student", "org/model", str(tmp_path / "model")]
    with pytest.raises(OSError, match="connection lost"):
        tool.main(words)
    stub.broken, stub.main = False, SECOND
    tool.main(words)
    assert {commit for commit, _ in stub.fetched} == {FIRST} and record(tmp_path / "model")["commit"] == FIRST


def test_another_model_or_revision_in_the_folder_is_refused(tool, hub, tmp_path):
    hub(FILES)
    tool.main(["--student", "org/model", str(tmp_path)])
    tool.main(["--student", "org/model", str(tmp_path), "--revision", FIRST])  # what it holds
    for other in (["org/other", str(tmp_path)], ["org/model", str(tmp_path), "--revision", SECOND]):
        with pytest.raises(ValueError, match=r"holds org/model at main \(1+\).*move the folder away"):
            tool.main(["--student", *other])


def test_a_folder_of_other_files_is_refused(tool, hub, tmp_path):
    hub(FILES)
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match=r"holds files without a download\.json"):
        tool.main(["--student", "org/model", str(tmp_path)])


def test_a_commit_is_of_one_model(tool, hub, tmp_path):
    stub = hub(FILES)
    models = ["--teacher", "org/big", str(tmp_path / "big"), "--student", "org/small", str(tmp_path / "small")]
    with pytest.raises(ValueError, match="add --only teacher or --only student"):
        tool.main([*models, "--revision", SECOND])
    tool.main([*models, "--revision", SECOND, "--only", "student"])
    assert not (tmp_path / "big").exists() and record(tmp_path / "small")["commit"] == SECOND
    stub.fetched.clear()
    tool.main([*models, "--only", "teacher"])
    assert {commit for commit, _ in stub.fetched} == {FIRST}


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_weights_become_safetensors_when_asked_to(tool, hub, tmp_path, shards):
    model = llama(97, hidden=16, layers=1, tied=True, seed=0)
    source, folder = tmp_path / "source", tmp_path / "model"
    model.config.save_pretrained(source)
    tensors = model.state_dict()
    if shards == 1:
        torch.save(tensors, source / "pytorch_model.bin")
    else:
        names = list(tensors)
        for n, part in enumerate((names[:3], names[3:])):
            torch.save({name: tensors[name] for name in part}, source / f"pytorch_model-0000{n + 1}-of-00002.bin")
        (source / "pytorch_model.bin.index.json").write_text("{}")
    stub = hub({path.name: path.read_bytes() for path in source.iterdir()})
    words = ["--student", "org/model", str(folder)]
    with pytest.raises(ValueError, match="has pickled weights only; pass --convert"):
        tool.main(words)
    tool.main([*words, "--convert"])
    assert not list(folder.glob("*.bin"))
    stub.fetched.clear()
    tool.main([*words, "--convert"])
    assert not [name for _, name in stub.fetched if name.endswith(".bin")]
    ids = torch.arange(20)[None]
    loaded = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_without_a_network_the_error_is_one_line(tmp_path):
    words = [sys.executable, SCRIPT, "--student", "org/model", tmp_path / "model"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("download.py: ")
    assert "Traceback" not in done.stderr
