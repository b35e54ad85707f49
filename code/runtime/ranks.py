"""The ranks of a run: their process group, which one is the main process, and blocks that fail on all ranks or on none.

If one rank stopped alone, the others would wait in their next collective until its timeout, half an hour by default.
And one rank may work alone for longer than that (tokenising, for example). So the ranks meet in `all_ranks` through the
store of the process group, where waiting has no limit, and not in a collective.

Without a process group (in the doctor) there is one rank, and nothing waits.
"""

import itertools
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import distributed as dist

from runtime.atomic import WriteError

T = TypeVar("T")
USER_ERRORS = (ValueError, OSError)
LONGEST_PAUSE = 0.5  # seconds between two looks at the store
LONGEST_FAREWELL = 10.0  # seconds that a failing rank 0 waits for the others to read why
_meetings = itertools.count()


@dataclass(frozen=True)
class Ranks:
    """How many processes the launcher started, in all and on this machine; known before there is a process group."""

    world_size: int
    per_node: int

    @classmethod
    def from_environment(cls) -> "Ranks":
        """As torchrun and deepspeed set it; without a launcher, one process."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(world_size, int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size))))


class OtherRankFailed(RuntimeError):
    """Another rank failed by an error that is not the user's; that rank shows the traceback."""


def init_distributed() -> torch.device:
    """Joins the process group of `deepspeed` or `torchrun`, or makes one of this process only. Returns the device.

    Raises ValueError if there are more processes than devices, OSError if the port is taken.
    """
    # DeepSpeed calls collectives by names that torch will remove: nothing a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    accelerator = get_accelerator()
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if accelerator.device_name() == "cpu":
        # DeepSpeed would compile its shared-memory collectives, for a minute and with a compiler; gloo needs neither.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        _check_devices(accelerator.device_count(), local_rank)
        accelerator.set_device(local_rank)
    try:
        deepspeed.init_distributed(
            dist_backend=accelerator.communication_backend_name(), auto_mpi_discovery=False, verbose=False
        )
    except dist.DistNetworkError as error:
        place = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')} MASTER_PORT={os.environ.get('MASTER_PORT')}"
        raise OSError(
            f"{place}: {str(error).splitlines()[0]}; another run may have the port: set MASTER_PORT to a free one"
        ) from None
    return torch.device(accelerator.device_name(local_rank) if accelerator.device_name() != "cpu" else "cpu")


def _check_devices(devices: int, local_rank: int) -> None:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", local_rank + 1)))
    if processes > devices:
        raise ValueError(
            f"{processes} processes on a machine with {devices} visible devices; set GPUS={devices} (or --num_gpus, "
            "--nproc_per_node), or show more of them in CUDA_VISIBLE_DEVICES"
        )


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    return rank() == 0


def is_first_of_node() -> bool:
    """Whether this rank reports errors and prepares files for its node. Works without a process group, too."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def from_main_process(value: T) -> T:
    """Rank 0's value on every rank."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


@contextmanager
def all_ranks() -> Iterator[None]:
    """All ranks enter the block and leave it together; if it fails on one rank, it fails on all.

    The block must not contain collectives; a rank may have nothing to do in it. On every rank, a WriteError is raised
    as WriteError, and another error that a user can cause (ValueError, OSError) as ValueError. Any other error is
    raised as itself on its own rank, and as OtherRankFailed on the others.
    """
    if not dist.is_initialized():
        yield
        return
    failure = None
    try:
        yield
    except Exception as error:  # raised below, after the other ranks know
        failure = error
    kind = next((kind for kind in (WriteError, *USER_ERRORS) if isinstance(failure, kind)), OtherRankFailed)
    outcome = None
    if failure is not None:
        outcome = kind.__name__, repr(failure) if kind is OtherRankFailed else str(failure)
    outcomes = _exchange(outcome)
    if failure is not None and kind is OtherRankFailed:
        raise failure
    failed = {rank: tuple(outcome) for rank, outcome in enumerate(outcomes) if outcome is not None}
    if failed:
        _raise(failed)


def _exchange(outcome: tuple[str, str] | None) -> list[list[str] | None]:
    """The outcomes of all ranks, by rank. Waits for every rank without limit; a launcher ends the others if one dies.

    An outcome is the kind of a failure and its message, or None.
    """
    store, meeting = dist.group.WORLD.get_group_store(), next(_meetings)
    keys = [f"all_ranks/{meeting}/{rank}" for rank in range(dist.get_world_size())]
    store.set(keys[dist.get_rank()], json.dumps(outcome))
    pause = 0.001
    while not store.check(keys):
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, 1.5 * pause)
    outcomes = [json.loads(value) for value in store.multi_get(keys)]
    if any(outcome is not None for outcome in outcomes):
        _wait_for_readers(store, f"all_ranks/{meeting}/read")
    return outcomes


def _wait_for_readers(store: dist.Store, prefix: str) -> None:
    """Keeps rank 0, whose process may hold the store, alive until the others have read (a killed rank never does)."""
    keys = [f"{prefix}/{rank}" for rank in range(dist.get_world_size())]
    store.set(keys[dist.get_rank()], "")
    until = time.monotonic() + LONGEST_FAREWELL
    while dist.get_rank() == 0 and not store.check(keys) and time.monotonic() < until:
        time.sleep(0.01)


def _raise(failed: dict[int, tuple[str, str]]) -> NoReturn:
    """failed: by rank, the kind of the failure and its message."""
    bugs = [f"rank {rank}: {message}" for rank, (kind, message) in failed.items() if kind == OtherRankFailed.__name__]
    if bugs:
        raise OtherRankFailed("; ".join(bugs))
    not_written = any(kind == WriteError.__name__ for kind, _ in failed.values())
    messages = dict.fromkeys(message for _, message in failed.values())
    raise (WriteError if not_written else ValueError)("\n".join(messages))
