"""A step on a pretend accelerator: no operation mixes devices, and the host waits for the device only where it must.

Runs our own code from `collate` to the logged metrics, with tiny models on the device of `pretend_device.py`. What this
proves, and what it cannot, is in docs/performance.md.
"""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash

from arguments import KDArguments
from criterions import StepTokens, adakd, build_criterion
from criterions.fused import ResponsePositions
from criterions.todi import ToDi
from data_utils.batches import Example, collate
from distiller import Distiller
from models.heads import LanguageModelHead, ModelLogits, SplitModel
from models.probes import split
from models.sharding import frozen_linear
from pretend_device import DEVICE, MixedDevices, PretendTensor, Rehearsal, on_cpu
from teacher.cache import ShardWriter, TeacherCache
from teacher.states import CachedTeacher, LiveTeacher, dropped_mass
from tiny import llama
from training import metrics as metrics_module
from training.guard import poisoned
from training.metrics import Metrics

CPU = torch.device("cpu")
SHARED = 59
_IDS = torch.randint(SHARED, (200,), generator=torch.Generator().manual_seed(0)).tolist()
LENGTHS = ((6, 5), (3, 9), (10, 2), (1, 7), (4, 1), (5, 0))
EXAMPLES = [Example(_IDS[9 * i : 9 * i + p], _IDS[99 + 9 * i : 99 + 9 * i + r]) for i, (p, r) in enumerate(LENGTHS)]
MICRO_BATCHES = EXAMPLES[:4], EXAMPLES[4:]
TOKENS = tuple(sum(len(example.response_ids) for example in some) for some in MICRO_BATCHES)
MASK = "aten._local_scalar_dense.default", "models/packing.py:forward"

pytestmark = pytest.mark.usefixtures("one_thread")


def on(device, model):
    model.to(device).tie_weights()  # a parameter that changes its class loses its other name
    return model


def teacher_on(device, dtype, folder, own_logits):
    """Live, or from the cache in `folder`."""
    model = llama(67, hidden=24, layers=1, tied=False, seed=0).to(dtype).eval()
    if folder is None:
        on(device, model)
        return LiveTeacher(SplitModel(model, ModelLogits(SHARED)) if own_logits else split(model, SHARED))
    cache, live = TeacherCache(str(folder), {}), split(model)
    cache.start(live.head, "teacher")
    writer, batch = ShardWriter(cache), collate(EXAMPLES, 0, 24, "padded")
    writer.add(batch.examples, LiveTeacher(live).states(batch).states_NE)
    writer.close()
    cache.refresh()
    cached = CachedTeacher(cache, device)
    cached.head.vocabulary_size = SHARED
    return cached


class Step:
    """One optimiser step of two micro-batches on `device`; what it waited for, part by part."""

    def __init__(self, device, folder, objective="todi", layout="packed", dtype=torch.float32, ranks=1, **case):
        self.rehearsal, self.waits = Rehearsal(), {}
        with self.rehearsal:
            student = on(device, llama(61, hidden=16, layers=2, tied=True, seed=1).to(dtype))
            own_logits = case.get("own_logits", False)
            source = teacher_on(device, dtype, folder if case.get("cached") else None, own_logits)
            head = SplitModel(student, ModelLogits(SHARED)) if own_logits else split(student, SHARED)
            distiller = Distiller(head, build_criterion(objective, KDArguments(kd_rate=0.5, adakd_ratio=0.5))).train()
            assert distiller.chunk_bytes == (64 if device == CPU else 256) * 2**20
            distiller.chunk_bytes = 7 * 4 * SHARED
            metrics, criterion = Metrics(device), distiller.criterion
            self.part("loading")
            criterion.prepare(100)
            criterion.start_step(StepTokens(tuple(ranks * n for n in TOKENS), device))
            for some, tokens in zip(MICRO_BATCHES, TOKENS):
                batch = collate(some, 0, 24, layout, (tokens,) * ranks).to(device)
                with distiller.observed_by(metrics.observe):
                    sums = distiller(batch, source.states(batch))
                (poisoned(sums.loss) / sum(TOKENS)).backward()
                metrics.add(sums, batch)
            self.part("micro-steps")
            metrics.end_step(True)
            criterion.end_step()
            self.part("the step's end")
            self.record = metrics.record(1, 1, 0.1, {})
            self.part("a logged step")
            self.mass = dropped_mass(source, batch, 1000)
            self.part("dropped mass")
        self.gradients = {name: on_cpu(p.grad) for name, p in student.named_parameters()}

    def part(self, name):
        self.waits[name] = dict(self.rehearsal.waits)
        self.rehearsal.waits.clear()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    one_rank = SimpleNamespace(all_reduce=lambda totals: None, get_world_size=lambda: 1)
    monkeypatch.setattr(metrics_module, "dist", one_rank)
    monkeypatch.setattr(metrics_module, "peak_memory_mb", lambda device: 0.0)


