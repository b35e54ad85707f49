"""AdaKD's parts on their own: the ratio controller, which positions it selects, and at which temperatures.

Shapes: N response positions.
"""

import math

import pytest
import torch

from arguments import KDArguments
from criterions import StepTokens, build_criterion
from criterions import adakd as adakd_module
from reference.objectives import naive_adakd, naive_difficulty, naive_ratio_controller


def adakd(**arguments):
    """`adakd` with its flags by their short names: latf, ratio, c, beta, ..."""
    return build_criterion("adakd", KDArguments(**{f"adakd_{name}": value for name, value in arguments.items()}))


def ratios_of(criterion, losses):
    """The share that each optimiser step trains with."""
    ratios = []
    for loss in losses:
        ratios.append(criterion.ratio)
        criterion.update(loss)
    return ratios


def random_losses(steps, seed):
    """A noisy fall with a rise in its middle, so that the share moves both ways."""
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(seed)).mul(0.3).exp()
    trend = [3.0 * math.exp(-4 * t / steps) + (1.5 if steps // 3 < t < steps // 2 else 0.0) for t in range(steps)]
    return [base * factor for base, factor in zip(trend, noise.tolist())]


# LATF: the share


CONTROLLERS = [{}, {"beta": 0.0}, {"beta": 0.5, "delta": 0.3}, {"beta": 0.9, "epsilon": 0.0, "ratio_min": 0.6}]


def naive_ratios(losses, total_steps, beta=0.99, epsilon=0.05, delta=0.05, ratio_min=0.1, warmup_ratio=0.05):
    return naive_ratio_controller(losses, total_steps, beta, epsilon, delta, ratio_min, warmup_ratio)


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.5])
@pytest.mark.parametrize("flags", CONTROLLERS, ids=str)
def test_the_share_follows_the_paper(flags, warmup_ratio):
    losses = random_losses(steps=300, seed=0)
    criterion = adakd(**flags, warmup_ratio=warmup_ratio)
    criterion.prepare(len(losses))
    ratios = ratios_of(criterion, losses)
    assert ratios == pytest.approx(naive_ratios(losses, 300, warmup_ratio=warmup_ratio, **flags), rel=1e-12)
    assert len(set(ratios)) > 1 and all(0.1 <= ratio <= 1 for ratio in ratios)


def test_the_share_stays_one_in_the_warm_up():
    criterion = adakd(beta=0.0)
    criterion.prepare(100)
    assert ratios_of(criterion, [2.0**-t for t in range(8)]) == pytest.approx([1] * 6 + [0.95, 0.95**2])


@pytest.mark.parametrize("latf, ratio, expected", [("fixed", 0.3, 0.3), ("fixed", 1.0, 1.0), ("off", 0.3, 1.0)])
def test_other_latf_modes_do_not_move(latf, ratio, expected):
    criterion = adakd(latf=latf, ratio=ratio, beta=0.0)
    criterion.prepare(20)
    assert ratios_of(criterion, [2.0**-t for t in range(20)]) == [expected] * 20


@pytest.mark.parametrize("restart_after", [0, 4, 5, 199])
def test_a_restart_continues_identically(restart_after):
    losses = random_losses(steps=200, seed=7)
    whole, first, second = (adakd(beta=0.7) for _ in range(3))
    for criterion in (whole, first, second):
        criterion.prepare(100)
    expected = ratios_of(whole, losses)
    ratios = ratios_of(first, losses[:restart_after])
    second.load_state_dict(first.state_dict())
    assert ratios + ratios_of(second, losses[restart_after:]) == expected
    assert second.state_dict() == whole.state_dict()


# LATF: the positions


@pytest.mark.parametrize("positions", [1, 7, 333])
@pytest.mark.parametrize("ratio", [0.01, 0.35, 1.0])
def test_the_hardest_share_is_selected(ratio, positions):
    difficulty_N = torch.rand(positions, generator=torch.Generator().manual_seed(positions))
    plan = adakd(latf="fixed", ratio=ratio).plan(difficulty_N)
    count = max(1, math.floor(ratio * positions))
    assert plan.selected_N.dtype == torch.bool
    assert plan.selected_N.sum() == count
    assert set(plan.selected_N.nonzero()[:, 0].tolist()) == set(difficulty_N.topk(count).indices.tolist())


def test_equal_difficulties_take_the_earlier_positions():
    difficulty_N = torch.full((100,), 0.3)
    difficulty_N[[60, 61]] = 0.5
    plan = adakd(latf="fixed", ratio=0.1).plan(difficulty_N)
    assert plan.selected_N.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 60, 61]


# IDTS


@pytest.mark.parametrize("idts", ["inverse", "direct", "off"])
@pytest.mark.parametrize("ratio", [0.3, 1.0])
@pytest.mark.parametrize("positions", [1, 6, 11])
def test_temperatures_equal_the_naive_twin(positions, ratio, idts):
    student_NV, teacher_NV = 2 * torch.randn(
        2, positions, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(positions)
    )
    criterion = adakd(latf="fixed", ratio=ratio, idts=idts, tau_base=2.0, c=0.8)
    plan = criterion.plan(criterion.difficulty(student_NV, teacher_NV))
    _, selected, temperature_N = naive_adakd(student_NV, teacher_NV, ratio, tau_base=2.0, c=0.8, idts=idts)
    assert plan.selected_N.nonzero()[:, 0].tolist() == selected.tolist()
    torch.testing.assert_close(plan.temperature_N, temperature_N, rtol=1e-10, atol=0)


