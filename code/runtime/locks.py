"""One run per --save-dir: a lock on <save_dir>/.lock, which says who holds it.

In: the folder. Out: the open file; the lock lasts as long as the file, at most as long as the process.
"""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from runtime.atomic import explained

NAME = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)


def lock_folder(folder: Path) -> tuple[TextIO, str | None]:
    """Makes the folder and locks it. Returns the lock, and a note where the file system has no locks.

    Raises ValueError that names the run that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, note = folder / NAME, None
    file = path.open("a+")
    try:
        # A lock of this process alone: a forked child (of the tokenising pool, say) that outlives it holds nothing.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            holder = path.read_text().strip() or "it has not said which"
            raise ValueError(
                f"--save-dir {folder}: another run uses it ({holder}); wait until it ends, stop it, or pass another "
                "--save-dir"
            ) from None
        note = f"{folder} cannot be locked ({error.strerror}): make sure that no other run uses it"
    with explained(path):
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}\n")
        file.flush()
    return file, note
