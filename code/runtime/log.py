"""The log of a run: rank 0 writes to the terminal and to train.log, the other ranks write nothing."""

import logging
import sys
from datetime import timedelta
from pathlib import Path

from runtime.ranks import is_main_process

logger = logging.getLogger("distillation")


def start_log(save_dir: Path) -> None:
    """Makes `logger` write to the terminal and to <save_dir>/train.log, on rank 0."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers.clear()
    if not is_main_process():
        logger.addHandler(logging.NullHandler())
        return
    for handler in (logging.StreamHandler(sys.stdout), logging.FileHandler(save_dir / "train.log", encoding="utf-8")):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)


def report(message: str) -> None:
    """Prints on rank 0: the log of entries without a run folder."""
    if is_main_process():
        print(message, flush=True)


def counted_rows(count: int) -> str:
    """Like 1 row, or 1,234 rows."""
    return f"{count:,} row{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, like 0:12:30."""
    return str(timedelta(seconds=round(seconds)))
