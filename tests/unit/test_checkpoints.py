"""Which checkpoints stay."""

import json
import math
from pathlib import Path

import pytest

from training.checkpoints import BestCheckpoints

NAN, INF = math.nan, math.inf


def kept_of(scores: list[float], count: int, folder: Path, restart: bool) -> list[int]:
    """The steps that stay of checkpoints with these scores, where each is wanted."""
    best = BestCheckpoints(count, folder)
    for number, score in enumerate(scores):
        path = folder / f"epoch{number}_step{number}_loss{-score}"
        if best.wants(score):
            path.mkdir()
            best.add(score, path)
        if restart:
            state = json.loads(json.dumps(best.state_dict()))
            best = BestCheckpoints(count, folder)
            best.load_state_dict(state)
    assert {path for _, path in best.kept} == set(folder.iterdir())
    return sorted(int(path.name[5]) for path in folder.iterdir())


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("scores", "count", "kept"),
    [
        ([NAN, -2.0, -1.0], 1, [2]),
        ([-2.0, NAN, -1.0], 1, [2]),
        ([-2.0, -1.0, NAN], 2, [0, 1]),
        ([NAN, NAN, -2.0, -1.0], 2, [2, 3]),
        ([NAN, -INF, -2.0, NAN, -3.0], 2, [2, 4]),
        ([NAN, NAN], 1, [0]),
    ],
)
def test_nan_is_the_worst_score(tmp_path, scores, count, kept, restart):
    assert kept_of(scores, count, tmp_path, restart) == kept


def test_a_nan_that_a_state_holds_is_replaced(tmp_path):
    best = BestCheckpoints(1, tmp_path)
    best.load_state_dict([(json.loads("NaN"), "epoch1_step1_lossnan")])
    assert best.wants(-9.0)
