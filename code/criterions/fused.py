"""The chunked vocabulary loss: logits exist only at response positions, and only a chunk of rows at a time.

In: final hidden states of student and teacher at response positions, and both heads. Out: loss sums whose backward is
already computed. For every chunk, one autograd function makes both models' logits, takes the loss and its gradient,
and accumulates the gradients of the hidden states and, if it trains, of the head, before the next chunk is made; so
memory does not grow with the number of positions.

Shapes: N response positions of a micro-batch on this rank, C of them in a chunk, V shared vocabulary, D and E hidden
sizes of student and teacher.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from criterions.base import Criterion


class Head(Protocol):
    """What turns hidden states into logits; see `models.heads`."""

    vocabulary_size: int

    def parameters(self) -> tuple[Tensor | None, Tensor | None]:
        """weight and bias, as they are now."""

    def project(self, hidden_CD: Tensor) -> Tensor:
        """raw_CV: the matrix product alone."""

    def finish(self, raw_CV: Tensor) -> Tensor:
        """logits_CV in fp32: scaling and softcapping, elementwise and differentiable."""

    def project_backward(self, grad_raw_CV: Tensor) -> Tensor:
        """grad_hidden_CD."""

    def accumulate_weight_gradient(self, grad_weight_VD: Tensor, grad_raw_CV: Tensor, hidden_CD: Tensor) -> None:
        """Adds this chunk's share in place."""


class LossSums(NamedTuple):
    """Sums over the response positions of a micro-batch on this rank; fp32 scalars on the device."""

    loss: Tensor  # ce_weight * ce + kd_weight * kd, differentiable
    ce: Tensor
    kd: Tensor


