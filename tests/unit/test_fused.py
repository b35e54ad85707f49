"""The chunked loss on packed batches against the dense one on padded batches: values, and every parameter's gradient.

Shapes: N response positions, C of them in a chunk, V shared vocabulary, D hidden size of the student.
"""

from functools import cache

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    PhiConfig,
)

from arguments import KDArguments
from criterions import Criterion, StepTokens, build_criterion
from criterions import fused as fused_loss
from criterions.fused import ResponsePositions
from data_utils.batches import Example, collate
from distiller import Distiller
from models.heads import LanguageModelHead, ModelLogits, SplitModel, unwrap_peft
from models.probes import split
from reference.dense_step import IGNORE, dense_logits, dense_loss, pad_to_max
from reference.objectives import NAIVE, naive_adakd
from teacher.states import LiveTeacher
from tiny import llama

STUDENT_VOCAB, TEACHER_VOCAB, SHARED = 61, 67, 59
MAX_LENGTH = 24
EVERYTHING = 10**6
OBJECTIVES = list(NAIVE)


def examples(*lengths, seed=0):
    """Random examples of (prompt, response) lengths, of shared ids."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count):
        return torch.randint(SHARED, (count,), generator=generator).tolist()

    return [Example(ids(prompt), ids(response)) for prompt, response in lengths]


EXAMPLES = examples((6, 5), (3, 9), (10, 2), (1, 7), (4, 1), (5, 0))
MORE_EXAMPLES = examples((2, 3), (7, 8), (3, 2), seed=1)


# Models. All are in float64, so that only a wrong equation is above the tolerance.


def with_lora(model, **config):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **config))


def from_config(config_class, hidden=16, **settings):
    """A tiny model with biases that are not zero."""
    torch.manual_seed(1)
    sizes = {"vocab_size": STUDENT_VOCAB, "hidden_size": hidden, "intermediate_size": 2 * hidden}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}
    if config_class is GPT2Config:
        sizes = {"vocab_size": STUDENT_VOCAB, "n_embd": hidden, "n_layer": 1, "n_head": 2, "initializer_range": 0.2}
    model = AutoModelForCausalLM.from_config(
        config_class(**sizes | {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1} | settings)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


GROUPED = {"num_key_value_heads": 1}
HEADS = {
    "untied": lambda: llama(STUDENT_VOCAB, hidden=16, layers=1, tied=False, seed=1),
    "tied": lambda: llama(STUDENT_VOCAB, hidden=16, layers=1, tied=True, seed=1),
    "lora": lambda: with_lora(HEADS["untied"](), target_modules=["q_proj", "down_proj"]),
    "lora_tied": lambda: with_lora(HEADS["tied"](), target_modules=["q_proj", "down_proj"]),
    "bias": lambda: from_config(PhiConfig, resid_pdrop=0.0, embd_pdrop=0.0),
    "softcap": lambda: from_config(Gemma2Config, final_logit_softcapping=1.5, head_dim=8, **GROUPED),
    "logits_scaling": lambda: from_config(GraniteConfig, logits_scaling=0.2, **GROUPED),
    "logit_scale": lambda: from_config(CohereConfig, logit_scale=0.3, **GROUPED),
    "gpt2": lambda: from_config(GPT2Config, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "gpt_neox": lambda: from_config(GPTNeoXConfig),
}


@cache
def student(name):
    return HEADS[name]().double()


@cache
def split_student(name, vocabulary=SHARED):
    return split(student(name), vocabulary)


@cache
def teacher():
    return llama(TEACHER_VOCAB, hidden=24, layers=1, tied=False, seed=0).double().eval()


@cache
def live_teacher(vocabulary=SHARED):
    return LiveTeacher(split(teacher(), vocabulary))


pytestmark = pytest.mark.usefixtures("one_thread")


# The two ways to a loss


def padded(some):
    return pad_to_max([(example.prompt_ids, example.response_ids) for example in some], MAX_LENGTH, pad_id=0)


def tokens_of(some):
    return sum(len(example.response_ids) for example in some)


def gradients(model):
    """Of every parameter; then none."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


