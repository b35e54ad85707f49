"""A training step as the reference repositories do it: batches padded to the maximum length, both models' logits for
every position and the whole vocabulary in fp32, the losses at all of them, and only then the mask.

In: examples as (prompt_ids, response_ids), two Hugging Face causal models. Out: sums over response tokens.
Tests compare `code/` with it; benchmarks race against it.

Shapes: B examples, L padded length, V vocabulary.
"""

from typing import NamedTuple

import torch

from reference.objectives import NAIVE

IGNORE = -100


class DenseSums(NamedTuple):
    """Sums over the response tokens of a batch; divide by the `tokens` of the whole optimiser step."""

    ce_sum: torch.Tensor
    kd_sum: torch.Tensor
    tokens: torch.Tensor
    loss_sum: torch.Tensor  # (1 - kd_rate) ce_sum + kd_rate kd_sum


def pad_to_max(examples, max_length, pad_id):
    """input_ids, attention_mask and labels, each [B, max_length], from (prompt_ids, response_ids) pairs.

    The label at position t is the token at t + 1 where that is a response token, else -100. EOS is in response_ids
    already. An example longer than max_length loses its end, as in the references.
    """
    shape = (len(examples), max_length)
    input_ids_BL = torch.full(shape, pad_id, dtype=torch.long)
    attention_mask_BL = torch.zeros(shape, dtype=torch.long)
    labels_BL = torch.full(shape, IGNORE, dtype=torch.long)
    for row, (prompt_ids, response_ids) in enumerate(examples):
        token_ids = (list(prompt_ids) + list(response_ids))[:max_length]
        for position, token_id in enumerate(token_ids):
            input_ids_BL[row, position] = token_id
            attention_mask_BL[row, position] = 1
            if position >= 1 and position >= len(prompt_ids):
                labels_BL[row, position - 1] = token_id
    return {"input_ids": input_ids_BL, "attention_mask": attention_mask_BL, "labels": labels_BL}


def dense_logits(model, batch):
    """[B, L, V] logits of every position, padding included, at least fp32."""
    logits_BLV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32))


def dense_loss(student, teacher, batch, objective, kd_rate=0.5, kd_temperature=1.0, vocab_size=None, **hyperparameters):
    """DenseSums of a batch of `pad_to_max`; `loss_sum` carries the gradient of the student.

    `objective` is a key of NAIVE. Both models' logits are cut to their first `vocab_size` entries (default: as many
    as both have). `teacher` may be None for cross_entropy, whose loss is the cross-entropy whatever kd_rate says.
    """
    if teacher is None and objective != "cross_entropy":
        raise ValueError(f"objective {objective!r} needs a teacher; only cross_entropy works with teacher=None")
    student_logits_BLV = dense_logits(student, batch)
    vocab_size = vocab_size or student_logits_BLV.shape[-1]
    if objective != "cross_entropy":
        with torch.no_grad():
            teacher_logits_BLV = dense_logits(teacher, batch)
        vocab_size = min(vocab_size, teacher_logits_BLV.shape[-1])
        teacher_logits_NV = teacher_logits_BLV[..., :vocab_size].flatten(0, 1)
    student_logits_NV = student_logits_BLV[..., :vocab_size].flatten(0, 1)

    labels_N = batch["labels"].flatten()
    mask_N = (labels_N != IGNORE).to(student_logits_NV.dtype)
    labels_N = labels_N.clamp(min=0)  # -100 is no index; the mask removes what it gives
    ce_sum = (NAIVE["cross_entropy"](student_logits_NV, None, labels_N) * mask_N).sum()
    if objective == "cross_entropy":
        return DenseSums(ce_sum, torch.zeros_like(ce_sum), mask_N.sum(), ce_sum)

    kd_N = NAIVE[objective](
        student_logits_NV / kd_temperature, teacher_logits_NV / kd_temperature, labels_N, **hyperparameters
    )
    kd_sum = (kd_N * mask_N).sum()
    return DenseSums(ce_sum, kd_sum, mask_N.sum(), (1 - kd_rate) * ce_sum + kd_rate * kd_sum)
