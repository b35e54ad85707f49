"""One optimiser step sees the same gradient however its examples are cut into micro-batches, ranks and rows."""

from pathlib import Path

import pytest
import torch

from integration.launch import run_jobs

OBJECTIVES = ("cross_entropy", "fkl", "rkl", "js", "tvd", "sfkl", "srkl", "akl", "abkd")
ADAKD = ("adakd", "adakd+todi")
# name -> ranks, batch, accumulation, packing.
SPLITS = {
    "1x8": (1, 8, 1, True),
    "1x8_padded": (1, 8, 1, False),
    "2ranks_x4": (2, 4, 1, True),
    "2ranks_x4_padded": (2, 4, 1, False),
    "2x4": (1, 4, 2, True),
    "2x4_padded": (1, 4, 2, False),
    "2ranks_2x2": (2, 2, 2, True),
}
# Flags behind the objective's name: the student answers the prompts of its first step.
MORE_FLAGS = {"sampled": ("--gkd", "--lmbda", "1", "--gen-max-new-tokens", "6")}
ACCUMULATED = ("2x4", "2x4_padded", "2ranks_2x2")
# The same, and tokens of a micro-batch: each takes all 24 examples in its first step, as 1x24 does; ten micro-batches
# hold two or three of them.
BY_TOKENS = {
    "tokens": (1, 1, 1, True, 2048),
    "tokens_x5": (1, 1, 5, True, 512),
    "tokens_x5_padded": (1, 1, 5, False, 512),
    "2ranks_tokens": (2, 1, 1, True, 1024),
    "2ranks_tokens_x5": (2, 1, 5, True, 256),
    "2ranks_tokens_x5_padded": (2, 1, 5, False, 256),
}
SHAPES = {"1x24": (1, 24, 1, True), **SPLITS, **BY_TOKENS}
# An objective, and two splits with the same gradient. Rows are cut in the same way for every objective: todi alone goes
# through all splits. AdaKD ranks positions within a micro-step: its gradient depends on accumulation, and on it alone.
CASES = [("todi", "1x8", split) for split in SPLITS if split != "1x8"]
CASES += [("todi", "1x24", split) for split in BY_TOKENS]
CASES += [(objective, "1x8", split) for objective in OBJECTIVES for split in ("2x4_padded", "2ranks_2x2")]
CASES += [("adakd", "1x24", split) for split in ("tokens", "2ranks_tokens")]
CASES += [("todi sampled", "1x8", split) for split in ("2x4_padded", "2ranks_x4", "2ranks_2x2")]
CASES += [("todi sampled", "1x24", "2ranks_tokens_x5"), ("adakd sampled", "2x4", "2ranks_2x2")]
CASES += [
    (objective, reference, split)
    for objective in ADAKD
    for split in SPLITS
    for reference in ["2x4" if split in ACCUMULATED else "1x8"]
    if split != reference
]


@pytest.fixture(scope="module")
def results(tiny, rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    runs = dict.fromkeys((objective, split) for objective, *splits in CASES for split in splits)
    for processes in (1, 2):
        jobs = []
        for objective, split in runs:
            name, (ranks, *shape) = f"{objective}.{split}", SHAPES[split]
            if ranks == processes:
                jobs.append({"name": name, "argv": arguments(tiny, rows, folder / "runs" / name, objective, *shape)})
        run_jobs(folder, processes, jobs)
    return folder


def arguments(tiny, rows, save_dir, name, batch, accumulation, packed, tokens=None) -> list[str]:
    objective, _, more = name.partition(" ")
    return [
        *MORE_FLAGS.get(more, ()),
        *("--model-path", str(tiny / "student"), "--teacher-model-path", str(tiny / "teacher")),
        *("--data-dir", str(rows), "--save-dir", str(save_dir), "--kd-objective", objective),
        *("--batch-size", str(batch), "--gradient-accumulation-steps", str(accumulation), "--packing", str(packed)),
        *("--kd-rate", "0.6", "--kd-temperature", "2", "--adakd-latf", "fixed", "--adakd-ratio", "0.5"),
        *("--total-iters", "1", "--max-length", "128", "--max-prompt-length", "64", "--clip-grad", "0"),
        *("--dev-num", "1", *(("--tokens-per-micro-batch", str(tokens)) if tokens else ())),
    ]


def assert_same(results: Path, objective: str, *splits: str) -> None:
    expected, got = (
        torch.load(results / f"{objective}.{split}.pt", weights_only=True)["gradients"] for split in splits
    )
    assert len(expected) == len(got) > 10
    for one, other in zip(expected, got):
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * one.abs().max().item())


@pytest.mark.parametrize(("objective", "reference", "split"), CASES)
def test_splits_give_the_same_gradient(results, objective, reference, split):
    assert_same(results, objective, reference, split)


@pytest.mark.parametrize("objective", ADAKD)
def test_adakd_selects_within_a_micro_step(results, objective):
    with pytest.raises(AssertionError):
        assert_same(results, objective, "1x8", "2x4")
