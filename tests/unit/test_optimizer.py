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
@pytest.mark.parametrize("warmup", [{"warmup_iters": 4}, {"warmup_ratio": 0.25}])
def test_warm_up_rises_to_the_peak_and_is_no_step_without_learning(style, warmup):
    found = factors(16, lr=1e-3, lr_min=1e-4, lr_decay_style=style, **warmup)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert found[4:] == sorted(found[4:], reverse=True) and found[4] <= 1


@pytest.mark.parametrize("style", ["linear", "cosine"])
def test_after_the_warm_up_the_decay_takes_all_that_is_left(style):
    with_warmup = factors(16, lr=1e-3, lr_min=1e-4, lr_decay_style=style, warmup_iters=4)
    assert with_warmup[4:] == pytest.approx(factors(12, lr=1e-3, lr_min=1e-4, lr_decay_style=style))


def test_noam_falls_with_the_root_of_the_step():
    found = factors(400, lr_decay_style="noam", warmup_iters=100)
    assert max(found) == found[99] == 1
    assert found[399] == pytest.approx(0.5)


def test_the_ratio_counts_all_steps():
    assert factors(200, warmup_ratio=0.1) == factors(200, warmup_iters=20)
    assert factors(5, warmup_ratio=0.1) == factors(5)


@pytest.mark.parametrize("style", ["linear", "cosine"])
def test_the_schedule_stays_at_its_end(style):
    args = TrainArguments(lr=1e-3, lr_min=1e-5, lr_decay_style=style)
    assert [learning_rate_factor(step, args, 10) for step in (10, 11, 1000)] == pytest.approx([1e-2] * 3)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("flags", [{}, {"warmup_iters": 50}, {"warmup_ratio": 1.0}])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_short_runs_have_a_rate_at_every_step(style, flags, total):
    assert all(0 < factor <= 1 for factor in factors(total, lr_decay_style=style, **flags)[:total])


@settings(max_examples=100, deadline=None)
@given(
    style=st.sampled_from(STYLES),
    total=st.integers(1, 300),
    warmup=st.integers(0, 300),
    floor=st.floats(0, 1),
)
def test_schedules_stay_between_their_ends(style, total, warmup, floor):
    found = factors(total, lr=1e-3, lr_min=floor * 1e-3, lr_decay_style=style, warmup_iters=warmup)
    assert all(0 <= factor <= 1 + 1e-9 for factor in found)
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


def test_a_step_without_gradient_shrinks_matrices_alone():
    model = Model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, TrainArguments(weight_decay=0.5, lr=0.1, lr_min=0.0))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        share = 0.95 if name in ("embedding.weight", "linear.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * share)


def test_an_adapter_of_matrices_alone_makes_one_group():
    model = nn.Linear(4, 4, bias=False)
    (group,) = build_optimizer(model, TrainArguments()).param_groups
    assert group["params"] == [model.weight]


def test_shared_parameters_are_stepped_once():
    model = Model()
    model.tied = nn.Linear(4, 5, bias=False)
    model.tied.weight = model.embedding.weight
    optimizer = build_optimizer(model, TrainArguments())
    assert sum(p is model.embedding.weight for group in optimizer.param_groups for p in group["params"]) == 1


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