@cache
def dense(head, objective, kd_rate=0.3, temperature=1.0, squared=False, vocabulary=SHARED):
    """Loss, CE and KD sums and the gradients."""
    sums = dense_loss(
        student(head).train(),
        None if objective == "cross_entropy" else teacher(),
        padded(EXAMPLES),
        objective,
        kd_rate,
        temperature,
        vocabulary,
    )
    loss = sums.loss_sum
    if squared and objective != "cross_entropy":
        loss = (1 - kd_rate) * sums.ce_sum + kd_rate * temperature**2 * sums.kd_sum
    loss.backward()
    return loss.detach(), sums.ce_sum.detach(), sums.kd_sum.detach(), gradients(student(head))


def distiller_of(model, objective, chunk_size, **arguments):
    args = KDArguments(**arguments)
    distiller = Distiller(model, build_criterion(objective, args), loss_chunk_mb=1, compile_loss=args.compile_loss)
    distiller.chunk_bytes = chunk_size * 4 * model.head.vocabulary_size
    return distiller.train()


def batch_of(some, layout="packed"):
    return collate(some, 0, MAX_LENGTH, layout, positions_per_rank=(tokens_of(some),))


def fused(model, objective, chunk_size, layout="packed", source=None, **arguments):
    distiller = distiller_of(model, objective, chunk_size, **arguments)
    batch = batch_of(EXAMPLES, layout)
    distiller.criterion.start_step(StepTokens(tokens=(tokens_of(EXAMPLES),)))
    source = source or live_teacher(model.head.vocabulary_size)
    sums = distiller(batch, source.states(batch) if distiller.criterion.needs_teacher else None)
    sums.loss.backward()
    return sums.loss.detach(), sums.ce, sums.kd, gradients(model.model)


def assert_same(actual, expected):
    """Sums and gradients; zeros are of the size of the gradient's rounding."""
    *actual_sums, actual_gradients = actual
    *expected_sums, expected_gradients = expected
    for one, other in zip(actual_sums, expected_sums):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)
    assert actual_gradients.keys() == expected_gradients.keys()
    for name, expected_gradient in expected_gradients.items():
        atol = 1e-6 * expected_gradient.abs().max().item() + 1e-9
        torch.testing.assert_close(
            actual_gradients[name],
            expected_gradient,
            rtol=1e-5,
            atol=atol,
            msg=lambda message, name=name: f"{name}: {message}",
        )


@pytest.fixture(autouse=True)
def blocks_of_three_positions(monkeypatch):
    monkeypatch.setattr("criterions.fused.CPU_BLOCK_BYTES", 3 * 4 * SHARED)


# Every objective, every head


EVERY_HEAD = [(head, "todi") for head in HEADS]
EVERY_OBJECTIVE = [("bias", objective) for objective in OBJECTIVES if objective != "todi"]


@pytest.mark.parametrize("chunk_size", [1, 7, EVERYTHING])
@pytest.mark.parametrize("head, objective", EVERY_HEAD + EVERY_OBJECTIVE)
def test_chunked_and_packed_equals_dense_and_padded(head, objective, chunk_size):
    model = split_student(head)
    assert type(model.head) is LanguageModelHead
    assert_same(fused(model, objective, chunk_size, kd_rate=0.3), dense(head, objective))


@pytest.mark.parametrize("objective, head", [("todi", "tied"), ("adakd", "softcap")])
def test_compiled_equals_dense(objective, head, monkeypatch):
    """Blocks of three positions, and what is left at the end of a chunk, which is not compiled."""
    try:
        fused_loss.check_compiler("cpu")
    except ValueError as error:
        pytest.skip(str(error))
    torch.compiler.reset()
    fused_loss._compiled_loss.cache_clear()
    compiled, calls = fused_loss._compiled_loss(), []
    monkeypatch.setattr(
        fused_loss, "_compiled_loss", lambda: lambda *args, **settings: calls.append(0) or compiled(*args, **settings)
    )
    compiled_sums = fused(split_student(head), objective, 7, compile_loss=True, kd_rate=0.3)
    assert_same(compiled_sums, fused(split_student(head), objective, 7, kd_rate=0.3))
    assert len(calls) >= 4 and torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_without_a_compiler_the_flag_is_refused(monkeypatch):
    def no_compiler(function):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ValueError, match=r"--compile-loss: .*no C\+\+ compiler.*leave"):
        fused_loss.check_compiler("cpu")


