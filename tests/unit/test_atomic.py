"""Outputs are there whole or not at all; the error of a failed write says where and how much room there is."""

import os
import subprocess
import sys

import pytest

from runtime import atomic
from runtime.atomic import new_folder, put_in_place, remove_unfinished, unfinished, write_text


def interrupted(*_):
    raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_text(path, "old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(atomic.os, "fsync", interrupted)
        write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [["epoch1", "old"], []])
def test_a_folder_is_there_when_it_is_complete(tmp_path, before):
    folder = tmp_path / "epoch1"
    if before:
        folder.mkdir()
        (folder / "old").touch()
    with pytest.raises(KeyboardInterrupt), new_folder(folder) as part:
        (part / "new").touch()
        assert not (folder / "new").exists()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == before
    with new_folder(folder) as part:
        (part / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["epoch1", "new"]


def test_a_crash_while_a_folder_is_replaced_loses_neither_version(tmp_path, monkeypatch):
    """Killed at every rename in turn, the folder is the old or the new one after the next start."""
    for fatal in (1, 2):
        folder = tmp_path / f"x{fatal}"
        part = unfinished(folder)
        for path in (folder / "old", part / "new"):
            path.parent.mkdir()
            path.touch()
        renames = iter([type(folder).rename] * (fatal - 1) + [interrupted])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(type(folder), "rename", lambda *paths, renames=renames: next(renames)(*paths))
            put_in_place(part, folder)
        remove_unfinished(tmp_path)
        assert [path.name for path in folder.iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x1", "x2"]


def test_what_is_half_written_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".a.tmp").mkdir()
    for name in (".a.tmp/file", ".b.json.tmp", "a", "b.tmp", ".c"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c", "a", "b.tmp"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from runtime.atomic import WriteError, new_folder, write_text

tensor = torch.zeros(100_000)
writes = [
    lambda folder: write_text(folder / "x.json", "x" * 100_000),
    lambda folder: torch.save(tensor, folder / "x.pt"),
    lambda folder: save_file({"x": tensor}, folder / "x.safetensors"),
]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
for write in writes:
    try:
        with new_folder(Path(sys.argv[1]) / "epoch1") as part:
            write(part)
    except WriteError as error:
        print(error)
"""


def test_a_full_disk_has_one_kind_of_error(tmp_path, root):
    """In a process of its own, since the limit that stands for the full disk cannot be taken back without rights."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(root / "code")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    errors = done.stdout.splitlines()
    assert len(errors) == 3 and all("was not written" in error and "MB free there" in error for error in errors)
    assert not list(tmp_path.iterdir())


def test_an_error_of_another_kind_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="shape"), new_folder(tmp_path / "x"):
        raise RuntimeError("shape mismatch")
