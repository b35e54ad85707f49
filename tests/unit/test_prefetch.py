"""Batches from a background thread: the same ones in the same order, errors in their place, no thread left behind."""

import threading
import time
import traceback
from contextlib import closing

import pytest
import torch

from training.prefetch import AHEAD, prefetched

CPU = torch.device("cpu")


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("prefetch")}


def test_everything_comes_in_order():
    for count in (0, 1, AHEAD, AHEAD + 1, 20):
        assert list(prefetched(lambda item: item * item, range(count), CPU)) == [i * i for i in range(count)]
    assert not threads()


def test_what_comes_next_is_made_while_the_caller_works():
    made = []
    with closing(prefetched(made.append, range(10), CPU)) as batches:
        next(batches)
        deadline = time.monotonic() + 10
        while len(made) < 1 + AHEAD and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert made == list(range(1 + AHEAD))  # and no further: what waits takes memory


def broken(item: int) -> int:
    return 1 // (3 - item)


def test_an_error_surfaces_at_its_batch_with_its_traceback():
    taken = []
    with pytest.raises(ZeroDivisionError) as error, closing(prefetched(broken, range(10), CPU)) as batches:
        for batch in batches:
            taken.append(batch)
    assert taken == [broken(0), broken(1), broken(2)]
    assert "broken" in [frame.name for frame in traceback.extract_tb(error.tb)]
    assert not threads()


def test_a_loop_that_is_left_ends_the_thread():
    with pytest.raises(KeyboardInterrupt), closing(prefetched(str, range(1000), CPU)) as batches:
        next(batches)
        assert threads()
        raise KeyboardInterrupt
    assert not threads()
