"""The chunked vocabulary loss: logits exist only at response positions, and only a chunk of rows at a time.

In: final hidden states of student and teacher at response positions, and both heads. Out: loss sums whose backward is
already computed. For every chunk, one autograd function makes both models' logits, takes the loss and its gradient,
and accumulates the gradients of the hidden states and, if it trains, of the head, before the next chunk is made; so
memory does not grow with the number of positions.

A chunk is large, for the matrix products; on a CPU the passes over its logits go by blocks of a few rows that stay in
the cache, and the gradient of a block takes the place of its logits. `torch.compile` makes few passes of many, where
--compile-loss asks for it.

Shapes: N response positions of a micro-batch on this rank, C of them in a chunk, B of those in a block, V shared
vocabulary, D and E hidden sizes of student and teacher.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from criterions.base import Criterion

# fp32 logits of a block. On a CPU a few times this much fits the second-level caches, and memory that small is taken
# from the heap again and again instead of from the system; an accelerator takes a chunk as one block.
CPU_BLOCK_BYTES = 2**21
# The default of --loss-chunk-mb. Every chunk reads and writes the head's whole fp32 gradient: on an accelerator, whose
# products are fast beside its memory, fewer and larger chunks.
CPU_CHUNK_MB, ACCELERATOR_CHUNK_MB = 64, 256
ALIGNED_COLUMNS = 64  # tensor cores want rows of half-precision logits to start at multiples of 16 bytes and more
# In fp16, the largest sum of absolute values over a row of the logits' gradient. Times a weight of up to 8 it stays
# below fp16's maximum in the gradient of a hidden state, and entries down to 1e-11 of it are above fp16's minimum.
FP16_ROW_SUM, FP16_MAX_SCALE = 2.0**12, 2.0**40


def chunk_bytes(loss_chunk_mb: int | None, on_cpu: bool) -> int:
    """Size of one fp32 [C, V] chunk: --loss-chunk-mb or, without the flag, what suits the device."""
    return (loss_chunk_mb or (CPU_CHUNK_MB if on_cpu else ACCELERATOR_CHUNK_MB)) * 2**20


class Head(Protocol):
    """What turns hidden states into logits; see `models.heads`."""

    vocabulary_size: int

    def parameters(self) -> tuple[Tensor | None, Tensor | None]:
        """weight and bias, as they are now."""

    def project(self, hidden_CD: Tensor, out_CV: Tensor | None = None) -> Tensor:
        """raw_CV: the matrix product alone; in `out_CV` if there is one."""

    def finish(self, raw_CV: Tensor) -> Tensor:
        """logits_CV in fp32: scaling and softcapping, elementwise and differentiable."""

    def project_backward(self, grad_raw_CV: Tensor) -> Tensor:
        """grad_hidden_CD."""

    def weight_gradient(self, so_far_VD: Tensor | None, grad_raw_CV: Tensor, hidden_CD: Tensor) -> Tensor:
        """grad_weight_VD, at least in fp32: this chunk's share, added in place to that of the chunks so far."""


class LossSums(NamedTuple):
    """Sums over the response positions of a micro-batch on this rank; fp32 scalars on the device."""

    loss: Tensor  # ce_weight * ce + kd_weight * kd, differentiable
    ce: Tensor
    kd: Tensor