@dataclass(frozen=True)
class ResponseRows:
    """The response positions of one micro-batch on this rank.

    rows_of_ranks: how many positions every rank has in this micro-step.
    chunk_bytes: size of one fp32 [C, V] block; decides C.
    """

    hidden_ND: Tensor
    head: Head
    labels_N: Tensor
    chunk_bytes: int
    teacher_hidden_NE: Tensor | None = None
    teacher_head: Head | None = None
    rows_of_ranks: tuple[int, ...] = (0,)

    def walk(
        self,
        criterion: Criterion,
        ce_weight: float,
        kd_weight: float,
        temperature: float | Tensor = 1.0,
        kd_scale: Tensor | None = None,
        kd_selected: Tensor | None = None,
    ) -> LossSums:
        """One pass: ce_weight * CE + kd_weight * sum_i kd_scale_i * criterion(logits_i / temperature_i).

        temperature: one for all positions, or one each [N]. kd_scale [N]: default 1. kd_selected [N], bool: positions
        that KD trains; default all. CE is at temperature 1 over all positions, unless ce_weight is 0: then positions
        outside `kd_selected` are not visited and `LossSums.ce` is of the visited only.
        """
        walk = _Walk(self, criterion, ce_weight, kd_weight, temperature, kd_scale, kd_selected)
        inputs = (self.hidden_ND, *self.head.parameters())
        if not torch.is_grad_enabled():  # an autograd function sees only what its inputs could need
            inputs = tuple(x if x is None else x.detach() for x in inputs)
        loss, ce, kd = _ChunkedLoss.apply(*inputs, walk)
        return LossSums(loss, ce, kd)

    @torch.no_grad()
    def score(self, function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """`function(student_logits_CV, teacher_logits_CV, labels_C)` of every chunk, without gradient, concatenated."""
        scores = []
        for rows in self.chunks(len(self.labels_N)):
            student_logits_CV = self.head.finish(self.head.project(self.hidden_ND[rows]))
            scores.append(function(student_logits_CV, self.teacher_logits(rows), self.labels_N[rows]))
        return tuple(torch.cat(parts) for parts in zip(*scores))

    def teacher_logits(self, rows: slice | Tensor) -> Tensor:
        return self.teacher_head.finish(self.teacher_head.project(self.teacher_hidden_NE[rows]))

    def chunks(self, count: int, start: int = 0) -> Iterator[slice]:
        """Slices of `count` rows from `start` on; one empty slice where there is none, so that shapes hold."""
        size = max(1, self.chunk_bytes // (4 * self.head.vocabulary_size))
        for first in range(start, start + max(1, count), size):
            yield slice(first, min(first + size, start + count))


@dataclass(frozen=True)
class _Walk:
    """What one pass computes; see `ResponseRows.walk`."""

    rows: ResponseRows
    criterion: Criterion
    ce_weight: float
    kd_weight: float
    temperature: float | Tensor
    kd_scale: Tensor | None
    kd_selected: Tensor | None

    def chunks(self) -> Iterator[tuple[slice | Tensor, bool]]:
        """Row indices of each chunk, and whether KD is taken there."""
        if self.kd_selected is None:
            for rows in self.rows.chunks(len(self.rows.labels_N)):
                yield rows, self.kd_weight > 0
            return
        # Selected rows first: a chunk then either needs the teacher's logits or does not.
        order_N = (~self.kd_selected).to(torch.uint8).argsort(stable=True)
        selected = int(self.kd_selected.sum())
        for rows in self.rows.chunks(selected):
            yield order_N[rows], self.kd_weight > 0
        if self.ce_weight > 0:
            for rows in self.rows.chunks(len(order_N) - selected, start=selected):
                yield order_N[rows], False

    def loss(self, logits_CV: Tensor, rows: slice | Tensor, with_kd: bool) -> LossSums:
        labels_C = self.rows.labels_N[rows]
        with torch.set_grad_enabled(self.ce_weight > 0 and logits_CV.requires_grad):
            ce = F.cross_entropy(logits_CV, labels_C, reduction="sum")
        if not with_kd:
            return LossSums(self.ce_weight * ce, ce, torch.zeros_like(ce))
        student_logits_CV = self._tempered(logits_CV, rows)
        teacher_logits_CV = self._tempered(self.rows.teacher_logits(rows), rows)
        kd_C = self.criterion.token_loss(student_logits_CV, teacher_logits_CV, labels_C)
        kd = (kd_C if self.kd_scale is None else kd_C * self.kd_scale[rows]).sum()
        return LossSums(self.ce_weight * ce + self.kd_weight * kd, ce, kd)

    def _tempered(self, logits_CV: Tensor, rows: slice | Tensor) -> Tensor:
        if isinstance(self.temperature, Tensor):
            return logits_CV / self.temperature[rows, None]
        return logits_CV if self.temperature == 1 else logits_CV / self.temperature


class _ChunkedLoss(torch.autograd.Function):
    """Value and gradient in one pass. The inputs are those that may need a gradient; the rest is in the walk."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD: Tensor | None, bias_V: Tensor | None, walk: _Walk):
        head = walk.rows.head
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        accumulate = {"dtype": torch.promote_types(hidden_ND.dtype, torch.float32)}
        grad_hidden_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, **accumulate) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, **accumulate) if needs_bias else None
        needs_gradient = needs_hidden or needs_weight or needs_bias
        # The engine's loss scale comes only in the backward; without one of its own, fp16 would round most of the
        # vocabulary's small gradients to zero here.
        ctx.scale = 1024.0 if hidden_ND.dtype == torch.float16 else 1.0
        sums = torch.zeros(3, device=hidden_ND.device, dtype=accumulate["dtype"])

        for rows, with_kd in walk.chunks():
            hidden_CD = hidden_ND[rows]
            raw_CV = head.project(hidden_CD).requires_grad_(needs_gradient)
            with torch.set_grad_enabled(needs_gradient):
                chunk = walk.loss(head.finish(raw_CV), rows, with_kd)
            sums += torch.stack(chunk).detach()
            if not chunk.loss.requires_grad:
                continue
            (grad_raw_CV,) = torch.autograd.grad(chunk.loss, raw_CV, torch.full_like(chunk.loss, ctx.scale))
            del chunk
            if needs_hidden:
                grad_hidden_ND[rows] = head.project_backward(grad_raw_CV)
            if needs_weight:
                head.accumulate_weight_gradient(grad_weight_VD, grad_raw_CV, hidden_CD)
            if needs_bias:
                grad_bias_V[: head.vocabulary_size] += grad_raw_CV.sum(0, dtype=grad_bias_V.dtype)

        ctx.gradients = (grad_hidden_ND, grad_weight_VD, grad_bias_V)
        ctx.dtypes = tuple(tensor.dtype if tensor is not None else None for tensor in (hidden_ND, weight_VD, bias_V))
        loss, ce, kd = sums.unbind()
        ctx.mark_non_differentiable(ce, kd)
        return loss, ce, kd

    @staticmethod
    def backward(ctx, grad_loss: Tensor, _ce, _kd):
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the chunked loss keeps its gradients for one backward only"
        # In place: the head's gradient is as large as the head, and nobody else holds it.
        scaled = (
            gradient if gradient is None else gradient.mul_(grad_loss / ctx.scale).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes)
        )
        return (*scaled, None)
