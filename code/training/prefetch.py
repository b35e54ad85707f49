"""Makes the next batches in a background thread while the current step runs.

In: a function from an item to a batch, and the items. Out: the batches, in order.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item, Made = TypeVar("Item"), TypeVar("Made")
AHEAD = 2  # batches made but not yet taken


def prefetched(make: Callable[[Item], Made], items: Iterable[Item], device: torch.device) -> Iterator[Made]:
    """Yields `make(item)` of every item, in order, made by one thread; `contextlib.closing` ends the thread.

    An error in `make` is raised where its batch would have been taken. device: where `make` puts the batch.
    """
    is_accelerator = device.type != "cpu"
    # Each thread has its own current device, which decides where memory is pinned.
    set_device = torch.get_device_module(device).set_device if is_accelerator else None
    thread = ThreadPoolExecutor(1, "prefetch", initializer=set_device, initargs=(device,) if is_accelerator else ())
    pending: deque[Future[Made]] = deque()
    try:
        for item in items:
            pending.append(thread.submit(make, item))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
