"""Learning-rate schedules at their corners, and what the optimiser decays and leaves alone."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from arguments import TrainArguments
from training.optimizer import build_optimizer, build_scheduler, learning_rate_factor

STYLES = ["constant", "linear", "cosine", "noam"]


def factors(total: int, **flags) -> list[float]:
    args = TrainArguments(**flags)
    return [learning_rate_factor(step, args, total) for step in range(total + 1)]


class Model(nn.Module):
    """Matrices, vectors, and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


@pytest.mark.parametrize(
    ("style", "wanted"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [1, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5)), 0.1]),
        ("noam", [1, 1 / math.sqrt(2), 1 / math.sqrt(3), 1 / 2, 1 / math.sqrt(5)]),
    ],
)
def test_schedules_without_warm_up(style, wanted):
    assert factors(4, lr=1e-3, lr_min=1e-4, lr_decay_style=style) == pytest.approx(wanted)


@pytest.mark.parametrize("style", STYLES)
def test_warm_up_rises_to_the_peak_from_the_first_step_on(style):
    flags = {"lr": 1e-3, "lr_min": 1e-4, "lr_decay_style": style}
    found = factors(16, **flags, warmup_iters=4)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    if style != "noam":  # the decay takes all steps that are left
        assert found[4:] == pytest.approx(factors(12, **flags))
    assert factors(16, **flags, warmup_ratio=0.25) == found


def test_noam_falls_with_the_root_of_the_step():
    found = factors(400, lr_decay_style="noam", warmup_iters=100)
    assert max(found) == found[99] == 1
    assert found[399] == pytest.approx(0.5)


@pytest.mark.parametrize("style", ["linear", "cosine"])
def test_the_schedule_stays_at_its_end(style):
    args = TrainArguments(lr=1e-3, lr_min=1e-5, lr_decay_style=style)
    assert [learning_rate_factor(step, args, 10) for step in (10, 11, 1000)] == pytest.approx([1e-2] * 3)


@settings(max_examples=100, deadline=None)
@given(
    style=st.sampled_from(STYLES),
    total=st.integers(1, 300),
    warmup=st.integers(0, 300),
    floor=st.floats(0, 1),
)
def test_schedules_stay_between_their_ends(style, total, warmup, floor):
    found = factors(total, lr=1e-3, lr_min=floor * 1e-3, lr_decay_style=style, warmup_iters=warmup)
    assert all(0 < factor <= 1 + 1e-9 for factor in found[:-1]) and 0 <= found[-1] <= 1
    falling = found[warmup:]
    assert all(later <= sooner + 1e-9 for sooner, later in itertools.pairwise(falling))
    if style in ("linear", "cosine"):
        assert all(factor >= floor - 1e-9 for factor in falling)


def test_the_scheduler_sets_the_rate_of_the_coming_step():
    args = TrainArguments(lr=0.5, lr_min=0.1, lr_decay_style="linear", warmup_iters=2)
    optimizer = build_optimizer(Model(), args)
    scheduler = build_scheduler(optimizer, args, 6)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_only_matrices_are_decayed_and_frozen_parameters_are_absent():
    model = Model()
    optimizer = build_optimizer(model, TrainArguments(weight_decay=0.3, lr=1e-3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay.get(id(p)) for name, p in model.named_parameters()}
    assert found == {
        "embedding.weight": 0.3,
        "linear.weight": 0.3,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "frozen.weight": None,
        "frozen.bias": None,
    }
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 5


def test_shared_matrices_alone_make_one_group_and_are_stepped_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    (group,) = build_optimizer(model, TrainArguments()).param_groups
    assert group["params"] == [model[0].weight]


@pytest.mark.parametrize("clip_grad", [0.0, 0.3, 1e4])
def test_the_guarded_optimiser_takes_the_norm_and_clips_by_it(clip_grad):
    models = [Model(), Model()]
    models[1].load_state_dict(models[0].state_dict())
    args = TrainArguments(clip_grad=clip_grad, lr=0.1, lr_min=0.0)
    guarded, plain = build_optimizer(models[0], args, guarded=True), build_optimizer(models[1], args)
    for parameters in zip(*(model.parameters() for model in models)):
        for parameter in parameters:
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.grad = torch.randn(parameter.shape, generator=generator) if parameter.requires_grad else None
    norm = nn.utils.clip_grad_norm_(models[1].parameters(), clip_grad or float("inf"))
    guarded.step()
    plain.step()
    assert guarded._global_grad_norm == pytest.approx(norm.item()) and not guarded.overflow
    for got, expected in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(got, expected)


def test_the_guarded_optimiser_skips_a_gradient_that_is_not_finite():
    model = Model()
    optimizer = build_optimizer(model, TrainArguments(), guarded=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    model.norm.weight.grad[0] = float("inf")
    optimizer.step()
    assert optimizer.overflow and not optimizer.state
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
