"""Every objective against golden values, its naive twin, finite differences and the corners of its domain.

Shapes: N response positions, V vocabulary.
"""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arguments import KDArguments
from criterions import build_criterion, objective_names
from criterions.adakd import AdaKD
from criterions.base import Criterion, log_mixture, register
from criterions.todi import ToDi
from reference.objectives import NAIVE

CASES = json.loads((Path(__file__).resolve().parents[1] / "golden/objectives.json").read_text())["cases"]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}

ALIASES = {
    "cross_entropy": ["sft"],
    "fkl": ["forward_kl"],
    "rkl": ["reverse_kl"],
    "js": ["js_divergence"],
    "tvd": [],
    "sfkl": ["skewed_forward_kl"],
    "srkl": ["skewed_reverse_kl"],
    "akl": ["adaptive_kl"],
    "abkd": [],
    "todi": ["ToDi"],
    "adakd": [],
}
OBJECTIVES = list(NAIVE)
DIVERGENCES = [name for name in OBJECTIVES if name != "cross_entropy"]

# Hyperparameters as KDArguments and the twins both name them.
ABKD = [(0.2, 0.7), (0.5, 0.5), (1.5, -0.5), (-0.3, 0.8), (1, 0), (0.4, 0), (0, 1), (0, 0.4), (0.4, -0.4), (-0.4, 0.4)]
ABKD = [{"ab_alpha": a, "ab_beta": b} for a, b in [*ABKD, (0, 0)]]
OTHERS = {
    "js": [{"js_beta": b} for b in (0.1, 0.5, 0.9)],
    "sfkl": [{"skew_lambda": weight} for weight in (0.0, 0.1, 0.7, 0.95)],
    "srkl": [{"skew_lambda": weight} for weight in (0.0, 0.1, 0.7, 0.95)],
    "akl": [{"adaptive_kl_alpha": alpha} for alpha in (0.0, 0.3, 0.5, 0.9)],
    "abkd": ABKD,
}
VARIANTS = [(name, hyper) for name in OBJECTIVES for hyper in OTHERS.get(name, [{}])]
IDS = ["-".join([name, *map(str, hyper.values())]) for name, hyper in VARIANTS]
every_variant = pytest.mark.parametrize("name, hyper", VARIANTS, ids=IDS)
every_divergence = pytest.mark.parametrize(
    "name, hyper",
    [variant for variant in VARIANTS if variant[0] != "cross_entropy"],
    ids=[i for i in IDS if i != "cross_entropy"],
)


pytestmark = pytest.mark.usefixtures("one_thread")


def build(name, **hyper):
    return build_criterion(name, KDArguments(**hyper))


def random_logits(rows=7, vocab=23, scale=2.0, dtype=torch.float64, seed=0):
    """Student and teacher logits [N, V], and labels."""
    generator = torch.Generator().manual_seed(seed)
    student_NV, teacher_NV = (scale * torch.randn(2, rows, vocab, generator=generator)).to(dtype)
    return student_NV, teacher_NV, torch.randint(vocab, (rows,), generator=generator)


def value_and_gradient(loss, student_NV, teacher_NV, labels_N):
    """Of the rows' weighted sum: a gradient that mixed up rows would show."""
    leaf_NV = student_NV.detach().clone().requires_grad_()
    loss_N = loss(leaf_NV, teacher_NV, labels_N)
    weight_N = torch.linspace(0.5, 2.0, len(loss_N), dtype=loss_N.dtype)
    (gradient_NV,) = torch.autograd.grad(loss_N @ weight_N, leaf_NV)
    return loss_N.detach(), gradient_NV


def assert_matches_twin(name, hyper, student_NV, teacher_NV, labels_N, **tolerance):
    loss_N, gradient_NV = value_and_gradient(build(name, **hyper).token_loss, student_NV, teacher_NV, labels_N)
    twin_N, twin_NV = value_and_gradient(lambda *x: NAIVE[name](*x, **hyper), student_NV, teacher_NV, labels_N)
    torch.testing.assert_close(loss_N, twin_N, **tolerance)
    torch.testing.assert_close(gradient_NV, twin_NV, **tolerance)