def both_halves(values_N, positions_per_rank):
    """Of two ranks with equal scores."""
    return (0, values_N) if len(positions_per_rank) == 1 else (0, torch.cat([values_N, values_N]))


END_OF_ADAKD = {("tolist", "criterions/adakd.py:end_step"): 1}
CASES = {
    "live, todi": ({}, {}, {}),
    "cached, bf16, adakd, one row": (
        {"objective": "adakd", "layout": "packed into one row", "cached": True, "dtype": torch.bfloat16},
        {},
        END_OF_ADAKD,
    ),
    "live, fp16, adakd": ({"objective": "adakd+todi", "dtype": torch.float16}, {}, END_OF_ADAKD),
    # How many of the positions selected over all ranks are this one's.
    "adakd, two ranks": (
        {"objective": "adakd", "ranks": 2},
        {("aten._local_scalar_dense.default", "criterions/adakd.py:loss"): 2},
        END_OF_ADAKD,
    ),
    # Whether a model that cannot be packed needs a mask. Both models.
    "live, padded": ({"layout": "padded"}, {MASK: 6}, {}),
    # Which columns of the batch have a response position, for the logits of an unknown head. Both models.
    "own logits": ({"own_logits": True}, {("aten._unique2.default", "models/heads.py:_needed_columns"): 4}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_the_device(case, tmp_path, monkeypatch):
    """Equal to the step on the CPU; it waits for the device only where CASES says."""
    monkeypatch.setattr(adakd, "_gather", both_halves)
    settings, of_micro_steps, of_end = CASES[case]
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    there = Step(DEVICE, tmp_path / "there", **settings)
    assert there.waits["micro-steps"] == of_micro_steps
    assert there.waits["the step's end"] == of_end
    log = "training/metrics.py:record"
    assert there.waits["a logged step"] == {("copy to the device", log): 1, ("tolist", log): 1}
    assert there.waits["dropped mass"].keys() <= of_micro_steps.keys()  # a teacher's forward, where it is live
    here = Step(CPU, tmp_path / "here", **settings)
    dtype = settings.get("dtype", torch.float32)
    half = dtype != torch.float32
    assert there.record["loss"] == pytest.approx(here.record["loss"], rel=1e-2 if half else 1e-5)
    for name, gradient in here.gradients.items():
        off = (there.gradients[name].float() - gradient.float()).norm() / gradient.float().norm()
        assert off <= (5 * torch.finfo(dtype).eps if half else 1e-4), name
    assert not isinstance(next(iter(there.gradients.values())), PretendTensor)


# The rehearsal sees what it is there to see


@pytest.mark.parametrize(
    "fault, seen",
    [
        (lambda loss_N: loss_N.sum().item() and loss_N, "aten._local_scalar_dense.default"),
        (lambda loss_N: loss_N[loss_N > 0], "aten.index.Tensor"),
        (lambda loss_N: loss_N * loss_N.detach().cpu().mean(), "copy to the host"),
        (lambda loss_N: loss_N * torch.tensor([2.0]).to(loss_N.device), "copy to the device"),
    ],
)
def test_a_planted_question_is_counted(fault, seen, tmp_path, monkeypatch):
    token_loss = ToDi.token_loss
    monkeypatch.setattr(ToDi, "token_loss", lambda *args: fault(token_loss(*args)))
    waits = Step(DEVICE, tmp_path).waits["micro-steps"]
    assert (seen, "criterions/fused.py:_block_loss") in waits


def test_a_planted_mixture_of_devices_fails(tmp_path, monkeypatch):
    token_loss = ToDi.token_loss
    monkeypatch.setattr(ToDi, "token_loss", lambda *args: token_loss(*args) * torch.ones(1))
    with pytest.raises(MixedDevices, match=r"aten.mul.Tensor takes \[\(1,\)\] from the CPU at criterions/fused.py"):
        Step(DEVICE, tmp_path)


# Products in half precision


class Allocations(Rehearsal):
    """`made`: functions that took memory for a matrix as large as the head."""

    def __init__(self, size):
        super().__init__()
        self.size, self.made = size, []

    def _run(self, function, args, kwargs, tensors):
        result = super()._run(function, args, kwargs, tensors)
        of_inputs = {on_cpu(x).untyped_storage().data_ptr() for x in tensors}
        for made in filter(lambda x: isinstance(x, torch.Tensor) and x.numel() >= self.size, [result]):
            if on_cpu(made).untyped_storage().data_ptr() not in of_inputs:
                self.made.append(function)
        return result


def test_the_heads_gradient_is_summed_in_place():
    """In fp32, of products in half precision, without a second matrix of its size."""
    weight_VD, grads_CV, hidden_CD = torch.zeros(61, 16), torch.randn(2, 5, SHARED), torch.randn(2, 5, 16)
    with Allocations(SHARED * 16) as rehearsal:
        head = LanguageModelHead(frozen_linear(weight_VD.bfloat16().to(DEVICE)), SHARED)
        gradient_VD = None
        for grad_CV, hidden in zip(grads_CV.bfloat16(), hidden_CD.bfloat16()):
            gradient_VD = head.weight_gradient(gradient_VD, grad_CV.to(DEVICE), hidden.to(DEVICE))
        assert rehearsal.made == [torch.ops.aten.zeros_like.default]
    expected_VD = sum(g.T @ h for g, h in zip(grads_CV.bfloat16().float(), hidden_CD.bfloat16().float()))
    torch.testing.assert_close(on_cpu(gradient_VD)[:SHARED], expected_VD)
    assert gradient_VD.dtype == torch.float32 and not on_cpu(gradient_VD)[SHARED:].any()


@pytest.mark.parametrize("device, stride", [(DEVICE, 64), (CPU, SHARED)])
def test_rows_of_logits_start_where_tensor_cores_want_them(device, stride):
    """The product is written into the aligned rows themselves, not copied there."""
    with Rehearsal():
        head = LanguageModelHead(frozen_linear(torch.randn(SHARED, 16, dtype=torch.bfloat16).to(device)))
        hidden_ND = torch.randn(9, 16, dtype=torch.bfloat16).to(device)
        positions = ResponsePositions(hidden_ND, head, torch.zeros(9, dtype=torch.long).to(device), 7 * 4 * SHARED)
        visits = [(slice(0, 7), False), (slice(7, 9), False)]
        first, second = (on_cpu(raw_CV) for _, raw_CV, _ in positions._logits(visits))
    assert first.stride() == second.stride() == (stride, 1)
    assert first.data_ptr() == second.data_ptr()


# Attention kernels of variable length, which no CPU has


def varlen_attention(q_THD, k_THD, v_THD, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale):
    """What flash attention computes, by its arguments, on the CPU."""
    q_THD, k_THD, v_THD, ends = map(on_cpu, (q_THD, k_THD, v_THD, cu_seqlens_q))
    assert type(max_seqlen_q) is type(max_seqlen_k) is int and max_seqlen_q == max_seqlen_k == ends.diff().max()
    assert cu_seqlens_k is cu_seqlens_q and ends.dtype == torch.int32
    parts = []
    for start, end in pairwise(ends):
        q, k, v = (x[start:end].transpose(0, 1) for x in (q_THD, k_THD, v_THD))
        k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
        attention = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale)
        parts.append(attention.transpose(0, 1))
    return PretendTensor(torch.cat(parts))


def test_flash_attention_is_told_where_examples_begin(monkeypatch):
    def kwargs(softmax_scale, max_seqlen_q, max_seqlen_k, **_):
        return {"softmax_scale": softmax_scale, "max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}

    functions = (None, varlen_attention, None, None, None), (kwargs, None)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_: functions)
    alone = split(llama(61, hidden=16, layers=2, tied=True, seed=1).double())
    expected_ND = alone.states(collate(EXAMPLES, 0, 24, "padded")).detach()
    with torch.no_grad(), Rehearsal() as rehearsal:
        model = split(on(DEVICE, llama(61, hidden=16, layers=2, tied=True, seed=1).double()))
        model.model.config._attn_implementation = "flash_attention_2"
        batch = collate(EXAMPLES, 0, 24, "packed")
        rehearsal.waits.clear()
        hidden_ND = model.states(batch.to(DEVICE))
        assert not rehearsal.waits
    order = [batch.examples.index(example) for example in EXAMPLES]
    parts = on_cpu(hidden_ND).split([len(example.response_ids) for example in batch.examples])
    torch.testing.assert_close(torch.cat([parts[i] for i in order]), expected_ND)
