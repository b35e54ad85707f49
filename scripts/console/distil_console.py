"""The commands distil, distil-evaluate, ...: each is `python code/<entry>.py` of this checkout, under a name.

`pip install -e .` puts only this module on the path, and pyproject.toml lists the names. The modules in code/ have
names such as `models` and `training`, which do not belong into site-packages; so they stay where they are, and an entry
runs as a process of its own, with its exit code. An installation that is not editable has no code/ beside it.

    distil --model-path STUDENT ...                                  one process
    torchrun --no-python --nproc_per_node 4 distil --model-path ...  or any other launcher of commands
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

CODE = Path(__file__).resolve().parents[2] / "code"


def run(entry: str) -> None:
    """Becomes `python code/<entry>.py` with this command's arguments."""
    path = CODE / f"{entry}.py"
    if not path.is_file():
        sys.exit(f"error: {path} is not there; install from a checkout, with pip install -e .")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(path), *sys.argv[1:]])


def __getattr__(entry: str) -> Callable[[], None]:
    """The command of an entry: `distil_console:evaluate` in pyproject.toml is code/evaluate.py."""
    if entry.startswith("_"):
        raise AttributeError(entry)
    return partial(run, entry)
