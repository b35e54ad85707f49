"""The naive twins in tests/reference/ against limits and hand-made cases: they judge everything else.

test_objectives.py compares `code/` with golden values and with the twins, and so the twins with golden values.
"""

import pytest
import torch

from reference.dense_step import IGNORE, dense_logits, dense_loss, pad_to_max
from reference.objectives import NAIVE, hellinger, naive_ratio_controller


def random_logits(rows=5, vocab=11, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    student_NV, teacher_NV = scale * torch.randn(2, rows, vocab, dtype=torch.float64, generator=generator)
    return student_NV.requires_grad_(), teacher_NV


@pytest.mark.parametrize(
    "a, b, near",
    [
        (0.0, 0.7, (1e-6, 0.7)),
        (0.4, 0.0, (0.4, 1e-6)),
        (0.4, -0.4, (0.4, -0.4 + 1e-6)),
        (-0.4, 0.4, (-0.4, 0.4 - 1e-6)),
        (0.0, 0.0, (1e-5, 1e-5)),
    ],
)
def test_abkd_limits_are_limits_of_the_general_formula(a, b, near):
    student_NV, teacher_NV = random_logits()
    limit_N = NAIVE["abkd"](student_NV, teacher_NV, ab_alpha=a, ab_beta=b)
    general_N = NAIVE["abkd"](student_NV, teacher_NV, ab_alpha=near[0], ab_beta=near[1])
    torch.testing.assert_close(general_N, limit_N, rtol=1e-3, atol=1e-6)
    gradients = [torch.autograd.grad(loss_N.sum(), student_NV)[0] for loss_N in (general_N, limit_N)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_known_special_cases_of_other_objectives():
    student_NV, teacher_NV = random_logits()

    def close(name, other, **hyperparameters):
        actual_N = NAIVE[name](student_NV, teacher_NV, **hyperparameters)
        torch.testing.assert_close(actual_N, NAIVE[other](student_NV, teacher_NV), rtol=1e-10, atol=1e-12)

    close("abkd", "fkl", ab_alpha=1.0, ab_beta=0.0)
    close("abkd", "rkl", ab_alpha=0.0, ab_beta=1.0)
    close("sfkl", "fkl", skew_lambda=0.0)
    close("srkl", "rkl", skew_lambda=0.0)
    close("akl", "fkl", adaptive_kl_alpha=-1.0)  # no tail
    close("akl", "rkl", adaptive_kl_alpha=2.0)  # no head
    hellinger_N = NAIVE["abkd"](student_NV, teacher_NV, ab_alpha=0.5, ab_beta=0.5)
    torch.testing.assert_close(hellinger_N, 4 * hellinger(student_NV, teacher_NV) ** 2)


def test_cross_entropy_agrees_with_torch():
    student_NV, _ = random_logits()
    labels_N = torch.tensor([0, 3, 10, 3, 7])
    expected_N = torch.nn.functional.cross_entropy(student_NV, labels_N, reduction="none")
    torch.testing.assert_close(NAIVE["cross_entropy"](student_NV, None, labels_N), expected_N)


def test_ratio_controller_by_hand():
    # beta 0: L_t is loss_t. 40 steps at 5 %: two of warm-up, L_ref = L_2 = 10.
    losses = [50.0, 10.0, 9.6, 9.4, 9.4, 8.0, 9.0, 9.0]
    ratios = naive_ratio_controller(losses, total_steps=40, beta=0.0, eps=0.05, delta=0.1, r_min=0.1)
    # step 4 sees 9.6 (within 5 % of 10), step 5 sees 9.4 (down), step 7 sees 8.0 (down), step 8 sees 9.0 (up)
    assert ratios == pytest.approx([1, 1, 1, 1, 0.9, 0.9, 0.81, 0.81 * 1.1])


def test_pad_to_max():
    batch = pad_to_max([([5, 6, 7], [8, 9]), ([1], [2, 3, 4, 5, 6]), ([], [4, 9])], max_length=5, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [1, 2, 3, 4, 5], [4, 9, 9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1] * 5, [1, 1, 0, 0, 0]]
    none = IGNORE
    assert batch["labels"].tolist() == [[none, none, 8, 9, none], [2, 3, 4, 5, none], [9, none, none, none, none]]


@pytest.fixture(scope="module")
def models():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_positions": 32, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    student = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, **sizes))
    teacher = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=24, n_layer=2, **sizes))
    return student.double().eval(), teacher.double().eval()


EXAMPLES = [([5, 6, 7], [8, 9, 0]), ([11, 12], [13, 14, 15, 16, 0]), ([21] * 9, [0])]


def test_dense_loss_equals_one_example_at_a_time(models):
    student, teacher = models
    sums = dense_loss(student, teacher, pad_to_max(EXAMPLES, 16, 0), "todi", kd_rate=0.3, kd_temperature=2.0)
    ce_sum, kd_sum = 0.0, 0.0
    for prompt_ids, response_ids in EXAMPLES:
        input_ids = torch.tensor([prompt_ids + response_ids])
        rows = slice(len(prompt_ids) - 1, -1)
        student_NV = student(input_ids=input_ids).logits[0, rows]
        teacher_NV = teacher(input_ids=input_ids).logits[0, rows, :50]
        ce_sum += NAIVE["cross_entropy"](student_NV, None, torch.tensor(response_ids)).sum()
        kd_sum += NAIVE["todi"](student_NV / 2, teacher_NV / 2).sum()
    assert sums.tokens == sum(len(response_ids) for _, response_ids in EXAMPLES)
    torch.testing.assert_close(sums.ce_sum, ce_sum)
    torch.testing.assert_close(sums.kd_sum, kd_sum.detach(), check_dtype=False)
    torch.testing.assert_close(sums.loss_sum, 0.7 * ce_sum + 0.3 * kd_sum)


def test_dense_loss_without_a_teacher(models):
    student, _ = models
    batch = pad_to_max(EXAMPLES, 16, 0)
    sums = dense_loss(student, None, batch, "cross_entropy")
    expected = torch.nn.functional.cross_entropy(
        dense_logits(student, batch).flatten(0, 1), batch["labels"].flatten(), reduction="sum"
    )
    torch.testing.assert_close(sums.loss_sum, expected)
    assert sums.kd_sum == 0
    with pytest.raises(ValueError, match="needs a teacher"):
        dense_loss(student, None, batch, "rkl")
