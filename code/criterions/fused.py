"""The chunked vocabulary loss: logits exist only at response positions, and only for a chunk of positions at a time.

In: final hidden states of student and teacher at response positions, both heads, and the loss of one position. Out:
loss sums whose gradient is already there. `ResponsePositions.walk` decides which positions a chunk has and makes their
logits; for each block of them, `_block_gradient` takes loss and gradient; `_ChunkedLoss` accumulates the gradients of
hidden states and, if it trains, of the head, before the next chunk is made. So memory does not grow with the number of
positions.

A chunk is large, for the matrix products; on a CPU the passes over its logits go by blocks of a few positions that stay
in the cache, and the gradient of a block takes the place of its logits. With --compile-loss, `torch.compile` fuses the
passes.

Shapes: N response positions of a micro-batch on this rank, C of them in a chunk, B of those in a block, V shared
vocabulary, D and E hidden sizes of student and teacher.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# fp32 logits of a block. On a CPU a few times this much fits the second-level caches, and memory that small is taken
# from the heap again and again instead of from the system; an accelerator takes a chunk as one block.
CPU_BLOCK_BYTES = 2**21
# The default of --loss-chunk-mb. Every chunk reads and writes the head's whole fp32 gradient: on an accelerator, whose
# products are fast beside its memory, fewer and larger chunks are better.
CPU_CHUNK_MB, ACCELERATOR_CHUNK_MB = 64, 256
ALIGNED_COLUMNS = 64  # tensor cores want a position's half-precision logits to start at multiples of 16 bytes and more
# In fp16, the largest sum of absolute values of a position's gradient in its logits. Times a weight of up to 8 it stays
# below fp16's maximum in the gradient of a hidden state, and entries down to 1e-11 of it are above fp16's minimum.
FP16_ABSOLUTE_SUM, FP16_MAX_SCALE = 2.0**12, 2.0**40

# An objective's `token_loss`: student_logits_BV, teacher_logits_BV, labels_B -> loss_B.
TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
Index = slice | Tensor  # of the positions of a chunk


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
    chunk_bytes: size of one fp32 [C, V] chunk; decides C.
    compiled: whether loss and gradient of a block are compiled.
    supervised: whether the labels are data, on which CE trains; samples of the student's are not.
    """

    hidden_ND: Tensor
    head: Head
    labels_N: Tensor
    chunk_bytes: int
    teacher_hidden_NE: Tensor | None = None
    teacher_head: Head | None = None
    positions_per_rank: tuple[int, ...] = (0,)
    compiled: bool = False
    supervised: bool = True

    def walk(
        self,
        token_loss: TokenLoss,
        ce_weight: float,
        kd_weight: float,
        temperature: float | Tensor = 1.0,
        kd_scale_N: Tensor | None = None,
        kd_selected_N: Tensor | None = None,
        kd_count: int | None = None,
    ) -> LossSums:
        """One pass: ce_weight * CE + kd_weight * sum_i kd_scale_i * token_loss(logits_i / temperature_i).

        temperature: one for all positions, or one each [N]. kd_scale_N: default 1. kd_selected_N, bool: positions
        that KD trains, `kd_count` of them; default all. CE is at temperature 1 over all positions, unless ce_weight is
        0: then positions outside `kd_selected_N` are not visited and `LossSums.ce` is of the visited only.
        """
        visits = self._visits(ce_weight > 0, kd_weight > 0, kd_selected_N, kd_count)
        chunks = self._logits(visits, temperature, kd_scale_N)
        block_loss = partial(
            _block_loss,
            token_loss=token_loss,
            head=self.head,
            teacher_head=self.teacher_head,
            ce_weight=ce_weight,
            kd_weight=kd_weight,
        )
        inputs = (self.hidden_ND, *self.head.parameters())
        if not torch.is_grad_enabled():  # an autograd function sees only what its inputs could need
            inputs = tuple(x if x is None else x.detach() for x in inputs)
        return LossSums(*_ChunkedLoss.apply(*inputs, self, chunks, block_loss))

    @torch.no_grad()
    def score(self, function: Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """`function(student_logits_BV, teacher_logits_BV, labels_B)` of every block, without gradient, concatenated.

        Without a teacher its logits are None.
        """
        scores, taught = [], self.teacher_hidden_NE is not None
        for _, _, blocks in self._logits([(index_C, taught) for index_C in self.chunks(len(self.labels_N))]):
            for block in blocks:
                student_logits_BV = self.head.finish(block.raw_BV)
                teacher_logits_BV = self.teacher_head.finish(block.teacher_raw_BV) if taught else None
                scores.append(function(student_logits_BV, teacher_logits_BV, block.labels_B))
        return tuple(torch.cat(parts) for parts in zip(*scores))

    def part(self, index: Index) -> "ResponsePositions":
        """Some of the positions."""
        teacher_hidden_NE = None if self.teacher_hidden_NE is None else self.teacher_hidden_NE[index]
        return replace(
            self,
            hidden_ND=self.hidden_ND[index],
            labels_N=self.labels_N[index],
            teacher_hidden_NE=teacher_hidden_NE,
        )

    @property
    def chunk_size(self) -> int:
        return max(1, self.chunk_bytes // (4 * self.head.vocabulary_size))

    def chunks(self, count: int, start: int = 0) -> Iterator[slice]:
        """Slices of `count` positions from `start` on; one empty slice if `count` is 0, so that shapes hold."""
        for first in range(start, start + max(1, count), self.chunk_size):
            yield slice(first, min(first + self.chunk_size, start + count))

    def _visits(
        self, with_ce: bool, with_kd: bool, kd_selected_N: Tensor | None, kd_count: int | None
    ) -> list[tuple[Index, bool]]:
        """The positions of each chunk, and whether KD is taken there."""
        if kd_selected_N is None:
            return [(index_C, with_kd) for index_C in self.chunks(len(self.labels_N))]
        # Selected positions first: a chunk then either needs the teacher's logits or does not.
        order_N = (~kd_selected_N).to(torch.uint8).argsort(stable=True)
        visits = [(order_N[chunk], with_kd) for chunk in self.chunks(kd_count)]
        if with_ce:
            visits += [(order_N[chunk], False) for chunk in self.chunks(len(order_N) - kd_count, start=kd_count)]
        return visits

    def _logits(
        self, visits: list[tuple[Index, bool]], temperature: float | Tensor = 1.0, kd_scale_N: Tensor | None = None
    ) -> Iterator[tuple[Index, Tensor, Iterator["_Block"]]]:
        """Of each chunk the positions, the student's raw_CV and the blocks; in the same memory as the chunk before."""
        student_CV, teacher_CV = self._memory(self.head, self.hidden_ND), None
        if any(with_kd for _, with_kd in visits):
            teacher_CV = self._memory(self.teacher_head, self.teacher_hidden_NE)
        for index_C, with_kd in visits:
            labels_C = self.labels_N[index_C]
            raw_CV = self.head.project(self.hidden_ND[index_C], student_CV[: len(labels_C)])
            teacher_raw_CV = None
            if with_kd:
                teacher_hidden_CE = self.teacher_hidden_NE[index_C]
                teacher_raw_CV = self.teacher_head.project(teacher_hidden_CE, teacher_CV[: len(labels_C)])
            temperature_C = temperature[index_C] if isinstance(temperature, Tensor) else temperature
            kd_scale_C = None if kd_scale_N is None else kd_scale_N[index_C]
            yield index_C, raw_CV, _blocks(raw_CV, teacher_raw_CV, labels_C, temperature_C, kd_scale_C)

    def _memory(self, head: Head, hidden_ND: Tensor) -> Tensor:
        """Room for the raw logits of a chunk."""
        columns = head.vocabulary_size
        # Passes over the logits go by their fp32 copy, which is contiguous; only the products see the gaps.
        gap = 0 if hidden_ND.is_cpu or hidden_ND.itemsize > 2 else -columns % ALIGNED_COLUMNS
        return hidden_ND.new_empty(min(self.chunk_size, len(hidden_ND)), columns + gap)[:, :columns]


class _Block(NamedTuple):
    """Raw logits of a few positions of a chunk, and what belongs to each position."""

    raw_BV: Tensor | None
    teacher_raw_BV: Tensor | None  # where KD is taken
    labels_B: Tensor
    temperature: float | Tensor  # one for all, or [B]
    kd_scale_B: Tensor | None


def _blocks(raw_CV: Tensor, *others: Tensor | float | None) -> Iterator[_Block]:
    """Views of a chunk; an empty chunk has one empty view."""
    size = _block_size(raw_CV)
    for first in range(0, max(1, len(raw_CV)), size):
        block = slice(first, first + size)
        yield _Block(*(part[block] if isinstance(part, Tensor) else part for part in (raw_CV, *others)))


def _block_size(raw_CV: Tensor) -> int:
    """Positions of a full block."""
    count, vocabulary_size = raw_CV.shape
    if not raw_CV.is_cpu or raw_CV.dtype == torch.float16:  # fp16: a chunk's gradient has one scale
        return max(1, count)
    return max(1, CPU_BLOCK_BYTES // (4 * vocabulary_size))


def _block_loss(
    raw_BV: Tensor,
    block: _Block,
    token_loss: TokenLoss,
    head: Head,
    teacher_head: Head | None,
    ce_weight: float,
    kd_weight: float,
) -> tuple[Tensor, Tensor]:
    """The loss, differentiable in `raw_BV`, the raw logits of the block; and [loss, CE, KD]."""
    logits_BV = head.finish(raw_BV)
    ce = F.cross_entropy(logits_BV if ce_weight > 0 else logits_BV.detach(), block.labels_B, reduction="sum")
    loss, kd = ce_weight * ce, torch.zeros_like(ce)
    if block.teacher_raw_BV is not None:
        teacher_logits_BV = teacher_head.finish(block.teacher_raw_BV)
        tempered = (_tempered(logits_BV, block.temperature), _tempered(teacher_logits_BV, block.temperature))
        kd_B = token_loss(*tempered, block.labels_B)
        kd = (kd_B if block.kd_scale_B is None else kd_B * block.kd_scale_B).sum()
        loss = loss + kd_weight * kd
    return loss, torch.stack((loss, ce, kd)).detach()


def _tempered(logits_BV: Tensor, temperature: float | Tensor) -> Tensor:
    if isinstance(temperature, Tensor):
        return logits_BV / temperature[:, None]
    return logits_BV if temperature == 1 else logits_BV / temperature


def _block_gradient(block: _Block, block_loss: partial) -> tuple[Tensor, Tensor]:
    """The gradient of the loss in the raw logits, and [loss, CE, KD]."""
    raw_BV = _beyond_fp16(block.raw_BV).detach().requires_grad_()
    with torch.enable_grad():
        loss, sums = block_loss(raw_BV, block)
    return torch.autograd.grad(loss, raw_BV)[0], sums


def _compiled_block_gradient(block: _Block, block_loss: partial) -> tuple[Tensor, Tensor]:
    """The same, compiled; on a CPU only blocks of full size, since any other would take a compilation of its own."""
    if len(block.raw_BV) < _block_size(block.raw_BV):
        return _block_gradient(block, block_loss)
    raw_BV = _beyond_fp16(block.raw_BV)
    gradient_BV, (_, sums) = _compiled_loss()(raw_BV, block._replace(raw_BV=None), **block_loss.keywords)
    return gradient_BV, sums


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


def _beyond_fp16(raw_BV: Tensor) -> Tensor:
    """Logits whose gradient neither overflows nor vanishes before `_put_gradient` has chosen its scale."""
    return raw_BV.float() if raw_BV.dtype == torch.float16 else raw_BV


def _put_gradient(gradient_BV: Tensor, raw_BV: Tensor) -> float | Tensor:
    """The gradient takes the place of the logits, in fp16 times a power of two that suits it, which is returned.

    The engine's loss scale comes only in the backward, and could not restore what was lost here.
    """
    if raw_BV.dtype != torch.float16 or not len(raw_BV):
        raw_BV.copy_(gradient_BV)
        return 1.0
    absolute_sum = torch.linalg.vector_norm(gradient_BV, 1, dim=-1).amax()
    scale = (FP16_ABSOLUTE_SUM / absolute_sum).log2().floor().exp2().clamp(1 / FP16_MAX_SCALE, FP16_MAX_SCALE)
    torch.mul(gradient_BV, scale, out=raw_BV)
    return scale


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _ChunkedLoss(torch.autograd.Function):
    """Value and gradient in one pass. The tensor inputs are those that may need a gradient."""

    @staticmethod
    def forward(
        ctx,
        hidden_ND: Tensor,
        weight_VD: Tensor | None,
        bias_V: Tensor | None,
        positions: ResponsePositions,
        chunks: Iterator[tuple[Index, Tensor, Iterator[_Block]]],
        block_loss: partial,
    ):
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        needs_any, head = needs_hidden or needs_weight or needs_bias, positions.head
        block_gradient = _compiled_block_gradient if positions.compiled else _block_gradient
        sums = torch.zeros(3, device=hidden_ND.device, dtype=_at_least_fp32(hidden_ND.dtype))
        grad_hidden_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = None
        grad_bias_V = torch.zeros_like(bias_V, dtype=_at_least_fp32(bias_V.dtype)) if needs_bias else None
        # In fp16, each hidden state's gradient is held times its chunk's scale, the other two times the last chunk's.
        half, scale = hidden_ND.dtype == torch.float16, 1.0
        scale_N1 = torch.ones(len(hidden_ND), 1, device=hidden_ND.device) if half else None

        for index_C, raw_CV, blocks in chunks:
            for block in blocks:
                if needs_any:
                    gradient_BV, block_sums = block_gradient(block, block_loss)
                    chunk_scale = _put_gradient(gradient_BV, block.raw_BV)
                else:
                    _, block_sums = block_loss(block.raw_BV, block)
                sums += block_sums
            grad_raw_CV = raw_CV  # the gradients of its blocks have taken its place
            if needs_any and isinstance(chunk_scale, Tensor):
                scale_N1[index_C] = chunk_scale
                for sum_of_chunks in (grad_weight_VD, grad_bias_V):
                    if sum_of_chunks is not None:
                        sum_of_chunks.mul_(chunk_scale / scale)
                scale = chunk_scale
            if needs_hidden:
                grad_hidden_ND[index_C] = head.project_backward(grad_raw_CV)
            if needs_weight:
                grad_weight_VD = head.weight_gradient(grad_weight_VD, grad_raw_CV, hidden_ND[index_C])
            if needs_bias:
                grad_bias_V[: head.vocabulary_size] += grad_raw_CV.sum(0, dtype=grad_bias_V.dtype)

        hidden_scale = scale if scale_N1 is None else scale_N1
        ctx.gradients = (grad_hidden_ND, hidden_scale), (grad_weight_VD, scale), (grad_bias_V, scale)
        ctx.dtypes = tuple(tensor.dtype if tensor is not None else None for tensor in (hidden_ND, weight_VD, bias_V))
        loss, ce, kd = sums.unbind()
        ctx.mark_non_differentiable(ce, kd)
        return loss, ce, kd

    @staticmethod
    def backward(ctx, grad_loss: Tensor, _ce, _kd):
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the chunked loss keeps its gradients for one backward only"
        # In place: the head's gradient is as large as the head, and nothing else refers to it.
        scaled = [
            gradient if gradient is None else gradient.mul_(grad_loss / scale).to(dtype)
            for (gradient, scale), dtype in zip(gradients, ctx.dtypes)
        ]
        return *scaled, None, None, None
