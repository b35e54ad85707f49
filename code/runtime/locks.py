"""Locks between processes, on a file that says who holds it.

In: the file. Out: the open file; the lock lasts as long as it is open, at most as long as the process.
"""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from runtime.atomic import as_write_error

HELD = (errno.EACCES, errno.EAGAIN)


class Held(Exception):
    """Another process has the lock; its message says which one."""


def lock(path: Path, wait: bool = False) -> tuple[TextIO, str | None]:
    """Makes the folder of `path` and locks the file. Returns the lock, and a note where the file system has no locks.

    wait: until it is free; otherwise raises Held. Raises WriteError if the file cannot be written.
    """
    note = None
    with as_write_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    try:
        # A lock of this process alone: a forked child (of the tokenising pool, say) that outlives it holds nothing.
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in HELD:
            raise Held(path.read_text().strip() or "it has not said which") from None
        note = f"{path.parent} cannot be locked ({error.strerror}): make sure that no other run uses it"
    with as_write_error(path):
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}\n")
        file.flush()
    return file, note
