"""All ranks go on, or all stop: what goes wrong on one rank is raised on every one.

A rank that stopped alone would leave the others in their next collective until its timeout, half an hour by default.
"""

import os
from collections.abc import Callable
from typing import NoReturn, TypeVar

from torch import distributed as dist

from data_utils.atomic import WriteError

T = TypeVar("T")
USER_ERRORS = (ValueError, OSError)


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
    said: list[tuple[type[Exception], str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(
        said, None if failure is None else (kind, repr(failure) if kind is OtherRankFailed else str(failure))
    )
    if failure is not None and kind is OtherRankFailed:
        raise failure
    failed = {rank: outcome for rank, outcome in enumerate(said) if outcome is not None}
    if failed:
        _raise(failed)
    return result


def _raise(failed: dict[int, tuple[type[Exception], str]]) -> NoReturn:
    if bugs := [f"rank {rank}: {message}" for rank, (kind, message) in failed.items() if kind is OtherRankFailed]:
        raise OtherRankFailed("; ".join(bugs))
    kinds = {kind for kind, _ in failed.values()}
    raise (WriteError if WriteError in kinds else ValueError)(
        "\n".join(dict.fromkeys(message for _, message in failed.values()))
    )


def is_first_of_node() -> bool:
    """Whether this rank speaks and prepares files for its node; known before there is a process group."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0
