"""Files and folders that appear under their final name only when they are complete and on the disk.

What is being written is called `.NAME.tmp` beside its place. A crash leaves that and nothing else; the next start
removes it (`remove_unfinished`). What NAME was before stays until the new one is complete.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

TORCH_WRITES = ("PytorchStreamWriter", "inline_container")  # in the text of torch.save's RuntimeError


class WriteError(OSError):
    """An output could not be written; what was complete before is intact."""


def unfinished(path: Path) -> Path:
    """What `path` is called while it is written."""
    return path.with_name(f".{path.name}.tmp")


def remove_unfinished(folder: Path) -> None:
    """Deletes what a crash left half-written in `folder`; one process calls it, before anything is written."""
    for path in folder.glob(".*.old.tmp"):  # a folder that was being replaced: complete
        before = path.with_name(path.name[1 : -len(".old.tmp")])
        if not before.exists():
            path.rename(before)
    for path in folder.glob(".*.tmp"):
        remove(path)


def remove(path: Path) -> None:
    """Deletes a file or a folder, or nothing where there is none."""
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
    """Yields where to write a file; where that succeeds it becomes `path`.

    Raises WriteError, and leaves `path` as it was.
    """
    part = unfinished(path)
    with as_write_error(path):
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; where that succeeds it becomes `folder`, in place of one that may be there.

    Raises WriteError, and leaves `folder` as it was.
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
    """Renames a complete, flushed `part` to `folder`; at no instant are both versions gone."""
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
    """Everything in `folder` is on the disk when this returns."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """A file's contents, or a folder's names, are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def as_write_error(path: Path) -> Iterator[None]:
    """Turns what a full disk, a quota or lost storage makes of a write into a WriteError that names `path`.

    torch.save and safetensors report a failed write in exceptions of their own, without an errno.
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
            reason = "the write failed"  # the text speaks of positions in the file
        free_mb = shutil.disk_usage(existing_part(path)).free // 2**20
        raise WriteError(f"{path} was not written: {reason} ({free_mb} MB free there)") from error


def existing_part(path: Path) -> Path:
    """The path, or the first folder on the way up that is there."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
