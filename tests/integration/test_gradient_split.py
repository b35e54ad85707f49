"""One optimiser step sees the same gradient however its examples are cut into micro-batches, ranks and rows."""

from pathlib import Path

import pytest
import torch

from integration.launch import run_jobs

OBJECTIVES = ("cross_entropy", "fkl", "rkl", "js", "tvd", "sfkl", "srkl", "akl", "abkd", "todi")
ADAKD = ("adakd", "adakd+todi")
# name -> ranks, batch, accumulation, packing. AdaKD ranks positions within a micro-step, so that its gradient depends
# on accumulation, and on nothing else: the runs of one group must agree.
SPLITS = {
    "1x8": (1, 8, 1, True),
    "1x8_padded": (1, 8, 1, False),
    "2ranks_x4": (2, 4, 1, True),
    "2ranks_x4_padded": (2, 4, 1, False),
    "2x4": (1, 4, 2, True),
    "2x4_padded": (1, 4, 2, False),
    "2ranks_2x2": (2, 2, 2, True),
}
ACCUMULATED = ("2x4", "2x4_padded", "2ranks_2x2")
# Positions are cut into micro-batches in the same way for every objective: one goes through all of the splits.
SOME_SPLITS = ("2x4_padded", "2ranks_2x2")
CASES = [
    (name, split) for name in OBJECTIVES for split in (SPLITS if name == "todi" else SOME_SPLITS) if split != "1x8"
]
# name -> ranks, tokens of a micro-batch, accumulation, packing: each takes all 24 examples in its first step, as 1x24
# does; ten micro-batches hold two or three of them.
ALL = (1, 24, 1, True)
BY_TOKENS = {
    "tokens": (1, 2048, 1, True),
    "tokens_x5": (1, 512, 5, True),
    "tokens_x5_padded": (1, 512, 5, False),
    "2ranks_tokens": (2, 1024, 1, True),
    "2ranks_tokens_x5": (2, 256, 5, True),
    "2ranks_tokens_x5_padded": (2, 256, 5, False),
}
ONE_MICRO_STEP = ("tokens", "2ranks_tokens")


@pytest.fixture(scope="module")
def results(tiny, rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    runs = [(f"{name}.{split}", name, SPLITS[split], ()) for name, split in CASES]
    runs += [(f"{name}.1x8", name, SPLITS["1x8"], ()) for name in OBJECTIVES]
    runs += [(f"{name}.{split}", name, shape, ()) for name in ADAKD for split, shape in SPLITS.items()]
    for objective, splits in (("todi", BY_TOKENS), ("adakd", ONE_MICRO_STEP)):
        runs.append((f"{objective}.1x24", objective, ALL, ()))
        for split in splits:
            ranks, tokens, accumulation, packed = BY_TOKENS[split]
            flags = ("--tokens-per-micro-batch", str(tokens))
            runs.append((f"{objective}.{split}", objective, (ranks, 1, accumulation, packed), flags))
    for processes in (1, 2):
        jobs = [
            {"name": name, "argv": [*arguments(tiny, rows, folder / "runs" / name, objective, *shape), *flags]}
            for name, objective, (ranks, *shape), flags in runs
            if ranks == processes
        ]
        run_jobs(folder, processes, jobs)
    return folder


def arguments(tiny, rows, save_dir, objective, batch, accumulation, packed) -> list[str]:
    return [
        *("--model-path", str(tiny / "student"), "--teacher-model-path", str(tiny / "teacher")),
        *("--data-dir", str(rows), "--save-dir", str(save_dir), "--kd-objective", objective),
        *("--batch-size", str(batch), "--gradient-accumulation-steps", str(accumulation), "--packing", str(packed)),
        *("--kd-rate", "0.6", "--kd-temperature", "2", "--adakd-latf", "fixed", "--adakd-ratio", "0.5"),
        *("--total-iters", "1", "--max-length", "128", "--max-prompt-length", "64", "--clip-grad", "0"),
        *("--dev-num", "1"),
    ]


def gradients(results: Path, objective: str, split: str) -> list[torch.Tensor]:
    return torch.load(results / f"{objective}.{split}.pt", weights_only=True)["gradients"]


def assert_same(expected: list[torch.Tensor], got: list[torch.Tensor]) -> None:
    assert len(expected) == len(got) > 10
    for one, other in zip(expected, got):
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * one.abs().max().item())


@pytest.mark.parametrize(("objective", "split"), CASES)
def test_every_split_gives_the_same_gradient(results, objective, split):
    assert_same(gradients(results, objective, "1x8"), gradients(results, objective, split))


@pytest.mark.parametrize("split", BY_TOKENS)
def test_a_token_budget_gives_the_same_gradient(results, split):
    assert_same(gradients(results, "todi", "1x24"), gradients(results, "todi", split))


@pytest.mark.parametrize("split", ONE_MICRO_STEP)
def test_a_token_budget_is_nothing_to_adakd(results, split):
    assert_same(gradients(results, "adakd", "1x24"), gradients(results, "adakd", split))


@pytest.mark.parametrize("split", [split for split in SPLITS if split not in ("1x8", "2x4")])
@pytest.mark.parametrize("objective", ADAKD)
def test_adakd_does_not_depend_on_ranks_and_packing(results, objective, split):
    reference = "2x4" if split in ACCUMULATED else "1x8"
    assert_same(gradients(results, objective, reference), gradients(results, objective, split))


@pytest.mark.parametrize("objective", ADAKD)
def test_adakd_selects_within_a_micro_step(results, objective):
    with pytest.raises(AssertionError):
        assert_same(gradients(results, objective, "1x8"), gradients(results, objective, "2x4"))
