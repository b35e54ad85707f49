"""Shared by all tests: no hub, quiet libraries, tiny models and rows of this project's own."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests")]
if os.environ.get("TEST_WITHOUT"):  # precisions to do without, here and in every process that a test starts
    from masked import sitecustomize

    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(sitecustomize.__file__).parent), os.environ.get("PYTHONPATH")])
    )


@pytest.fixture(autouse=True)
def alone():
    """A process group that a test makes ends with it, and so do the variables of its launcher."""
    environment, grouped = dict(os.environ), dist.is_initialized()
    yield
    if dist.is_initialized() and not grouped:
        dist.destroy_process_group()
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder with `teacher`, `student` (Llama, untied) and `student_tied`, one tokenizer; see tiny.py."""
    from tiny import make_models

    folder = tmp_path_factory.mktemp("tiny")
    make_models(folder)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """A data folder with train.jsonl (24 rows), dev.jsonl (5) and valid.jsonl (6)."""
    from tiny import make_rows

    folder = tmp_path_factory.mktemp("rows")
    all_rows = make_rows(35)
    for name, part in (("train", all_rows[:24]), ("dev", all_rows[24:29]), ("valid", all_rows[29:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture
def one_thread():
    """Small tensors: a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
