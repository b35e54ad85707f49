"""All ranks go on, or all stop: what goes wrong on one rank is raised on every one.

A rank that stopped alone would leave the others in their next collective until its timeout, half an hour by default. A
rank that works alone (tokenises, waits for a slower one) may take longer than that; so the ranks meet here by the store
of the process group, where waiting has no limit, and not in a collective.
"""

import itertools
import json
import os
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from torch import distributed as dist

from runtime.atomic import WriteError

T = TypeVar("T")
USER_ERRORS = (ValueError, OSError)
LONGEST_PAUSE = 0.5  # seconds between two looks at the store
LONGEST_FAREWELL = 10.0  # seconds that a failing rank 0 waits until the others know why
_meetings = itertools.count()


class OtherRankFailed(RuntimeError):
    """Something that no user got wrong went wrong on another rank, which shows its traceback."""


def together(step: Callable[[], T], only: bool = True) -> T | None:
    """`step()` on every rank where `only` holds; returns its result (elsewhere None) once it is done on all of them.

    Every rank calls it; `step` has no collectives. An output that could not be written is raised as WriteError on every
    rank, whichever of them it happened on, what a user can get wrong (ValueError, OSError) as ValueError; anything else
    as itself there and as OtherRankFailed on the others.
    """
    result, failure = None, None
    try:
        if only:
            result = step()
    except Exception as error:  # raised again below, when the others know
        failure = error
    kind = next((kind for kind in (WriteError, *USER_ERRORS) if isinstance(failure, kind)), OtherRankFailed)
    told = None
    if failure is not None:
        told = kind.__name__, repr(failure) if kind is OtherRankFailed else str(failure)
    said = _told_by_all(told)
    if failure is not None and kind is OtherRankFailed:
        raise failure
    failed = {rank: tuple(outcome) for rank, outcome in enumerate(said) if outcome is not None}
    if failed:
        _raise(failed)
    return result


def _told_by_all(outcome: tuple[str, str] | None) -> list[list[str] | None]:
    """The outcomes of all ranks, by rank, when every one has told its own, however long that takes.

    A rank that was killed tells nothing; its launcher ends the others.
    """
    store, meeting = dist.group.WORLD.get_group_store(), next(_meetings)
    keys = [f"together/{meeting}/{rank}" for rank in range(dist.get_world_size())]
    store.set(keys[dist.get_rank()], json.dumps(outcome))
    pause = 0.001
    while not store.check(keys):
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, 1.5 * pause)
    said = [json.loads(told) for told in store.multi_get(keys)]
    if any(told is not None for told in said):
        _wait_for_readers(store, f"together/{meeting}/read")
    return said


def _wait_for_readers(store: dist.Store, prefix: str) -> None:
    """Rank 0, whose process may hold the store, stays until the others have read why (a killed one never does)."""
    keys = [f"{prefix}/{rank}" for rank in range(dist.get_world_size())]
    store.set(keys[dist.get_rank()], "")
    until = time.monotonic() + LONGEST_FAREWELL
    while dist.get_rank() == 0 and not store.check(keys) and time.monotonic() < until:
        time.sleep(0.01)


def _raise(failed: dict[int, tuple[str, str]]) -> NoReturn:
    """failed: the names of the kinds of failure, and their messages, by rank."""
    bugs = [f"rank {rank}: {message}" for rank, (kind, message) in failed.items() if kind == OtherRankFailed.__name__]
    if bugs:
        raise OtherRankFailed("; ".join(bugs))
    not_written = any(kind == WriteError.__name__ for kind, _ in failed.values())
    messages = dict.fromkeys(message for _, message in failed.values())
    raise (WriteError if not_written else ValueError)("\n".join(messages))


def is_first_of_node() -> bool:
    """Whether this rank speaks and prepares files for its node; known before there is a process group."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0