def test_directions_of_the_temperature():
    difficulty_N = torch.tensor([0.1, 0.2, 0.4])
    inverse_N = adakd(tau_base=2.0).plan(difficulty_N).temperature_N
    direct_N = adakd(tau_base=2.0, idts="direct").plan(difficulty_N).temperature_N
    assert inverse_N[0] > inverse_N[1] == 2.0 > inverse_N[2]
    assert direct_N[0] < direct_N[1] == 2.0 < direct_N[2]
    assert adakd(tau_base=2.0, idts="off").plan(difficulty_N).temperature_N.tolist() == [2.0] * 3
    assert adakd(tau_base=2.0, c=0.0).plan(difficulty_N).temperature_N.tolist() == [2.0] * 3
    # Eq. 9-10 at the last position: s / median = 2.
    assert inverse_N[2].item() == pytest.approx(2 * math.exp(-0.5 * math.tanh(math.log(2))))


@pytest.mark.parametrize("idts", ["inverse", "direct", "off"])
@pytest.mark.parametrize(
    "difficulty",
    [[0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.7], [0.7, 0.0, 0.0, 0.0], [1e-30, 0.5, 1.0]],
    ids=str,
)
def test_no_difficulty_gives_no_nan(difficulty, idts):
    difficulty_N = torch.tensor(difficulty)
    temperature_N = adakd(idts=idts).plan(difficulty_N).temperature_N
    assert torch.isfinite(temperature_N).all()
    bound = math.exp(0.5) * (1 + 1e-6)
    assert ((temperature_N >= 1 / bound) & (temperature_N <= bound)).all()
    median = difficulty_N.median()
    assert (temperature_N[difficulty_N == median] == 1).all()


def test_no_positions_give_an_empty_plan():
    plan = adakd().plan(torch.zeros(0))
    assert plan.selected_N.shape == plan.temperature_N.shape == (0,)


# Difficulty


@pytest.mark.parametrize("tau_base", [1.0, 2.0])
@pytest.mark.parametrize("difficulty", ["hellinger", "fkl", "rkl", "js", "cross_entropy"])
def test_difficulty_equals_the_naive_twin(difficulty, tau_base):
    generator = torch.Generator().manual_seed(0)
    student_NV, teacher_NV = 2 * torch.randn(2, 9, 17, dtype=torch.float64, generator=generator)
    labels_N = torch.randint(17, (9,), generator=generator)
    criterion = adakd(difficulty=difficulty, tau_base=tau_base)
    difficulty_N = criterion.difficulty(student_NV.requires_grad_(), teacher_NV, labels_N)
    assert not difficulty_N.requires_grad
    expected_N = naive_difficulty(student_NV, teacher_NV, tau_base, difficulty, labels_N)
    torch.testing.assert_close(difficulty_N, expected_N, rtol=1e-10, atol=0)


def test_hellinger_is_between_zero_and_one():
    equal_NV, peak_NV = torch.randn(4, 9), torch.full((4, 9), -50.0)
    other_NV = peak_NV.clone()
    peak_NV[:, 0], other_NV[:, 1] = 50.0, 50.0
    assert adakd().difficulty(equal_NV, equal_NV.clone()).tolist() == [0.0] * 4
    assert adakd().difficulty(peak_NV, other_NV).tolist() == pytest.approx([1.0] * 4)


# Steps and ranks


LOG_KEYS = [f"adakd_{key}" for key in ("ratio", "average_loss", "reference_loss", "selected_loss", "all_token_loss")]
LOG_KEYS += [f"adakd_{key}_{level}" for key in ("tau", "difficulty") for level in ("q05", "q50", "q95")]


def test_a_step_without_response_tokens_can_be_logged():
    criterion = adakd()
    criterion.start_step(StepTokens(tokens=(0,)))
    log = criterion.end_step()
    assert set(log) == set(LOG_KEYS)
    assert all(isinstance(value, float) and math.isfinite(value) for value in log.values())


def test_the_log_shows_the_share_that_the_step_used():
    criterion = adakd(beta=0.0, delta=0.5)
    criterion.prepare(1)
    criterion.update(10.0)
    criterion.start_step(StepTokens(tokens=(4,)))
    log = criterion.end_step()  # a loss of 0 moves the share of the step after this one
    assert (log["adakd_ratio"], criterion.ratio) == (1.0, 0.5)
    assert log["adakd_average_loss"] == log["adakd_reference_loss"] == 0.0


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_scores_of_all_ranks_in_rank_order(monkeypatch, rank):
    """Ranks with unequal numbers of positions, one of them with none."""
    scores = [torch.tensor([0.3, 0.1]), torch.zeros(0), torch.tensor([0.9, 0.8, 0.7])]

    def all_gather(outputs, padded):
        assert padded[: len(scores[rank])].tolist() == scores[rank].tolist()
        for output, of_rank in zip(outputs, scores):
            output[: len(of_rank)] = of_rank
            output[len(of_rank) :] = math.nan

    monkeypatch.setattr(adakd_module.dist, "all_gather", all_gather)
    monkeypatch.setattr(adakd_module.dist, "get_rank", lambda: rank)
    start, everyone = adakd_module._gather(scores[rank], (2, 0, 3))
    assert start == [0, 2, 2][rank]
    torch.testing.assert_close(everyone, torch.cat(scores), rtol=0, atol=0)