def test_the_gradient_of_tied_inputs_is_no_second_dense_tensor():
    model = split_student("tied")
    distiller_of(model, "todi", 7)
    assert model.model.get_input_embeddings().sparse
    assert fused(model, "todi", 7)[3]["model.embed_tokens.weight"].layout is torch.strided


@pytest.mark.parametrize(
    "kd_rate, temperature, scaling", [(0.0, 1.0, "none"), (1.0, 2.0, "none"), (0.3, 2.0, "squared")]
)
@pytest.mark.parametrize("objective", ["cross_entropy", "todi"])
def test_rates_and_temperatures(objective, kd_rate, temperature, scaling):
    arguments = {"kd_rate": kd_rate, "kd_temperature": temperature, "kd_temperature_scaling": scaling}
    actual = fused(split_student("tied"), objective, 7, **arguments)
    loss, ce, kd, gradients = dense("tied", objective, kd_rate, temperature, scaling == "squared")
    if kd_rate == 0:  # then the teacher is not asked
        kd = torch.zeros_like(kd)
    assert_same(actual, (loss, ce, kd, gradients))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_dtypes_of_real_runs(dtype, tolerance):
    """Sums in fp32, gradients in the parameters' dtype, as near to dense fp64 as rounding lets them be."""
    model = llama(STUDENT_VOCAB, hidden=16, layers=1, tied=False, seed=1).to(dtype)
    *sums, found = fused(split(model, SHARED), "todi", 5, kd_rate=0.3)
    loss, _, _, expected = dense("untied", "todi")
    assert all(value.dtype == torch.float32 for value in sums)
    assert sums[0].item() == pytest.approx(loss.item(), rel=tolerance / 4)
    for name, gradient in found.items():
        assert gradient.dtype == dtype
        assert (gradient - expected[name]).norm() <= tolerance * expected[name].norm(), name


class Steep(Criterion):
    """A gradient of the size of `slope` in the first logits."""

    slope = 1.0

    def token_loss(self, student_logits_NV, teacher_logits_NV, labels_N=None):
        slopes_3 = self.slope * torch.tensor([1.0, -2.0, 0.5])
        return (student_logits_NV.log_softmax(-1)[:, :3] * slopes_3).sum(-1)


def steep_gradients(dtype, slope, kd_scale_N):
    """Of hidden states, weight and bias, in units of `slope`, five positions at a time; equal numbers in any dtype."""
    torch.manual_seed(0)
    linear, hidden_ND = torch.nn.Linear(16, SHARED).half().to(dtype), torch.randn(12, 16).half().to(dtype)
    head, criterion = LanguageModelHead(linear, SHARED), Steep(KDArguments())
    criterion.slope = slope
    hidden_ND.requires_grad_()
    positions = ResponsePositions(hidden_ND, head, torch.arange(12), 5 * 4 * SHARED, hidden_ND.detach(), head)
    sums = positions.walk(criterion.token_loss, ce_weight=0.0, kd_weight=1.0, kd_scale_N=kd_scale_N)
    (sums.loss / (slope * kd_scale_N.max())).backward()
    return hidden_ND.grad, linear.weight.grad, linear.bias.grad


@pytest.mark.parametrize("slope", [1e3, 1.0, 1e-6])
@pytest.mark.parametrize(
    "kd_scale_N", [torch.full((12,), 100.0), 10.0 ** torch.arange(-4, 8).div(4)], ids=["even", "uneven"]
)
def test_fp16_gradients_of_any_size(slope, kd_scale_N):
    """As near to fp32's as fp16's rounding, although only the backward's factor brings them into fp16's range."""
    half, single = (steep_gradients(dtype, slope, kd_scale_N) for dtype in (torch.float16, torch.float32))
    for name, actual, expected in zip(("hidden", "weight", "bias"), half, single):
        assert actual.dtype == torch.float16
        assert (actual - expected).norm() <= 1e-3 * expected.norm(), name


def test_an_fp16_gradient_that_is_not_finite_stays_so():
    """So that the engine leaves the step out."""
    for slope in (torch.inf, torch.nan, 3e38):
        assert not any(gradient.isfinite().all() for gradient in steep_gradients(torch.float16, slope, torch.ones(12)))