# Golden values


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CASES[0]["objectives"])
def test_golden_values_and_gradients(name, case):
    expected = case["objectives"][name]
    temperature = 1.0 if name == "cross_entropy" else case["temperature"]
    hyper = {"ab_alpha": expected["alpha"], "ab_beta": expected["beta"]} if name == "abkd" else {}
    leaf_NV = torch.tensor(case["student_logits"], requires_grad=True)
    teacher_NV = torch.tensor(case["teacher_logits"])
    criterion = build(name, **hyper)
    loss_N = criterion.token_loss(leaf_NV / temperature, teacher_NV / temperature, torch.tensor(case["labels"]))
    (gradient_NV,) = torch.autograd.grad(loss_N.sum(), leaf_NV)
    torch.testing.assert_close(loss_N.detach(), torch.tensor(expected["token_loss"]), **TOLERANCE)
    torch.testing.assert_close(gradient_NV, torch.tensor(expected["grad_student_logits"]), **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_golden_adakd(case):
    tau_base = case["adakd"]["tau_base"]
    student_NV, teacher_NV = torch.tensor(case["student_logits"]), torch.tensor(case["teacher_logits"])
    for run in case["adakd"]["runs"]:
        switches = {"adakd_tau_base": tau_base, "adakd_c": run["c"], "adakd_ratio": run["ratio"]}
        criterion = build("adakd", adakd_base=run["base"], adakd_latf="fixed", **switches)
        difficulty_N = criterion.difficulty(student_NV, teacher_NV)
        torch.testing.assert_close(difficulty_N, torch.tensor(case["adakd"]["hellinger"]), **TOLERANCE)
        plan = criterion.plan(difficulty_N)
        assert plan.selected_N.nonzero().flatten().tolist() == run["selected"]
        expected_tau = run["temperature"] or {str(position): tau_base for position in run["selected"]}
        actual_tau = {str(position): plan.temperature_N[position].item() for position in run["selected"]}
        assert actual_tau == pytest.approx(expected_tau, rel=1e-5)
        tau_N1 = plan.temperature_N[:, None]
        loss_N = plan.temperature_N**2 * criterion.base.token_loss(student_NV / tau_N1, teacher_NV / tau_N1)
        assert loss_N[plan.selected_N].mean().item() == pytest.approx(run["mean_loss"], rel=1e-5, abs=1e-6)


# The naive twins and finite differences


@every_variant
def test_equals_the_naive_twin(name, hyper):
    assert_matches_twin(name, hyper, *random_logits(), rtol=1e-9, atol=1e-11)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(2, 300), st.floats(0.01, 8), st.integers(0, 10**6))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_equals_the_naive_twin_at_any_size(name, rows, vocab, scale, seed):
    assert_matches_twin(name, {}, *random_logits(rows, vocab, scale, seed=seed), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_fp32_stays_near_fp64(name):
    logits = random_logits(rows=16, vocab=2000, scale=3.0)
    exact_N, exact_NV = value_and_gradient(build(name).token_loss, *logits)
    loss_N, gradient_NV = value_and_gradient(build(name).token_loss, *(x.float() for x in logits[:2]), logits[2])
    assert loss_N.dtype == gradient_NV.dtype == torch.float32
    torch.testing.assert_close(loss_N, exact_N, rtol=1e-4, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(gradient_NV, exact_NV, rtol=1e-4, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("name", ["todi", "akl"])
def test_weights_are_detached(name):
    """With the weights' own gradient the result would be another one: finite differences see it."""
    student_NV, teacher_NV, labels_N = random_logits(rows=3, vocab=6, scale=1.5)
    loss = build(name).token_loss
    _, gradient_NV = value_and_gradient(loss, student_NV, teacher_NV, labels_N)
    step_NV = torch.zeros_like(student_NV)
    step_NV[0, 0] = 1e-6
    change = loss(student_NV + step_NV, teacher_NV)[0] - loss(student_NV - step_NV, teacher_NV)[0]
    assert abs(change / 2e-6 - 2 * gradient_NV[0, 0]) > 1e-3  # the row's weight is 0.5


@pytest.mark.parametrize("name", ["abkd", "adakd+abkd"])
def test_abkd_refuses_exponents_where_it_diverges(name):
    with pytest.raises(ValueError, match=r"^--ab-beta -2\.0: pass at least minus --ab-alpha; below, abkd diverges$"):
        build(name, ab_beta=-2.0)


def test_log_mixture_where_one_side_is_nearly_absent():
    log_a_N, log_b_N = torch.tensor([-1e4, -0.1, -80.0, -3.0]), torch.tensor([-0.1, -1e4, -90.0, -3.0])
    for weight in (0.0, 0.1, 0.5, 0.9, 1.0):
        a_N, b_N = log_a_N.double(), log_b_N.double()
        weights = torch.tensor([weight, 1 - weight], dtype=torch.float64).log()
        expected_N = torch.logaddexp(weights[0] + a_N, weights[1] + b_N)
        torch.testing.assert_close(log_mixture(log_a_N, log_b_N, weight), expected_N.float(), rtol=1e-6, atol=0)
        assert log_mixture(log_a_N, log_b_N, weight)[3] == -3.0


# Corners


@pytest.mark.parametrize("scale", [0.1, 30.0])
@every_divergence
def test_equal_distributions_give_exactly_zero(name, hyper, scale):
    student_NV, _, labels_N = random_logits(rows=20, vocab=3000, scale=scale, dtype=torch.float32)
    loss_N, gradient_NV = value_and_gradient(build(name, **hyper).token_loss, student_NV, student_NV.clone(), labels_N)
    assert loss_N.tolist() == [0.0] * 20
    assert gradient_NV.abs().max() < 1e-6


def with_minus_infinity(sides):
    """Random logits where column 3 is -inf on `sides`, and labels elsewhere."""
    student_NV, teacher_NV, labels_N = random_logits()
    if "student" in sides:
        student_NV[:, 3] = -math.inf
    if "teacher" in sides:
        teacher_NV[:, 3] = -math.inf
    return student_NV, teacher_NV, labels_N.masked_fill(labels_N == 3, 4)


@every_variant
def test_minus_infinity_on_both_sides_is_as_if_the_entry_were_not_there(name, hyper):
    student_NV, teacher_NV, labels_N = with_minus_infinity(("student", "teacher"))
    loss_N, gradient_NV = value_and_gradient(build(name, **hyper).token_loss, student_NV, teacher_NV, labels_N)
    others = [v for v in range(student_NV.shape[1]) if v != 3]
    expected_N, expected_NV = value_and_gradient(
        build(name, **hyper).token_loss,
        student_NV[:, others],
        teacher_NV[:, others],
        labels_N - (labels_N > 3).long(),
    )
    torch.testing.assert_close(loss_N, expected_N)
    torch.testing.assert_close(gradient_NV[:, others], expected_NV)
    assert gradient_NV[:, 3].tolist() == [0.0] * len(loss_N)


@pytest.mark.parametrize("side", ["student", "teacher"])
@every_variant
def test_minus_infinity_on_one_side_contributes_nothing(name, hyper, side):
    """akl may drop the entry also from the order that decides the tail; rkl takes the rest of q as a distribution."""
    logits = with_minus_infinity((side,))
    loss_N, gradient_NV = value_and_gradient(build(name, **hyper).token_loss, *logits)
    twin_N, twin_NV = value_and_gradient(lambda *x: NAIVE[name](*x, **hyper), *logits)
    assert torch.isfinite(loss_N).all() and torch.isfinite(gradient_NV).all()
    if name != "akl":
        torch.testing.assert_close(loss_N, twin_N)
    if name not in ("akl", "rkl"):
        torch.testing.assert_close(gradient_NV, twin_NV)


EXTREMES = [1e4, -1e4, 9984.0, 300.0, -300.0, 88.0, -104.0, 1.0, 0.0]  # bf16 holds each of them
# With a negative exponent abkd grows like a power of p / q, which overflows whoever computes it.
CANNOT_OVERFLOW = [i for i, (_, hyper) in enumerate(VARIANTS) if min([1, *hyper.values()]) >= 0]


@pytest.mark.parametrize("name, hyper", [VARIANTS[i] for i in CANNOT_OVERFLOW], ids=[IDS[i] for i in CANNOT_OVERFLOW])
def test_extreme_logits_stay_finite(name, hyper):
    values_V = torch.tensor(EXTREMES)
    generator = torch.Generator().manual_seed(0)
    student_NV, teacher_NV = (
        torch.stack([values_V[torch.randperm(len(values_V), generator=generator)] for _ in range(60)]) for _ in range(2)
    )
    teacher_NV[:5] = student_NV[:5]
    loss_N, gradient_NV = value_and_gradient(
        build(name, **hyper).token_loss, student_NV, teacher_NV, torch.arange(60) % len(values_V)
    )
    assert torch.isfinite(loss_N).all() and torch.isfinite(gradient_NV).all()
    if name != "cross_entropy":
        assert loss_N[:5].tolist() == [0.0] * 5 and (loss_N >= 0).all()


# Names


def test_names_and_aliases():
    assert set(objective_names()) >= {name for names in ALIASES.items() for name in (names[0], *names[1])}
    for name, aliases in ALIASES.items():
        assert {type(build(alias)) for alias in aliases} <= {type(build(name))}


@pytest.mark.parametrize("name", ["kl", "", "adakd_todi", "todi ", "+todi"])
def test_unknown_names_are_answered_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"--kd-objective {re.escape(name)}: unknown") as error:
        build(name)
    assert all(known in str(error.value) for known in ALIASES)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("TODI", "todi"), ("KL_div", "fkl or rkl"), ("reverse-kl", "reverse_kl")],
)
def test_an_unknown_name_is_answered_with_what_it_resembles(name, meant):
    with pytest.raises(
        ValueError, match=f"^--kd-objective {name}: unknown objective; did you mean {meant}\\? choose one"
    ):
        build_criterion(name, KDArguments())
    with pytest.raises(ValueError, match=f"^--adakd-base {name}: did you mean {meant}\\? adakd wraps one of"):
        build_criterion("adakd", KDArguments(adakd_base=name))


