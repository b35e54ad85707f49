"""Asks the judge the questions that have no verdict yet, several at a time, within the limits of the cost."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from evaluation.judging.endpoint import Endpoint, Reply
from evaluation.judging.questions import Question
from evaluation.judging.replies import Replies

REPORT_EVERY = 50  # replies


@dataclass(frozen=True)
class Limits:
    """Of all replies to the questions, those of earlier starts included; None: no limit.

    calls are never more than that; tokens are known when a reply is there, so calls that are running may exceed them.
    """

    calls: int | None
    tokens: int | None

    def allow(self, replies: Replies, running: int) -> bool:
        """Whether a call may start while `running` others have no reply. Raises ValueError if nobody counts tokens."""
        if self.tokens is not None and replies.tokens is None:
            raise ValueError(
                f"--max-total-tokens {self.tokens}: the endpoint does not say how many it used; limit the --max-calls"
            )
        calls = self.calls is None or replies.calls + running < self.calls
        return calls and (self.tokens is None or replies.tokens < self.tokens)


def ask_all(
    questions: Mapping[str, Question], replies: Replies, endpoint: Endpoint, limits: Limits, parallel: int
) -> bool:
    """questions: by key. False if the limits left some open.

    Whatever ends it, replies that are on their way are waited for and written. Raises Unreachable, ValueError,
    WriteError.
    """
    pending = deque(key for key in questions if replies.is_open(key))
    running: dict[Future[Reply], str] = {}

    def collect(future: Future[Reply]) -> None:
        key = running.pop(future)
        replies.add(key, questions[key], future.result())
        if replies.is_open(key):
            pending.appendleft(key)
        if replies.calls % REPORT_EVERY == 0:
            print(f"{replies.calls} replies, {len(pending) + len(running)} questions are open", flush=True)

    with ThreadPoolExecutor(parallel) as pool:
        try:
            while pending or running:
                while pending and len(running) < parallel and limits.allow(replies, len(running)):
                    key = pending.popleft()
                    running[pool.submit(endpoint.ask, questions[key].messages)] = key
                if not running:
                    return False
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    collect(future)
        finally:
            endpoint.stop.set()
            for future in wait(running).done:
                if future.exception() is None:
                    collect(future)
    return True
