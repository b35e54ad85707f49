"""replies.jsonl: one JSON object per reply of the judge, so that neither a kill nor a limit costs a call twice.

Fields: key (of the question), set, seed, row, first (the run whose answer was shown first), verdict ("first", "second",
"tie", or null if the reply has none), tokens (of prompt and reply; null if the endpoint does not count them), judge,
made, text.
"""

import json
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from evaluation.judging.endpoint import Reply
from evaluation.judging.questions import Question, Verdict, read_verdict
from runtime.atomic import as_write_error, write_text

MOST_REPLIES = 3  # to a question whose replies have no verdict


class Replies:
    """The replies on disk to some questions, by the key of the question."""

    def __init__(self, path: Path, keys: Iterable[str], judge: str):
        """Raises WriteError."""
        self.path, self.judge = path, judge
        self._of: dict[str, list[dict]] = {key: [] for key in keys}
        self.calls, self.tokens = 0, 0  # the latter None if those of a reply are unknown
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        complete = text[: text.rfind("\n") + 1]
        if complete != text:  # cut off by a kill
            write_text(path, complete)
        for line in complete.splitlines():
            record = json.loads(line)
            if record["key"] in self._of:
                self._count(record)

    def add(self, key: str, question: Question, reply: Reply) -> None:
        """On the disk when this returns. Raises WriteError."""
        record = {
            "key": key,
            "set": question.set,
            "seed": question.seed,
            "row": question.row,
            "first": question.first,
            "verdict": read_verdict(reply.text),
            "tokens": reply.tokens,
            "judge": self.judge,
            "made": datetime.now().isoformat(timespec="seconds"),
            "text": reply.text,
        }
        with as_write_error(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._count(record)

    def verdict(self, key: str) -> Verdict | None:
        return self._of[key][-1]["verdict"] if self._of[key] else None

    def is_open(self, key: str) -> bool:
        """The question has no verdict yet, and may be asked (again)."""
        return self.verdict(key) is None and len(self._of[key]) < MOST_REPLIES

    def _count(self, record: dict) -> None:
        self._of[record["key"]].append(record)
        self.calls += 1
        self.tokens = None if None in (self.tokens, record["tokens"]) else self.tokens + record["tokens"]
