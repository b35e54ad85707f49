"""The checks before a run: safetensors headers, adapters, tokenizers, plans of memory, disk and steps, the report."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma3Config,
    Gemma3nTextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    Qwen2Config,
    RwkvConfig,
)

import doctor
from arguments import parse_train_arguments
from data_utils.epoch_plan import EpochPlan
from models import attention
from models.files import MODEL, read_shapes
from models.loading import add_adapter, load_student
from models.probes import batch_layout, split
from preflight import estimates, skeleton
from preflight import probe as doctors_probe
from preflight.checks import Examination, check
from preflight.estimates import (
    activation_bytes,
    check_writable,
    estimate_disk,
    estimate_steps,
    fullest_batch,
    memory_plan,
)
from preflight.machine import Memory, host_memory
from preflight.probe import STUDENT, probe
from preflight.report import Report, size
from preflight.skeleton import ModelFacts, check_adapter_fits, student_facts
from runtime import ranks as runtime_ranks
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.ranks import Ranks
from teacher.states import LiveTeacher, dropped_mass

pytestmark = pytest.mark.usefixtures("one_thread")
RANKS = Ranks(1, 1)
QWEN = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
QWEN |= {"intermediate_size": 16, "max_position_embeddings": 512, "tie_word_embeddings": True}


def config_of(tiny, rows, *flags, student="student"):
    paths = ["--model-path", str(tiny / student), "--data-dir", str(rows)]
    return parse_train_arguments([*paths, "--max-length", "128", "--max-prompt-length", "64", *flags])


def examined(tiny, rows, *flags, teacher=None, student="student", ranks=RANKS):
    words = ["--teacher-model-path", str(teacher), "--kd-objective", "todi"] if teacher else []
    config = config_of(tiny, rows, *flags, *words, student=student)
    return Examination(*check(config), ranks)


def warnings_of(*args, **kwargs) -> str:
    report = examined(*args, **kwargs).report
    assert not report.errors
    return "\n".join(report.warnings)


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- precision and attention -----------------------------------------------------------------------------------------

HALF = {"bf16": "bfloat16", "fp16": "float16"}


@pytest.fixture
def supports(monkeypatch):
    """Decides what the accelerator supports."""

    def these(*precisions):
        for name in HALF:
            monkeypatch.setattr(get_accelerator(), f"is_{name}_supported", lambda name=name: name in precisions)

    return these


def with_precision(tiny, rows, folder, name, *flags):
    file = folder / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}, name: {"enabled": True}}))
    return config_of(tiny, rows, "--deepspeed_config", str(file), *flags)


@pytest.mark.parametrize(
    ("precision", "others", "remedy"),
    [("fp16", ["bf16"], "PRECISION=bf16 or PRECISION=fp32"), ("bf16", [], "PRECISION=fp32"), ("fp16", [], "N=fp32")],
)
def test_a_precision_that_the_machine_lacks_is_refused(tiny, rows, tmp_path, supports, precision, others, remedy):
    config = with_precision(tiny, rows, tmp_path, precision)
    supports(precision, *others)
    check(config)
    supports(*others)
    wanted = rf"^--deepspeed_config \S+: {precision} is not supported by .* cpu device; .*{remedy}\)$"
    with pytest.raises(ValueError, match=wanted):
        check(config)


def test_a_sharded_teacher_needs_a_supported_precision(tiny, rows, tmp_path, supports, teacher):
    flags = ["--teacher-model-path", str(teacher), "--kd-objective", "todi", "--teacher-dtype", "float16"]
    config = with_precision(tiny, rows, tmp_path, "bf16", *flags)
    supports("bf16", "fp16")
    check(config)
    supports("bf16")
    with pytest.raises(ValueError, match=r"^--teacher-dtype float16: ZeRO-3 .*; pass --teacher-dtype float32$"):
        check(config)


@pytest.mark.parametrize(
    ("device", "installed", "precision", "flags", "message"),
    [
        ("cuda", True, "bf16", [], None),
        ("cuda", True, "bf16", ["--teacher-dtype", "float32"], "--teacher-dtype float32 says float32"),
        ("cuda", True, "fp32", [], "deepspeed.json says float32"),
        ("cuda", False, "bf16", [], "its package is not installed"),
        ("cpu", True, "bf16", [], "runs on GPUs only"),
    ],
)
def test_flash_attention_needs_a_gpu_its_package_and_half_precision(
    tiny, rows, tmp_path, teacher, supports, monkeypatch, device, installed, precision, flags, message
):
    supports("bf16")
    monkeypatch.setattr(get_accelerator(), "device_name", lambda: device)
    monkeypatch.setitem(attention.FLASH, "flash_attention_2", lambda: installed)
    monkeypatch.setattr(attention, "is_kernels_available", lambda: False)
    flags = ["--teacher-model-path", str(teacher), "--kd-objective", "todi", *flags]
    config = with_precision(tiny, rows, tmp_path, precision, *flags, "--attn-implementation", "flash_attention_2")
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        check(config)


# --- safetensors headers ---------------------------------------------------------------------------------------------


def test_the_header_has_every_tensor(tiny):
    wanted = {name: tuple(tensor.shape) for name, tensor in load_file(tiny / "student" / MODEL).items()}
    assert read_shapes("--x", str(tiny / "student")) == wanted


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_but_whole_ones_are_weights(tmp_path, data):
    whole = tmp_path / MODEL
    save_file({"a": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.float16)}, whole)
    content = whole.read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    start = data.draw(st.integers(0, 100))
    noise = data.draw(st.binary(min_size=1, max_size=8))
    (tmp_path / "broken").mkdir(exist_ok=True)
    for broken in (content[:cut], content + noise, noise + content[len(noise) :], content[:start] + noise):
        (tmp_path / "broken" / MODEL).write_bytes(broken)
        try:
            read_shapes("--x", str(tmp_path / "broken"))
        except ValueError as error:
            assert str(error).startswith("--x ")
        else:  # the first bytes happened to be noise's
            assert len(broken) == len(content)


# --- adapters --------------------------------------------------------------------------------------------------------


def save_adapter(tiny, folder, **config):
    model = AutoModelForCausalLM.from_pretrained(tiny / "student")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **config)).save_pretrained(folder)


@pytest.mark.parametrize(
    "config", [{}, {"modules_to_save": ["lm_head"]}, {"layers_to_transform": [1]}, {"use_dora": True}], ids=str
)
def test_an_adapter_of_the_base_fits(tiny, tmp_path, config):
    save_adapter(tiny, tmp_path / "adapter", **config)
    flags = ["--peft", "lora", "--peft-path", str(tmp_path / "adapter")]
    report = Report()
    facts = student_facts(config_of(tiny, tmp_path, *flags).model, report)
    reference = AutoModelForCausalLM.from_pretrained(tiny / "student")
    reference = get_peft_model(reference, LoraConfig(r=2, target_modules=["q_proj"], **config))
    assert facts.trainable == sum(p.numel() for p in reference.parameters() if p.requires_grad)
    assert not report.warnings


def test_a_base_of_another_name_is_warned_of(tiny, tmp_path):
    save_adapter(tiny, tmp_path / "adapter")
    edit_json(tmp_path / "adapter/adapter_config.json", base_model_name_or_path="org/student-chat")
    base, report = AutoModelForCausalLM.from_pretrained(tiny / "student"), Report()
    check_adapter_fits("--x", str(tmp_path / "adapter"), base, str(tiny / "student"), report)
    assert "names its base org/student-chat" in report.warnings[0]


# --- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tiny, tmp_path):
    return shutil.copytree(tiny / "teacher", tmp_path / "models/teacher")


def test_a_good_pair_has_no_warnings(tiny, rows, teacher):
    assert warnings_of(tiny, rows, teacher=teacher) == ""


def test_another_eos_is_warned_of(tiny, rows, teacher):
    edit_json(teacher / "tokenizer_config.json", eos_token="<pad>")
    assert "end with '<eos>' (1) for the student and with '<pad>' (0) for the teacher" in warnings_of(
        tiny, rows, teacher=teacher
    )


def test_another_bos_is_warned_of(tiny, rows, teacher):
    content = json.loads((teacher / "tokenizer.json").read_text(encoding="utf-8"))
    special = {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}}
    single = [{"SpecialToken": {"id": "<eos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }
    (teacher / "tokenizer.json").write_text(json.dumps(content))
    edit_json(teacher / "tokenizer_config.json", bos_token="<eos>")
    assert "only the teacher's tokenizer starts a text with BOS" in warnings_of(tiny, rows, teacher=teacher)


@pytest.mark.parametrize(
    ("ends", "warned"), [([0, 1], False), (1, False), ([0, 2], True), (0, True)], ids=["list", "one", "others", "other"]
)
def test_a_generation_config_that_stops_elsewhere_is_warned_of(tiny, rows, tmp_path, ends, warned):
    student = shutil.copytree(tiny / "student", tmp_path / "student")
    edit_json(student / "generation_config.json", eos_token_id=ends)
    assert ("generation_config.json stops at" in warnings_of(tmp_path, rows)) == warned


def test_a_chat_teacher_is_warned_of_unless_it_was_trained_here(tiny, rows, teacher):
    (teacher / "chat_template.jinja").write_text("{{ messages }}")
    assert "is a chat model, and the student is a base model" in warnings_of(tiny, rows, teacher=teacher)
    (teacher.parent / "args.json").write_text("{}")
    assert warnings_of(tiny, rows, teacher=teacher) == ""


def test_rows_with_prompts_of_their_own_may_be_a_chat(tiny, tmp_path, teacher):
    (teacher / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "train.jsonl").write_text('{"prompt": "<user> hi <bot>", "output": "hello"}\n')
    assert warnings_of(tiny, tmp_path, teacher=teacher) == ""


# --- vocabulary of a padded family -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tiny, tmp_path_factory):
    """Models with the head sizes of Qwen2.5 (151936 and 152064), and the tiny tokenizer; one has an added token more,
    and embeddings that were resized for it."""
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = AutoTokenizer.from_pretrained(tiny / "student")
    ids = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    for name, rows in (("small", 151936), ("large", 152064)):
        torch.manual_seed(rows)
        AutoModelForCausalLM.from_config(LlamaConfig(**QWEN, **ids, vocab_size=rows)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    torch.manual_seed(0)
    resized = AutoModelForCausalLM.from_config(LlamaConfig(**QWEN, **ids, vocab_size=len(tokenizer)))
    tokenizer.add_tokens(["<extra>"], special_tokens=True)
    resized.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    resized.save_pretrained(folder / "resized")
    tokenizer.save_pretrained(folder / "resized")
    return folder


@pytest.mark.parametrize(
    ("student", "teacher", "shared", "dropped"),
    [
        ("small", "large", 151936, 128),
        ("large", "small", 151936, 0),
        ("small", "small", 151936, 0),
        ("resized", "small", None, None),
        ("small", "resized", None, 1),
    ],
)
def test_heads_of_different_sizes_share_their_first_ids(tiny, rows, qwen, student, teacher, shared, dropped):
    vocabulary = len(AutoTokenizer.from_pretrained(tiny / "student"))
    shared = shared or vocabulary
    dropped = 151936 - vocabulary if dropped is None else dropped
    report = examined(qwen, rows, teacher=qwen / teacher, student=student).report
    assert not report.errors
    facts = dict(report.facts)
    assert facts["vocabulary"].startswith(f"{shared:,} ids shared")
    assert (f"the teacher's last {dropped:,} are dropped" in facts["vocabulary"]) == (dropped > 0)
    model = split(AutoModelForCausalLM.from_pretrained(qwen / teacher), shared)
    assert model.head.whole_size - model.head.vocabulary_size == dropped


class Scaled(torch.nn.Module):
    """A head that is no plain layer, so that the model's own logits are used."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.weight = linear, linear.weight

    def forward(self, hidden):
        return 2 * self.linear(hidden)