def test_adakd_around_another():
    criterion = build("adakd+todi", adakd_base="fkl", adakd_c=0.3)
    assert isinstance(criterion, AdaKD) and isinstance(criterion.base, ToDi)
    assert criterion.args.adakd_c == 0.3
    assert type(build("adakd", adakd_base="ToDi").base) is ToDi
    assert type(build("adakd").base) is type(build("rkl"))


@pytest.mark.parametrize("name", ["todi+fkl", "fkl+adakd"])
def test_only_adakd_wraps(name):
    with pytest.raises(ValueError, match=f"--kd-objective {re.escape(name)}: .* does not wrap"):
        build(name)


@pytest.mark.parametrize("base", ["", "adakd", "adakd+todi"])
def test_a_wrong_adakd_base_is_refused_by_its_own_flag(base):
    with pytest.raises(ValueError, match=f"--adakd-base {re.escape(base)}: "):
        build("adakd", adakd_base=base)
    with pytest.raises(ValueError, match=f"--adakd-base {re.escape(base)}: "):
        build(f"adakd+{base}")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'todi' is already registered by ToDi"):
        register("todi")(Criterion)
    assert type(build("todi")) is ToDi


def test_only_cross_entropy_does_without_a_teacher():
    assert [name for name in ALIASES if not build(name).needs_teacher] == ["cross_entropy"]


def test_cross_entropy_without_labels_takes_the_teachers_choice():
    student_NV, teacher_NV, _ = random_logits()
    expected_N = NAIVE["cross_entropy"](student_NV, None, teacher_NV.argmax(-1))
    torch.testing.assert_close(build("cross_entropy").token_loss(student_NV, teacher_NV), expected_N)
