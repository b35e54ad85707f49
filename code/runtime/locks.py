"""Locks between processes, by a file that names the holder.

In: the path of the file. Out: the open file; closing it, or the end of the process, releases the lock.
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
    """Another process holds the lock; the message names it."""


def lock(path: Path, wait: bool = False) -> tuple[TextIO, str | None]:
    """Creates the file and its folder, and locks it. Returns the lock, and a note if the file system has no locks.

    wait: until the lock is free; otherwise raises Held. Raises WriteError if the file cannot be written.
    """
    note = None
    with as_write_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    try:
        # lockf, not flock: a forked child that outlives this process (of the tokenising pool, say) must not hold it.
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