@pytest.mark.parametrize("kind", ["logits a chunk at a time", "whole logits"])
@pytest.mark.parametrize("shared", [390, 300, 1])
def test_dropped_mass_is_the_probability_of_the_ids_beyond_the_shared(tiny, kind, shared):
    from data_utils.batches import Example, collate

    model = AutoModelForCausalLM.from_pretrained(tiny / "teacher")
    if kind == "whole logits":
        model.lm_head = Scaled(model.lm_head)
    cut = split(model, shared)
    assert cut.head.kind == kind
    ids = torch.randint(400, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    batch = collate([Example(ids[:5], ids[5:12]), Example(ids[12:15], ids[15:])], 0, 64, "packed")
    with torch.no_grad():
        wanted = sum(
            model(torch.tensor([row])).logits[0, prompt - 1 : -1].softmax(-1)[:, shared:].sum().item()
            for row, prompt in ((ids[:12], 5), (ids[12:], 3))
        )
    for chunk_bytes in (1, 5000, 10**9):
        assert dropped_mass(LiveTeacher(cut), batch, chunk_bytes).item() == pytest.approx(wanted, rel=1e-4)
    assert cut.head.vocabulary_size == shared


# --- steps and data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "batch", "accumulation", "world"), [(37, 4, 2, 2), (8, 8, 1, 1), (5, 4, 1, 2)])
def test_steps_are_those_of_the_plan(tiny, rows, batch, accumulation, world):
    flags = ["--batch-size", str(batch), "--gradient-accumulation-steps", str(accumulation), "--num-epochs", "3"]
    config, report = config_of(tiny, tiny, *flags), Report()
    data = SimpleNamespace(lengths=np.full(rows, 9), responses=np.full(rows, 3))
    estimate_steps(config, data, Ranks(world, world), report)
    plan = EpochPlan(data.lengths, data.responses, batch, accumulation, world, 0)
    assert report.facts[0][1].startswith(f"{len(plan)} an epoch, {3 * len(plan)} in all (3 of 3 epochs)")
    assert bool(report.warnings) == (rows < batch * accumulation * world)


def test_a_warm_up_without_an_end_is_warned_of(tiny):
    report = Report()
    data = SimpleNamespace(lengths=np.full(100, 9), responses=np.full(100, 3))
    estimate_steps(config_of(tiny, tiny, "--warmup-iters", "30", "--total-iters", "20"), data, RANKS, report)
    assert "so --lr 0.0005 is never reached" in report.warnings[0]


def test_many_cut_rows_are_warned_of(tiny, tmp_path, rows):
    long = {"instruction": "Say red.", "input": "stone " * 300, "output": "river " * 300}
    (tmp_path / "train.jsonl").write_text(json.dumps(long) + "\n")
    config = config_of(tiny, tmp_path, "--processed-data-dir", str(tmp_path / "cache"))
    report = doctor.diagnose(config)
    assert "train: 100% of the prompts are cut; raise --max-prompt-length" in report.warnings
    assert any("so their ends and EOS are never learnt; raise --max-length" in warning for warning in report.warnings)
    assert "1 prompts cut to --max-prompt-length 64, 1 responses to --max-length 128" in dict(report.facts)["train"]


# --- memory ----------------------------------------------------------------------------------------------------------


def facts(config, trainable=1.0) -> ModelFacts:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    count = model.num_parameters()
    return ModelFacts("model", config, count, int(count * trainable), *model.lm_head.weight.shape, trainable == 1)


BILLION = ModelFacts("model", LlamaConfig(), 10**9, 10**9, 32000, 4096, True)


@pytest.mark.parametrize(
    ("settings", "world", "device", "host"),
    [
        ({}, 4, {"weights": 4, "gradients": 4, "optimiser": 8}, {}),
        ({"stage": 1, "bf16": True}, 4, {"weights": 2, "gradients": 2, "optimiser": 3, "ZeRO buckets": 0.2}, {}),
        ({"stage": 2, "bf16": True}, 4, {"weights": 2, "gradients": 0.5, "optimiser": 3, "ZeRO buckets": 0.2}, {}),
        ({"stage": 3, "bf16": True}, 4, {"weights": 0.5, "gradients": 0.5, "optimiser": 3, "ZeRO buckets": 0.2}, {}),
        (
            {"stage": 2, "bf16": True, "offload_optimizer": {"device": "cpu"}},
            *(1, {"weights": 2, "gradients": 2}, {"optimiser": 12}),
        ),
    ],
)
def test_memory_is_counted_by_stage_dtype_and_ranks(tiny, settings, world, device, host):
    half = settings.pop("bf16", False)
    deepspeed = {"zero_optimization": settings | {"reduce_bucket_size": 50_000_000}, "bf16": {"enabled": half}}
    plan = memory_plan(config_of(tiny, tiny), DeepSpeedSettings.of(deepspeed), BILLION, None, 1000, Ranks(world, world))
    assert plan.device == {name: n * 10**9 for name, n in device.items()}
    assert {name: n for name, n in plan.host.items() if name != "loading"} == {n: 10**9 * b for n, b in host.items()}


@pytest.mark.parametrize(
    ("flags", "stage", "taken"),
    [
        ([], 0, 2),
        ([], 3, 0.5),
        (["--teacher-dtype", "float32"], 0, 4),
        (["--teacher-cache", "cache"], 0, 2 * 32000 * 4096 / 10**9),
    ],
)
def test_the_teacher_is_whole_sharded_or_only_its_head(tiny, flags, stage, taken):
    config = config_of(tiny, tiny, "--teacher-model-path", "t", "--kd-objective", "todi", *flags)
    deepspeed = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}}
    plan = memory_plan(config, DeepSpeedSettings.of(deepspeed), BILLION, BILLION, 1000, Ranks(4, 4))
    assert plan.device["teacher"] == int(taken * 10**9)