@dataclass(frozen=True)
class ResponsePositions:
    """The response positions of one micro-batch on this rank.

    positions_per_rank: how many positions every rank has in this micro-step.
    chunk_bytes: size of one fp32 [C, V] block; decides C.
    compiled: whether loss and gradient of a block are compiled.
    """

    hidden_ND: Tensor
    head: Head
    labels_N: Tensor
    chunk_bytes: int
    teacher_hidden_NE: Tensor | None = None
    teacher_head: Head | None = None
    positions_per_rank: tuple[int, ...] = (0,)
    compiled: bool = False

    def walk(
        self,
        criterion: Criterion,
        ce_weight: float,
        kd_weight: float,
        temperature: float | Tensor = 1.0,
        kd_scale: Tensor | None = None,
        kd_selected: Tensor | None = None,
        kd_count: int | None = None,
    ) -> LossSums:
        """One pass: ce_weight * CE + kd_weight * sum_i kd_scale_i * criterion(logits_i / temperature_i).

        temperature: one for all positions, or one each [N]. kd_scale [N]: default 1. kd_selected [N], bool: positions
        that KD trains, `kd_count` of them; default all. CE is at temperature 1 over all positions, unless ce_weight is
        0: then positions outside `kd_selected` are not visited and `LossSums.ce` is of the visited only.
        """
        walk = _Walk(self, criterion, ce_weight, kd_weight, temperature, kd_scale, kd_selected, kd_count)
        inputs = (self.hidden_ND, *self.head.parameters())
        if not torch.is_grad_enabled():  # an autograd function sees only what its inputs could need
            inputs = tuple(x if x is None else x.detach() for x in inputs)
        loss, ce, kd = _ChunkedLoss.apply(*inputs, walk)
        return LossSums(loss, ce, kd)

    @torch.no_grad()
    def score(self, function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """`function(student_logits_BV, teacher_logits_BV, labels_B)` of every block, without gradient, concatenated."""
        scores, project = [], _Projections(self)
        for rows in self.chunks(len(self.labels_N)):
            for block in project(rows, with_teacher=True).blocks():
                student_logits_BV = self.head.finish(block.raw_CV)
                teacher_logits_BV = self.teacher_head.finish(block.teacher_raw_CV)
                scores.append(function(student_logits_BV, teacher_logits_BV, block.labels_C))
        return tuple(torch.cat(parts) for parts in zip(*scores))

    @property
    def chunk_rows(self) -> int:
        return max(1, self.chunk_bytes // (4 * self.head.vocabulary_size))

    def chunks(self, count: int, start: int = 0) -> Iterator[slice]:
        """Slices of `count` rows from `start` on; one empty slice where there is none, so that shapes hold."""
        for first in range(start, start + max(1, count), self.chunk_rows):
            yield slice(first, min(first + self.chunk_rows, start + count))


class _Chunk(NamedTuple):
    """Raw logits of some rows, and what belongs to each row."""

    raw_CV: Tensor | None
    teacher_raw_CV: Tensor | None
    labels_C: Tensor
    temperature: float | Tensor  # one for all, or [C]
    kd_scale_C: Tensor | None

    @property
    def block_rows(self) -> int:
        rows, vocabulary_size = self.raw_CV.shape
        if not self.raw_CV.is_cpu or self.raw_CV.dtype == torch.float16:  # fp16: a chunk's gradient has one scale
            return max(1, rows)
        return max(1, CPU_BLOCK_BYTES // (4 * vocabulary_size))

    def blocks(self) -> Iterator["_Chunk"]:
        """Views of a few rows each; one, empty, of an empty chunk."""
        rows, size = len(self.raw_CV), self.block_rows
        for first in range(0, max(1, rows), size):
            block = slice(first, first + size)
            yield _Chunk(*(part[block] if isinstance(part, Tensor) else part for part in self))


class _Projections:
    """Makes the raw logits of one chunk after the other, in the same memory."""

    def __init__(self, rows: ResponsePositions):
        self.rows = rows
        self._memory: dict[str, Tensor] = {}

    def __call__(
        self,
        rows: slice | Tensor,
        with_teacher: bool,
        temperature: float | Tensor = 1.0,
        kd_scale: Tensor | None = None,
    ) -> _Chunk:
        source = self.rows
        return _Chunk(
            raw_CV=self._project("student", source.head, source.hidden_ND[rows]),
            teacher_raw_CV=self._project("teacher", source.teacher_head, source.teacher_hidden_NE[rows])
            if with_teacher
            else None,
            labels_C=source.labels_N[rows],
            temperature=temperature[rows] if isinstance(temperature, Tensor) else temperature,
            kd_scale_C=None if kd_scale is None else kd_scale[rows],
        )

    def _project(self, name: str, head: Head, hidden_CD: Tensor) -> Tensor:
        if name not in self._memory:
            rows, columns = min(self.rows.chunk_rows, len(self.rows.labels_N)), head.vocabulary_size
            # Passes over the logits go by their fp32 copy, which is contiguous; only the products see the gaps.
            gap = 0 if hidden_CD.is_cpu or hidden_CD.itemsize > 2 else -columns % ALIGNED_COLUMNS
            self._memory[name] = hidden_CD.new_empty(rows, columns + gap)[:, :columns]
        return head.project(hidden_CD, self._memory[name][: len(hidden_CD)])


@dataclass(frozen=True)
class _Walk:
    """What one pass computes; see `ResponsePositions.walk`."""

    rows: ResponsePositions
    criterion: Criterion
    ce_weight: float
    kd_weight: float
    temperature: float | Tensor
    kd_scale: Tensor | None
    kd_selected: Tensor | None
    kd_count: int | None

    def chunks(self) -> Iterator[tuple[slice | Tensor, bool]]:
        """Row indices of each chunk, and whether KD is taken there."""
        if self.kd_selected is None:
            for rows in self.rows.chunks(len(self.rows.labels_N)):
                yield rows, self.kd_weight > 0
            return
        # Selected rows first: a chunk then either needs the teacher's logits or does not.
        order_N = (~self.kd_selected).to(torch.uint8).argsort(stable=True)
        for rows in self.rows.chunks(self.kd_count):
            yield order_N[rows], self.kd_weight > 0
        if self.ce_weight > 0:
            for rows in self.rows.chunks(len(order_N) - self.kd_count, start=self.kd_count):
                yield order_N[rows], False

    def projected(self) -> Iterator[tuple[slice | Tensor, _Chunk]]:
        project = _Projections(self.rows)
        for rows, with_kd in self.chunks():
            yield rows, project(rows, with_kd, self.temperature, self.kd_scale)

    @property
    def equation(self) -> "_Equation":
        return _Equation(self.criterion, self.rows.head, self.rows.teacher_head, self.ce_weight, self.kd_weight)


class _Equation(NamedTuple):
    """What makes a loss of raw logits."""

    criterion: Criterion
    head: Head
    teacher_head: Head | None
    ce_weight: float
    kd_weight: float


def _block_loss(raw_BV: Tensor, block: _Chunk, equation: _Equation) -> tuple[Tensor, Tensor]:
    """The loss, differentiable in `raw_BV`, the raw logits of the block; and [loss, CE, KD]."""
    criterion, head, teacher_head, ce_weight, kd_weight = equation
    logits_BV = head.finish(raw_BV)
    ce = F.cross_entropy(logits_BV if ce_weight > 0 else logits_BV.detach(), block.labels_C, reduction="sum")
    loss, kd = ce_weight * ce, torch.zeros_like(ce)
    if block.teacher_raw_CV is not None:
        teacher_logits_BV = teacher_head.finish(block.teacher_raw_CV)
        kd_B = criterion.token_loss(
            _tempered(logits_BV, block.temperature), _tempered(teacher_logits_BV, block.temperature), block.labels_C
        )
        kd = (kd_B if block.kd_scale_C is None else kd_B * block.kd_scale_C).sum()
        loss = loss + kd_weight * kd
    return loss, torch.stack((loss, ce, kd)).detach()


def _block_gradient(block: _Chunk, equation: _Equation) -> tuple[Tensor, Tensor]:
    """The gradient of the loss in the raw logits, and [loss, CE, KD]."""
    raw_BV = _beyond_fp16(block.raw_CV).detach().requires_grad_()
    with torch.enable_grad():
        loss, sums = _block_loss(raw_BV, block, equation)
    return torch.autograd.grad(loss, raw_BV)[0], sums


def _compiled_block_gradient(block: _Chunk, equation: _Equation) -> tuple[Tensor, Tensor]:
    """The same, compiled; on a CPU only blocks of full size, since any other would take a compilation of its own."""
    if len(block.raw_CV) < block.block_rows:
        return _block_gradient(block, equation)
    raw_BV = _beyond_fp16(block.raw_CV)
    gradient_BV, (_, sums) = _compiled_loss()(raw_BV, block._replace(raw_CV=None), equation)
    return gradient_BV, sums


def _beyond_fp16(raw_BV: Tensor) -> Tensor:
    """Logits whose gradient neither overflows nor vanishes before `_put_gradient` has chosen its scale."""
    return raw_BV.float() if raw_BV.dtype == torch.float16 else raw_BV


def _put_gradient(gradient_BV: Tensor, raw_BV: Tensor) -> float | Tensor:
    """The gradient takes the place of the logits, in fp16 times a power of two that suits it, which is returned.

    The loss scale of the engine comes only in the backward, and could not undo what was lost here.
    """
    if raw_BV.dtype != torch.float16 or not len(raw_BV):
        raw_BV.copy_(gradient_BV)
        return 1.0
    row_sum = torch.linalg.vector_norm(gradient_BV, 1, dim=-1).amax()
    scale = (FP16_ROW_SUM / row_sum).log2().floor().exp2().clamp(1 / FP16_MAX_SCALE, FP16_MAX_SCALE)
    torch.mul(gradient_BV, scale, out=raw_BV)
    return scale


@cache
def _compiled_loss() -> Callable:
    return torch.compile(torch.func.grad_and_value(_block_loss, has_aux=True))


def check_compiler(device: str) -> None:
    """Raises ValueError if `torch.compile` does not work for this device type."""
    try:
        torch.compile(lambda x: x.exp().sum())(torch.zeros(2, 3, device=device))
    except Exception as error:  # no C++ compiler, no Triton, a Python it does not know
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"--compile-loss: torch.compile does not work here ({reason}); leave the flag out") from error


def _tempered(logits_BV: Tensor, temperature: float | Tensor) -> Tensor:
    if isinstance(temperature, Tensor):
        return logits_BV / temperature[:, None]
    return logits_BV if temperature == 1 else logits_BV / temperature


class _Gradients:
    """Those of hidden states, weight and bias; sums over chunks in fp32, which hold the scale of the last chunk."""

    def __init__(self, head: Head, needs: Sequence[bool], hidden_ND: Tensor, bias_V: Tensor | None):
        self._head = head
        needs_hidden, self._needs_weight, needs_bias = needs
        half = hidden_ND.dtype == torch.float16
        self._hidden_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
        self._scale_N = hidden_ND.new_ones(len(hidden_ND), dtype=torch.float32) if needs_hidden and half else None
        self._weight_VD = None
        self._bias_V = torch.zeros_like(bias_V, dtype=_at_least_fp32(bias_V.dtype)) if needs_bias else None
        self._scale: float | Tensor = 1.0

    def add(self, rows: slice | Tensor, grad_raw_CV: Tensor, hidden_CD: Tensor, scale: float | Tensor) -> None:
        """The share of the rows of one chunk, whose logits have the gradient `grad_raw_CV / scale`."""
        if self._hidden_ND is not None:
            self._hidden_ND[rows] = self._head.project_backward(grad_raw_CV)
        if isinstance(scale, Tensor):
            self._rescale(rows, scale)
        if self._needs_weight:
            self._weight_VD = self._head.weight_gradient(self._weight_VD, grad_raw_CV, hidden_CD)
        if self._bias_V is not None:
            self._bias_V[: self._head.vocabulary_size] += grad_raw_CV.sum(0, dtype=self._bias_V.dtype)

    def scaled(self) -> tuple[tuple[Tensor | None, float | Tensor], ...]:
        """(gradient, what to divide it by) of each."""
        of_hidden = self._scale if self._scale_N is None else self._scale_N[:, None]
        return (self._hidden_ND, of_hidden), (self._weight_VD, self._scale), (self._bias_V, self._scale)

    def _rescale(self, rows: slice | Tensor, scale: Tensor) -> None:
        if self._scale_N is not None:
            self._scale_N[rows] = scale
        for gradient in (self._weight_VD, self._bias_V):
            if gradient is not None:
                gradient.mul_(scale / self._scale)
        self._scale = scale


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _ChunkedLoss(torch.autograd.Function):
    """Value and gradient in one pass. The inputs are those that may need a gradient; the rest is in the walk."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD: Tensor | None, bias_V: Tensor | None, walk: _Walk):
        *needs, _ = ctx.needs_input_grad
        gradients = _Gradients(walk.rows.head, needs, hidden_ND, bias_V)
        sums = torch.zeros(3, device=hidden_ND.device, dtype=_at_least_fp32(hidden_ND.dtype))

        equation = walk.equation
        block_gradient = _compiled_block_gradient if walk.rows.compiled else _block_gradient
        for rows, chunk in walk.projected():
            for block in chunk.blocks():
                if any(needs):
                    gradient_BV, block_sums = block_gradient(block, equation)
                    scale = _put_gradient(gradient_BV, block.raw_CV)
                else:
                    _, block_sums = _block_loss(block.raw_CV, block, equation)
                sums += block_sums
            if any(needs):
                gradients.add(rows, chunk.raw_CV, hidden_ND[rows], scale)

        ctx.gradients = gradients.scaled()
        ctx.dtypes = tuple(tensor.dtype if tensor is not None else None for tensor in (hidden_ND, weight_VD, bias_V))
        loss, ce, kd = sums.unbind()
        ctx.mark_non_differentiable(ce, kd)
        return loss, ce, kd

    @staticmethod
    def backward(ctx, grad_loss: Tensor, _ce, _kd):
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the chunked loss keeps its gradients for one backward only"
        # In place: the head's gradient is as large as the head, and nobody else holds it.
        return *(
            gradient if gradient is None else gradient.mul_(grad_loss / scale).to(dtype)
            for (gradient, scale), dtype in zip(gradients, ctx.dtypes)
        ), None
