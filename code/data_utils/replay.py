"""A replay buffer: the latest sampled rows, first in, first out.

In: rows, the same on every rank. Out: random rows, the same on every rank; no rank has rows of its own.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from data_utils.batches import Example


class ReplayBuffer:
    """The last `capacity` rows, each with the step that it was sampled in."""

    def __init__(self, capacity: int):
        self._rows: deque[tuple[int, Example]] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Sequence[Example], step: int) -> None:
        self._rows.extend((step, row) for row in rows)

    def sample(self, count: int, draw: np.random.Generator) -> list[Example]:
        """Different rows; all of them if there are fewer than `count`."""
        chosen = draw.choice(len(self._rows), min(count, len(self._rows)), replace=False)
        return [self._rows[i][1] for i in chosen]

    def mean_age(self, step: int) -> float | None:
        """In steps; None if there are no rows."""
        return float(np.mean([step - sampled for sampled, _ in self._rows])) if self._rows else None

    def state_dict(self) -> dict[str, torch.Tensor]:
        rows = [row for _, row in self._rows]
        ids = [np.concatenate([row.prompt_ids, row.response_ids]).astype(np.int32) for row in rows]
        return {
            "steps": torch.tensor([step for step, _ in self._rows], dtype=torch.int64),
            "prompts": torch.tensor([len(row.prompt_ids) for row in rows], dtype=torch.int32),
            "responses": torch.tensor([len(row.response_ids) for row in rows], dtype=torch.int32),
            "ids": torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *ids])),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self._rows.clear()
        ids, end = state["ids"].tolist(), 0
        for step, prompt, response in zip(*(state[name].tolist() for name in ("steps", "prompts", "responses"))):
            start, middle, end = end, end + prompt, end + prompt + response
            self._rows.append((step, Example(ids[start:middle], ids[middle:end])))