def test_the_cache_of_the_teacher_is_planned(tiny, rows, tmp_path, teacher):
    found = examined(tiny, rows, "--teacher-cache", str(tmp_path / "cache"), teacher=teacher)
    train, dev = doctor.load_data(found.config)
    found.plan(train, dev)
    tokens = int(train.responses.sum() + dev.responses.sum())
    assert dict(found.report.facts)["cache"].startswith(f"at most {size(4 * 48 * tokens)} of ")
    assert not (tmp_path / "cache").exists()


def test_steps_of_a_token_budget_are_those_of_the_plan(tiny):
    data, report = SimpleNamespace(lengths=np.arange(10, 110), responses=np.full(100, 3)), Report()
    estimate_steps(config_of(tiny, tiny, "--tokens-per-micro-batch", "256"), data, Ranks(2, 2), report)
    plan = EpochPlan(data.lengths, data.responses, 8, 1, 2, 0, tokens_per_micro_batch=256)
    assert report.facts[0][1].startswith(f"{len(plan)} an epoch")
    assert "--tokens-per-micro-batch 256 x" in report.facts[0][1]


SIZES = {"vocab_size": 500, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64}
MODELS = {
    "llama": LlamaConfig(**SIZES, intermediate_size=172, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SIZES, intermediate_size=172, num_key_value_heads=4),
    "gpt2": GPT2Config(vocab_size=500, n_layer=3, n_head=4, n_embd=64, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_activations_are_about_what_autograd_keeps(name, checkpointing, dtype):
    config = MODELS[name]
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(500, (4, 128))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    found = sum(kept.values())
    del output
    estimate = activation_bytes(facts(config), tokens.numel(), dtype.itemsize, checkpointing)
    if checkpointing:  # the backward makes one layer again at a time, which the forward does not show
        estimate -= activation_bytes(facts(config), tokens.numel(), dtype.itemsize, False) / 3
    assert 0.5 < found / estimate < 1.5


TINY = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2}
GEMMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
OTHERS = {  # and whether the activations are estimated
    "mamba": (MambaConfig(**TINY, state_size=4), False),
    "rwkv": (RwkvConfig(**TINY, attention_hidden_size=32), False),
    "gemma3n": (
        Gemma3nTextConfig(
            **(GEMMA | TINY | {"intermediate_size": [64, 96], "vocab_size_per_layer_input": 400, "laurel_rank": 4}),
            **{"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "altup_num_inputs": 2},
            **{"activation_sparsity_pattern": [0.0, 0.0], "layer_types": ["sliding_attention", "full_attention"]},
        ),
        False,
    ),
    "gemma3 with vision": (
        Gemma3Config(
            text_config=GEMMA | {"vocab_size": 400, "intermediate_size": 64},
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
        ),
        True,
    ),
    "opt": (OPTConfig(**TINY, ffn_dim=64, num_attention_heads=2, word_embed_proj_dim=16), True),
    "bloom": (BloomConfig(**TINY, n_head=2), True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_estimate_that_an_architecture_has_no_numbers_for_is_left_out(tiny, rows, tmp_path, name):
    config, estimated = OTHERS[name]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny / "student").save_pretrained(tmp_path / "model")
    found = examined(tmp_path, rows, student="model")
    found.plan(*doctor.load_data(found.config))
    assert not found.report.errors
    facts = dict(reversed(found.report.facts))
    assert ("activations" in facts["memory"]) == estimated
    assert (facts.get("") == "activations are not estimated for this architecture") != estimated


def test_the_fullest_batch_is_between_the_mean_and_the_longest():
    lengths = np.array([10] * 90 + [100] * 10)
    assert 8 * lengths.mean() < fullest_batch(lengths, 8, 0) <= 800
    assert fullest_batch(lengths, 1000, 0) == lengths.sum()


def test_what_cannot_fit_is_refused_and_what_may_not_is_warned_of(tiny, rows, monkeypatch):
    def plan(total, free):
        monkeypatch.setattr(estimates, "host_memory", lambda: Memory(2 * total, 2 * free))
        found = examined(tiny, rows, ranks=Ranks(2, 2))
        found.plan(*doctor.load_data(found.config))
        return found.report

    needed = 16 * examined(tiny, rows).student.parameters  # fp32: weights, gradients, two moments
    assert any(error.startswith("memory: weights, gradients, optimiser") for error in plan(needed - 1, 0).errors)
    for free in (0, needed + 1000):
        report = plan(needed, free)
        assert not report.errors and any(warning.startswith("memory may run out: about") for warning in report.warnings)
    assert not any("memory" in line for line in plan(10**12, 10**12).warnings)


@pytest.mark.parametrize("total", [False, True])
def test_a_gpu_that_others_use_is_warned_of_and_one_too_small_refused(tiny, rows, monkeypatch, total):
    found = examined(tiny, rows)
    data = doctor.load_data(found.config)
    accelerator = get_accelerator()
    monkeypatch.setattr(accelerator, "device_name", lambda: "cuda")
    monkeypatch.setattr(accelerator, "total_memory", lambda: 1000 if total else 10**12)
    monkeypatch.setattr(accelerator, "available_memory", lambda: 1000)
    found.plan(*data)
    assert [error.partition(":")[0] for error in found.report.errors] == ["memory"] * total
    assert total or any(warning.startswith("memory may run out: about") for warning in found.report.warnings)


def files(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(str(text))


def version_2(root, path, group):
    """A group of 5000 bytes within one of 4000 whose page cache is 1500."""
    files(root / "proc/self", cgroup=f"0::{path}\n")
    mount = root / "sys/fs/cgroup"
    files(mount / group, memory__max="5000\n", memory__current="1000\n")
    stat = "anon 1000\ninactive_file 700\nactive_file 500\nslab_reclaimable 300\n"
    (mount / "memory.stat").write_text(stat)
    (mount / "memory.max").write_text("4000\n")
    (mount / "memory.current").write_text("3000\n")


def version_1(root, path, group):
    """The same under version 1, whose other controllers count nothing here."""
    files(root / "proc/self", cgroup=f"5:cpu,cpuacct:/x\n4:memory:{path}\n0::/\n")
    mount = root / "sys/fs/cgroup/memory"
    stat = "cache 1700\ninactive_file 1\ntotal_inactive_file 800\ntotal_active_file 700\n"
    unlimited = {"memory__limit_in_bytes": 9223372036854771712, "memory__usage_in_bytes": 3000}
    files(mount / group, **unlimited)
    (mount / "memory.stat").write_text(stat)
    (mount / "memory.limit_in_bytes").write_text("4000")
    (mount / "memory.usage_in_bytes").write_text("3000")


@pytest.mark.parametrize("version", [version_1, version_2])
@pytest.mark.parametrize(
    ("path", "group"), [("/job/task", "job/task"), ("/docker/4e1f", "x"), ("/../other", "x")], ids=["own", "host", "up"]
)
def test_the_page_cache_of_a_container_is_free(tmp_path, version, path, group):
    version(tmp_path, path, group)
    assert host_memory(tmp_path) == Memory(total=4000, free=2500)


def test_without_a_limit_the_memory_is_the_machines(tmp_path):
    files(tmp_path / "proc/self", cgroup="0::/\n")
    files(tmp_path / "sys/fs/cgroup", memory__max="max\n", memory__current="3000\n")
    assert host_memory(tmp_path).total == host_memory(tmp_path / "nothing").total == psutil.virtual_memory().total


@pytest.mark.parametrize(("processes", "devices"), [(1, 0), (2, 1), (8, 4)])
def test_more_processes_than_gpus_are_refused_on_every_rank(monkeypatch, processes, devices):
    accelerator = SimpleNamespace(device_name=lambda *_: "cuda", device_count=lambda: devices)
    monkeypatch.setattr(runtime_ranks, "get_accelerator", lambda: accelerator)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    for rank in range(processes):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        with pytest.raises(ValueError, match=f"^{processes} processes on a machine with {devices} visible"):
            runtime_ranks.init_distributed()


# --- disk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "checkpoints"),
    [
        (["--num-epochs", "10"], 2),
        (["--num-epochs", "1"], 1),
        (["--num-epochs", "10", "--save-interval", "5", "--keep-best-n-checkpoints", "9"], 2),
        (["--num-epochs", "10", "--keep-best-n-checkpoints", "-1"], 10),
    ],
)
def test_the_disk_holds_the_checkpoints_and_two_resume_states(tiny, rows, tmp_path, flags, checkpoints, monkeypatch):
    config, report = config_of(tiny, rows, "--save-dir", str(tmp_path), *flags), Report()
    student = student_facts(config.model, report)
    real = (tiny / "student" / MODEL).stat().st_size
    needed = checkpoints * 4 * student.parameters + 2 * 12 * student.parameters
    assert 4 * student.parameters == pytest.approx(real, rel=0.05)
    for free, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(estimates.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        report = Report()
        with report.check():
            estimate_disk(config, check(config)[2], student, report)
        assert bool(report.errors) == refused
    assert f"{checkpoints} checkpoints of {size(4 * student.parameters)}" in report.errors[0]


def test_the_disk_of_a_lora_run_holds_no_frozen_weights(tiny, rows, tmp_path):
    words = ["--peft", "lora", "--num-epochs", "1", "--save-dir", str(tmp_path)]
    config, report = config_of(tiny, rows, *words), Report()
    llama_2_7b = LlamaConfig(hidden_size=4096, num_hidden_layers=32, intermediate_size=11008, vocab_size=32000)
    with torch.device("meta"):
        model = add_adapter(AutoModelForCausalLM.from_config(llama_2_7b), config.model)
    student = skeleton._facts("Llama-2-7B", model)
    estimate_disk(config, DeepSpeedSettings.of({"bf16": {"enabled": True}}), student, report)
    adapter = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    state = size((2 + 12) * adapter)  # bf16 weights; fp32 weights and two moments
    assert f"of {size(2 * adapter)}, resume state of {state} and its next version" in report.facts[0][1]


def test_checking_a_folder_leaves_nothing_behind(tmp_path):
    assert check_writable(tmp_path / "a/b/c") == tmp_path
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="--save-dir /proc/run: cannot be written"):
        check_writable(estimates.Path("/proc/run"))


# --- probes and report -----------------------------------------------------------------------------------------------

PROBED = {"llama": MODELS["llama"], "bloom": BloomConfig(vocab_size=500, hidden_size=64, n_layer=2, n_head=4)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", PROBED)
def test_the_doctor_gives_the_answer_of_training(tiny, rows, tmp_path, name, precision):
    """Bloom sees less of its neighbours than bf16 rounds."""
    settings = DeepSpeedSettings.of({precision: {"enabled": True}})
    AutoModelForCausalLM.from_config(PROBED[name]).save_pretrained(tmp_path / name)
    config = parse_train_arguments(["--model-path", str(tmp_path / name), "--data-dir", str(rows)])
    report = Report()
    probe(config, settings, {STUDENT: student_facts(config.model, report)}, report)
    layout = batch_layout([load_student(config.model, settings.dtype)])
    assert report.facts[-1] == ("", f"batches {layout}")
    assert (layout == "padded") == (name == "bloom")
    answer = "cannot be packed" if name == "bloom" else "can be packed"
    assert report.facts[0][1] == f"--model-path: {answer}, logits a chunk at a time"
    assert ("does not see where a packed example ends" in " ".join(report.warnings)) == (name == "bloom")


@pytest.mark.parametrize(
    ("path", "free", "reason"),
    [(None, 100, "the weights take .* and 0.1 kB are free"), ("owner/name", 10**12, "owner/name is a hub id")],
)
def test_the_doctor_says_what_it_did_not_try(tiny, rows, monkeypatch, path, free, reason):
    config, report = config_of(tiny, rows), Report()
    monkeypatch.setattr(doctors_probe, "host_memory", lambda: Memory(free, free))
    model = student_facts(config.model, report)
    probe(config, DeepSpeedSettings.of({}), {STUDENT: replace(model, path=path or model.path)}, report)
    assert len(report.facts) == 1 and re.search(f"not tried: .*{reason}", report.facts[0][1])


def test_the_report_is_readable():
    report = Report()
    report.fact("student", "word " * 60)
    report.warn("beware")
    with report.check():
        raise ValueError("first\nsecond")
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 120 and lines[0] == "preflight"
    assert [line.split()[0] for line in lines[-3:]] == ["warning:", "error:", "error:"]
    with pytest.raises(ValueError, match=r"^first\nsecond$"):
        report.stop_on_errors()


@pytest.mark.parametrize(
    ("count", "text"), [(1500, "1.5 kB"), (255e6, "255 MB"), (1.56e9, "1.56 GB"), (5e12, "5 TB"), (6e15, "6,000 TB")]
)
def test_sizes(count, text):
    assert size(count) == text


def test_the_doctor_reports_and_writes_nothing(tiny, rows, tmp_path, teacher, capsys):
    argv = ["--model-path", str(tiny / "student"), "--teacher-model-path", str(teacher), "--data-dir", str(rows)]
    argv += ["--kd-objective", "todi", "--save-dir", str(tmp_path / "run"), "--max-length", "128"]
    argv += ["--max-prompt-length", "64", "--processed-data-dir", str(tmp_path / "cache")]
    with pytest.raises(SystemExit) as end:
        doctor.main(argv)
    assert end.value.code == 0
    report = capsys.readouterr().out
    for name in "student teacher tokenizer vocabulary disk train dev steps memory probes".split():
        assert re.search(f"^  {name} ", report, re.MULTILINE), name
    assert not (tmp_path / "run").exists()


def test_the_doctor_names_all_that_is_wrong(tiny, rows, tmp_path, teacher, capsys):
    save_adapter(tiny, tmp_path / "adapter")
    argv = ["--model-path", str(tiny / "student"), "--teacher-model-path", str(teacher), "--data-dir", str(rows)]
    argv += ["--kd-objective", "todi", "--teacher-peft-path", str(tmp_path / "adapter")]
    argv += ["--keep-best-n-checkpoints", "-1", "--num-epochs", "999999999999", "--eval-gen", "--max-length", "900"]
    with pytest.raises(SystemExit) as end:
        doctor.main(argv)
    assert end.value.code == 2
    report = capsys.readouterr().out
    for part in ("does not fit", "the disk is too small", "512 positions; lower it"):
        assert part in " ".join(report.split())
    with pytest.raises(SystemExit) as end:
        doctor.main([*argv, "--model-path", "nowhere/at/all", "--data-dir", "nowhere"])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("error: ")] == ["--model-path", "--data-dir"]


def test_a_skeleton_counts_as_the_model_does(tiny, rows):
    for name in ("student", "student_tied"):
        model = AutoModelForCausalLM.from_pretrained(tiny / name)
        found = student_facts(config_of(tiny, rows, student=name).model, Report())
        assert (found.parameters, found.head_rows) == (model.num_parameters(), model.lm_head.weight.shape[0])
        assert found.config.to_dict() == AutoConfig.from_pretrained(tiny / name).to_dict()