@pytest.mark.parametrize(
    "head, layout, vocabulary",
    [("tied", "packed", SHARED), ("softcap", "padded", SHARED), ("lora", "packed", STUDENT_VOCAB)],
)
def test_the_models_own_logits_give_the_same(head, layout, vocabulary):
    model = SplitModel(student(head), ModelLogits(vocabulary))
    source = LiveTeacher(SplitModel(teacher(), ModelLogits(vocabulary)))
    actual = fused(model, "todi", 7, layout, source, kd_rate=0.3)
    assert_same(actual, dense(head, "todi", vocabulary=vocabulary))


# What is computed, and what is not


def loss_of(distiller, some=EXAMPLES):
    batch = batch_of(some)
    return distiller(batch, live_teacher().states(batch)).loss


@pytest.mark.parametrize(
    "head, weight, bias",
    [("untied", True, False), ("lora", False, False), ("lora_tied", False, False), ("bias", True, True)],
)
def test_only_a_head_that_trains_gets_a_gradient(head, weight, bias):
    model = student(head)
    loss = loss_of(distiller_of(split_student(head), "todi", 7))
    (of_hidden, _), (of_weight, _), (of_bias, _) = loss.grad_fn.gradients
    assert of_hidden is not None
    assert ((of_weight is not None), (of_bias is not None)) == (weight, bias)
    loss.backward()
    linear = unwrap_peft(model).get_output_embeddings()
    assert (linear.weight.grad is not None) == weight
    assert loss.grad_fn.gradients is None  # the head's is as large as the head: not kept
    model.zero_grad()


def test_a_loss_scale_reaches_the_gradients():
    distiller = distiller_of(split_student("tied"), "todi", 7, kd_rate=0.3)
    (loss_of(distiller) * 128 / 3).backward()
    *sums, expected = dense("tied", "todi")
    scaled = {name: gradient * 128 / 3 for name, gradient in expected.items()}
    assert_same((*sums, gradients(distiller.student)), (*sums, scaled))


def test_a_second_backward_is_refused():
    distiller = distiller_of(split_student("tied"), "todi", 7)
    loss = loss_of(distiller)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="one backward only"):
        loss.backward()
    distiller.student.zero_grad()


def test_evaluation_is_the_nll_whatever_the_objective(monkeypatch):
    distiller = distiller_of(split_student("tied"), "todi", 7, kd_rate=1.0).eval()
    _, ce, _, _ = dense("tied", "todi")
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("a gradient was computed under no_grad"))
    with torch.no_grad():
        sums = distiller(batch_of(EXAMPLES))
    torch.testing.assert_close(sums.loss, ce)
    torch.testing.assert_close(sums.ce, ce)
    assert sums.kd == 0 and not sums.loss.requires_grad


@pytest.mark.parametrize("some", [[], examples((5, 0), (3, 0))], ids=["no example", "no response"])
@pytest.mark.parametrize("head", ["bias", "own logits"])
@pytest.mark.parametrize("objective, kd_rate", [("cross_entropy", 0.5), ("todi", 0.5), ("todi", 1.0), ("adakd", 1.0)])
def test_no_response_tokens_give_a_zero_with_a_graph(objective, head, kd_rate, some):
    model = split_student("bias") if head == "bias" else SplitModel(student("bias"), ModelLogits(STUDENT_VOCAB))
    distiller = distiller_of(model, objective, 7, kd_rate=kd_rate)
    distiller.criterion.start_step(StepTokens(tokens=(0,)))
    batch = batch_of(some)
    sums = distiller(batch, live_teacher(model.head.vocabulary_size).states(batch))
    assert [value.item() for value in sums] == [0.0] * 3
    sums.loss.backward()
    found = gradients(distiller.student)
    assert found.keys() == {name for name, _ in distiller.student.named_parameters()}
    assert all((gradient == 0).all() for gradient in found.values())


# Memory


