"""Writes files and folders that appear under their final name only when they are complete and on the disk.

While NAME is being written it is called `.NAME.tmp`, in the same folder. A crash leaves only that, and the next start
removes it (`remove_unfinished`). An older NAME stays until the new one is complete.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

TORCH_WRITES = ("PytorchStreamWriter", "inline_container")  # words in the text of torch.save's RuntimeError


class WriteError(OSError):
    """An output could not be written; what was complete before is intact."""


def unfinished(path: Path) -> Path:
    """The name of `path` while it is being written."""
    return path.with_name(f".{path.name}.tmp")


def remove_unfinished(folder: Path) -> None:
    """Deletes what a crash left unfinished in `folder`. Called by one process, before anything is written there."""
    for path in folder.glob(".*.old.tmp"):  # a complete folder that was being replaced
        before = path.with_name(path.name[1 : -len(".old.tmp")])
        if not before.exists():
            path.rename(before)
    for path in folder.glob(".*.tmp"):
        remove(path)


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Raises WriteError."""
    with new_file(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; if the block succeeds, the file becomes `path`.

    Otherwise `path` stays as it was. Raises WriteError.
    """
    part = unfinished(path)
    with as_write_error(path):
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; if the block succeeds, it replaces `folder`.

    Otherwise `folder` stays as it was. Raises WriteError.
    """
    part = unfinished(folder)
    with as_write_error(folder):
        remove(part)
        part.mkdir(parents=True)
        try:
            yield part
            flush(part)
        except BaseException:
            remove(part)
            raise
        put_in_place(part, folder)


def put_in_place(part: Path, folder: Path) -> None:
    """Renames a complete, flushed `part` to `folder`; at any moment one of the two versions exists."""
    if folder.exists():
        old = unfinished(folder.with_name(f"{folder.name}.old"))
        remove(old)
        folder.rename(old)
        part.rename(folder)
        sync(folder.parent)
        remove(old)
    else:
        part.rename(folder)
        sync(folder.parent)


def flush(folder: Path) -> None:
    """Waits until everything in `folder` is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Waits until a file's contents, or a folder's list of names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def as_write_error(path: Path) -> Iterator[None]:
    """Turns the error of a failed write (full disk, quota, lost storage) into a WriteError that names `path`.

    torch.save and safetensors report a failed write by exceptions of their own, without an errno.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, RuntimeError):
            if not any(word in reason for word in TORCH_WRITES):
                raise
            reason = "the write failed"  # the error's own text is about positions in the file
        free_mb = shutil.disk_usage(existing_part(path)).free // 2**20
        raise WriteError(f"{path} was not written: {reason} ({free_mb} MB free there)") from error


def existing_part(path: Path) -> Path:
    """The path itself, or the nearest of its parents that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