class VocabularyBlocks(TorchDispatchMode):
    """Watches tensors [positions, vocabulary]: the most positions of one, and the most bytes alive at once.

    `like_head`: shapes of tensors as large as the head that are not the head itself.
    """

    def __init__(self, model, sizes):
        super().__init__()
        self.sizes = sizes
        self.own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.most_positions, self.most_bytes = 0, 0
        self.like_head = set()
        self.living = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1:
                self.see(tensor)
        return result

    def see(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.own:
            return
        if tensor.shape[0] in self.sizes and tensor.shape[1] == 16:
            self.like_head.add(tuple(tensor.shape))
        if tensor.shape[-1] in self.sizes:
            self.most_positions = max(self.most_positions, tensor.numel() // tensor.shape[-1])
            self.living[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.living = {key: entry for key, entry in self.living.items() if not entry[0].expired()}
        self.most_bytes = max(self.most_bytes, sum(size for _, size in self.living.values()))


def blocks_of(objective, some, lora):
    """What a loss on large vocabularies creates, four positions at a time."""
    model = llama(509, hidden=16, layers=1, tied=False, seed=0)
    model = with_lora(model, target_modules=["q_proj"]) if lora else model
    big_teacher = llama(521, hidden=24, layers=1, tied=False, seed=0)
    distiller = distiller_of(split(model, 503), objective, 4, kd_rate=0.5)
    distiller.criterion.start_step(StepTokens(tokens=(tokens_of(some),)))
    source = LiveTeacher(split(big_teacher, 503))
    batch = batch_of(some)
    watch = VocabularyBlocks(model, sizes={503, 509, 521})
    watch.own |= {parameter.untyped_storage().data_ptr() for parameter in big_teacher.parameters()}
    with watch:
        distiller(batch, source.states(batch)).loss.backward()
    return watch


@pytest.mark.parametrize("objective", ["todi", "abkd", "adakd+todi"])
def test_memory_does_not_grow_with_the_number_of_positions(objective):
    few, many = (blocks_of(objective, examples((4, 16), *[(4, 12)] * more), lora=True) for more in (0, 8))
    assert few.most_positions == many.most_positions == 4
    assert many.most_bytes <= few.most_bytes
    assert many.most_bytes <= 40 * 4 * 503 * 4  # some tens of fp32 blocks


def test_a_frozen_head_has_no_gradient_of_its_size():
    some = examples((4, 16))
    assert blocks_of("todi", some, lora=True).like_head == set()
    assert blocks_of("todi", some, lora=False).like_head == {(503, 16), (509, 16)}


@pytest.mark.parametrize("count, chunk_size", [(0, 3), (3, 3), (10, 3), (10, 1), (10, 100), (3, 0.1)])
def test_chunks_cover_every_position_once(count, chunk_size):
    head = LanguageModelHead(torch.nn.Linear(2, 11), 11)
    positions = ResponsePositions(torch.zeros(count, 2), head, torch.zeros(count), chunk_bytes=int(chunk_size * 44))
    chunks = [range(count)[chunk] for chunk in positions.chunks(count)]
    assert [position for chunk in chunks for position in chunk] == list(range(count))
    assert len(chunks) == max(1, -(-count // max(1, chunk_size)))


# AdaKD


def response_logits(model, some):
    """logits_NV at the response positions of a padded batch, and labels_N."""
    batch = padded(some)
    here_BL = batch["labels"] != IGNORE
    return dense_logits(model, batch)[here_BL][:, :SHARED], batch["labels"][here_BL]


def dense_adakd(head, micro_batches, kd_rate, ratio, base, latf="fixed", tau_base=1.0, **switches):
    """Loss of an optimiser step times its tokens, CE, selected-mean and all-mean KD, and the gradients."""
    ce, selected_kd, all_kd, selected_tokens, tokens = 0.0, 0.0, 0.0, 0, 0
    for some in micro_batches:
        student_NV, labels_N = response_logits(student(head).train(), some)
        teacher_NV = response_logits(teacher(), some)[0].detach()
        mean, selected, _ = naive_adakd(
            student_NV, teacher_NV, ratio, tau_base, base=base, latf=latf, labels_N=labels_N, **switches
        )
        ce = ce + NAIVE["cross_entropy"](student_NV, None, labels_N).sum()
        selected_kd = selected_kd + mean * len(selected)
        all_kd += NAIVE[base](student_NV / tau_base, teacher_NV / tau_base, labels_N).sum().detach()
        selected_tokens, tokens = selected_tokens + len(selected), tokens + len(labels_N)
    selected_mean = selected_kd / selected_tokens
    loss = (1 - kd_rate) * ce + kd_rate * tokens * selected_mean
    loss.backward()
    sums = (loss.detach(), ce.detach(), tokens * selected_mean.detach())
    return *sums, gradients(student(head)), selected_mean.item(), all_kd.item() / tokens


def fused_adakd(head, micro_batches, chunk_size, layout, **arguments):
    distiller = distiller_of(split_student(head), "adakd", chunk_size, **arguments)
    criterion = distiller.criterion
    criterion.prepare(total_steps=100)
    criterion.start_step(StepTokens(tokens=tuple(map(tokens_of, micro_batches))))
    totals = torch.zeros(3, dtype=torch.float64)
    for some in micro_batches:
        batch = batch_of(some, layout)
        sums = distiller(batch, live_teacher().states(batch))
        sums.loss.backward()
        totals += torch.stack(sums).detach()
    return *totals, gradients(distiller.student), criterion.end_step()


def compare_adakd(head="untied", micro_batches=(EXAMPLES,), chunk_size=7, layout="packed", kd_rate=0.4, **switches):
    """Fused against dense; flags without their prefix. The step starts at `ratio`, so adaptive is as fixed."""
    switches = {"ratio": 0.5, "base": "rkl", "latf": "fixed"} | switches
    *expected, selected_mean, all_mean = dense_adakd(head, micro_batches, kd_rate, **switches)
    flags = {f"adakd_{name}": value for name, value in switches.items()}
    *actual, log = fused_adakd(head, micro_batches, chunk_size, layout, kd_rate=kd_rate, **flags)
    assert_same(actual, expected)
    assert log["adakd_selected_loss"] == pytest.approx(selected_mean, rel=1e-5)
    assert log["adakd_all_token_loss"] == pytest.approx(all_mean, rel=1e-5)
    return log


@pytest.mark.parametrize("chunk_size, kd_rate", [(1, 1.0), (7, 0.4), (EVERYTHING, 0.4)])
@pytest.mark.parametrize("head", ["untied", "lora", "bias", "softcap"])
def test_adakd_equals_dense(head, kd_rate, chunk_size):
    compare_adakd(head, kd_rate=kd_rate, chunk_size=chunk_size)


SWITCHES = [{"latf": latf} for latf in ("adaptive", "fixed", "off")]
SWITCHES += [{"idts": idts} for idts in ("inverse", "direct", "off")]
SWITCHES += [{"idts": "off", "latf": "off"}, {"ratio": 0.01}, {"ratio": 1.0}, {"c": 2.0}, {"tau_base": 2.0}]
SWITCHES += [{"difficulty": difficulty} for difficulty in ("hellinger", "fkl", "rkl", "js", "cross_entropy")]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_adakd_ablations_equal_dense(switches):
    compare_adakd("tied", base="todi", **switches)


@pytest.mark.parametrize("base", [name for name in OBJECTIVES if name != "rkl"])
def test_adakd_around_every_objective(base):
    compare_adakd(base=base)


@pytest.mark.parametrize("kd_rate, layout", [(1.0, "packed"), (0.4, "padded")])
def test_adakd_over_micro_batches(kd_rate, layout):
    """The positions are ranked in each micro-step, and the mean is over all that the optimiser step selected."""
    # 7 of 24 and 3 of 13, not 11 of 37.
    compare_adakd(micro_batches=(EXAMPLES, MORE_EXAMPLES), kd_rate=kd_rate, layout=layout, ratio=0.3)


def test_adakd_logs_the_temperatures_of_the_selected():
    log = compare_adakd(micro_batches=(EXAMPLES,), ratio=0.5)
    student_NV, _ = response_logits(student("untied"), EXAMPLES)
    _, selected, temperature_N = naive_adakd(student_NV, response_logits(teacher(), EXAMPLES)[0], ratio=0.5)
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    expected = temperature_N[selected].detach().quantile(levels).tolist()
    assert [log[f"adakd_tau_{name}"] for name in ("q05", "q50", "q95")] == pytest.approx(expected)
    assert log["adakd_ratio"] == 0.5
