"""Preflight and the doctor: safetensors headers, adapters, tokenizers, steps, memory, disk, probes, the report."""

import contextlib
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
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
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma3Config,
    LlamaConfig,
    MambaConfig,
)

import doctor
from arguments import parse_train_arguments
from data_utils.batches import Example, collate
from data_utils.epoch_plan import EpochPlan
from data_utils.prompts.chat import SHIPPED
from models import attention
from models.files import MODEL, read_shapes
from models.loading import load_student
from models.probes import batch_layout, split
from preflight import estimates
from preflight.checks import check
from preflight.estimates import (
    bytes_per_rank,
    check_positions,
    check_writable,
    estimate_disk,
    estimate_steps,
    fullest_batch,
)
from preflight.machine import host_memory
from preflight.report import Report, size
from preflight.skeleton import ModelFacts, check_adapter_fits, student_facts
from runtime import ranks as runtime_ranks
from runtime.deepspeed_settings import DeepSpeedSettings, slow_on_this_cpu
from runtime.ranks import Ranks
from teacher.states import LiveTeacher, dropped_mass
from tiny import llama
from training.resume import find_resume
from training.state import FORMAT, Position

pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(tiny, rows, *flags, student="student"):
    paths = ["--model-path", str(tiny / student), "--data-dir", str(rows)]
    return parse_train_arguments([*paths, "--max-length", "128", "--max-prompt-length", "64", *flags])


def todi(teacher):
    return ["--teacher-model-path", str(teacher), "--kd-objective", "todi"]


def described(tiny, rows, *flags, teacher=None, student="student"):
    preflight = check(config_of(tiny, rows, *flags, *(todi(teacher) if teacher else []), student=student))
    preflight.describe_models()
    return preflight


def warnings_of(*args, **kwargs) -> str:
    report = described(*args, **kwargs).report
    assert not report.errors
    return "\n".join(report.warnings)


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- precision and attention -----------------------------------------------------------------------------------------


@pytest.fixture
def supports(monkeypatch):
    """Decides what the accelerator supports."""

    def these(*precisions):
        for name in ("bf16", "fp16"):
            monkeypatch.setattr(get_accelerator(), f"is_{name}_supported", lambda name=name: name in precisions)

    return these


def zero_3(tiny, rows, folder, precision, *flags):
    file = folder / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}, precision: {"enabled": True}}))
    return config_of(tiny, rows, "--deepspeed_config", str(file), *flags)


@pytest.mark.parametrize(
    ("precision", "others", "remedy"), [("fp16", ["bf16"], "PRECISION=bf16 or PRECISION=fp32"), ("bf16", [], "N=fp32")]
)
def test_a_precision_that_the_machine_lacks_is_refused(tiny, rows, tmp_path, supports, precision, others, remedy):
    config = zero_3(tiny, rows, tmp_path, precision)
    supports(precision, *others)
    check(config)
    supports(*others)
    wanted = rf"^--deepspeed_config \S+: {precision} is not supported by .* cpu device; .*{remedy}\)$"
    with pytest.raises(ValueError, match=wanted):
        check(config)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("has_instructions", [True, False])
def test_half_precision_without_its_instructions_is_warned_of(
    tiny, rows, tmp_path, supports, monkeypatch, precision, has_instructions
):
    supports(precision)
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", lambda: has_instructions)
    preflight = check(zero_3(tiny, rows, tmp_path, precision))
    preflight.describe_models()
    assert (f"this CPU has no {precision} instructions" in "".join(preflight.report.warnings)) != has_instructions


def test_a_build_without_onednn_is_slow_on_a_cpu_and_not_asked_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", None)  # such a build has no such operators
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert slow_on_this_cpu(torch.bfloat16) and not slow_on_this_cpu(torch.float32)
    monkeypatch.setattr(get_accelerator(), "device_name", lambda: "cuda")
    assert not slow_on_this_cpu(torch.bfloat16)


def test_a_sharded_teacher_needs_a_supported_precision(tiny, rows, tmp_path, supports):
    config = zero_3(tiny, rows, tmp_path, "bf16", *todi(tiny / "teacher"), "--teacher-dtype", "float16")
    supports("bf16", "fp16")
    check(config)
    supports("bf16")
    with pytest.raises(ValueError, match=r"^--teacher-dtype float16: ZeRO-3 .*; pass --teacher-dtype float32$"):
        check(config)


@pytest.mark.parametrize(
    ("device", "installed", "precision", "teacher_dtype", "message"),
    [
        ("cuda", True, "bf16", "bfloat16", None),
        ("cuda", True, "bf16", "float32", "--teacher-dtype float32 says float32"),
        ("cuda", True, "fp32", "bfloat16", "deepspeed.json says float32"),
        ("cuda", False, "bf16", "bfloat16", "its package is not installed"),
        ("cpu", True, "bf16", "bfloat16", "runs on GPUs only"),
    ],
)
def test_flash_attention_needs_a_gpu_its_package_and_half_precision(
    tiny, rows, tmp_path, supports, monkeypatch, device, installed, precision, teacher_dtype, message
):
    supports("bf16")
    monkeypatch.setattr(get_accelerator(), "device_name", lambda: device)
    monkeypatch.setitem(attention.FLASH, "flash_attention_2", lambda: installed)
    monkeypatch.setattr(attention, "is_kernels_available", lambda: False)
    flags = [*todi(tiny / "teacher"), "--teacher-dtype", teacher_dtype, "--attn-implementation", "flash_attention_2"]
    config = zero_3(tiny, rows, tmp_path, precision, *flags)
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
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "config", [{}, {"modules_to_save": ["lm_head"]}, {"layers_to_transform": [1]}, {"use_dora": True}], ids=str
)
def test_an_adapter_of_the_base_fits(tiny, tmp_path, config):
    saved, report = save_adapter(tiny, tmp_path / "adapter", **config), Report()
    flags = ["--peft", "lora", "--peft-path", str(tmp_path / "adapter")]
    facts = student_facts(config_of(tiny, tmp_path, *flags).model, report)
    assert facts.trainable == sum(p.numel() for p in saved.parameters() if p.requires_grad)
    assert not report.warnings


def test_a_base_of_another_name_is_warned_of(tiny, tmp_path):
    save_adapter(tiny, tmp_path / "adapter")
    edit_json(tmp_path / "adapter/adapter_config.json", base_model_name_or_path="org/student-chat")
    base, report = AutoModelForCausalLM.from_pretrained(tiny / "student"), Report()
    check_adapter_fits("--x", str(tmp_path / "adapter"), base, str(tiny / "student"), report)
    assert ": made for org/student-chat, used with " in report.warnings[0]


# --- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tiny, tmp_path):
    return shutil.copytree(tiny / "teacher", tmp_path / "models/teacher")


def test_another_eos_is_warned_of(tiny, rows, teacher):
    assert warnings_of(tiny, rows, teacher=teacher) == ""
    edit_json(teacher / "tokenizer_config.json", eos_token="<pad>")
    wanted = "end with '<eos>' (1) for the student and with '<pad>' (0) for the teacher"
    assert wanted in warnings_of(tiny, rows, teacher=teacher)


def test_another_chat_template_is_warned_of(tiny, rows, teacher, tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    shipped = Path(SHIPPED).read_text()
    given = ["--prompt-template", SHIPPED]
    assert f"{teacher} has no chat template" in (said := warnings_of(tiny, rows, *given, teacher=teacher))
    assert said.endswith(f"first (--criterion cross_entropy), with --prompt-template {SHIPPED}")
    student = shutil.copytree(tiny / "student", tmp_path / "models/student")
    (student / "chat_template.jinja").write_text(shipped)
    said = warnings_of(student.parent, rows, "--prompt-template", "chat", teacher=teacher)
    assert said.endswith(f"with --prompt-template {SHIPPED} here and there")
    (teacher / "chat_template.jinja").write_text(shipped.replace("### ", "## "))
    said = warnings_of(tiny, rows, *given, teacher=teacher)
    assert "has another chat template" in said and said.endswith(f"as a file: {teacher}/chat_template.jinja")
    (teacher / "chat_template.jinja").write_text(shipped)
    assert "chat template" not in warnings_of(tiny, rows, *given, teacher=teacher)


def test_another_bos_is_warned_of(tiny, rows, teacher):
    tokenizer = AutoTokenizer.from_pretrained(teacher, bos_token="<eos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    tokenizer.save_pretrained(teacher)
    assert "only the teacher's tokenizer starts a text with BOS" in warnings_of(tiny, rows, teacher=teacher)


@pytest.mark.parametrize(("ends", "warned"), [([0, 1], False), (1, False), ([0, 2], True), (0, True)], ids=str)
def test_a_generation_config_that_stops_elsewhere_is_warned_of(tiny, rows, tmp_path, ends, warned):
    student = shutil.copytree(tiny / "student", tmp_path / "student")
    edit_json(student / "generation_config.json", eos_token_id=ends)
    assert ("generation_config.json stops at" in warnings_of(tmp_path, rows)) == warned


def test_a_chat_teacher_is_warned_of_unless_it_knows_the_rows(tiny, rows, tmp_path, teacher):
    (teacher / "chat_template.jinja").write_text("{{ messages }}")
    assert "is a chat model, and the student is a base model" in warnings_of(tiny, rows, teacher=teacher)
    (tmp_path / "train.jsonl").write_text('{"prompt": "<user> hi <bot>", "output": "hello"}\n')
    assert warnings_of(tiny, tmp_path, teacher=teacher) == ""  # rows in its own template
    (teacher.parent / "args.json").write_text("{}")
    assert warnings_of(tiny, rows, teacher=teacher) == ""  # it was fine-tuned by a run


# --- vocabulary of a padded family -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("student", "teacher", "dropped"), [(500, 564, 64), (564, 500, 0)])
def test_heads_of_different_sizes_share_their_first_ids(tiny, rows, tmp_path, student, teacher, dropped):
    for name, ids in (("student", student), ("teacher", teacher)):
        llama(ids, 8, 1, tied=True, seed=0).save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(tiny / name).save_pretrained(tmp_path / name)
    report = described(tmp_path, rows, teacher=tmp_path / "teacher").report
    assert not report.errors
    fact = dict(report.facts)["vocabulary"]
    assert fact.startswith("500 ids shared")
    assert (f"the teacher's last {dropped:,} ids are dropped" in fact) == (dropped > 0)


@pytest.mark.parametrize("kind", ["logits a chunk at a time", "whole logits"])
def test_dropped_mass_is_the_probability_of_the_ids_beyond_the_shared(tiny, monkeypatch, kind, shared=300):
    model = AutoModelForCausalLM.from_pretrained(tiny / "teacher")
    if kind == "whole logits":
        monkeypatch.setattr("models.probes.find_head", lambda _: None)
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


@pytest.mark.parametrize(
    ("flags", "shape", "warned"),
    [
        ("--batch-size 4 --gradient-accumulation-steps 2", (4, 2), False),
        ("--batch-size 51", (51, 1), True),
        ("--tokens-per-micro-batch 256", (8, 1), False),
    ],
)
def test_steps_are_those_of_the_plan(tiny, flags, shape, warned):
    data, report = SimpleNamespace(lengths=np.arange(10, 110), responses=np.full(100, 3)), Report()
    config = config_of(tiny, tiny, *flags.split(), "--num-epochs", "3")
    estimate_steps(config, data, Ranks(2, 2), report)
    steps = len(EpochPlan(data.lengths, data.responses, *shape, 2, 0, config.train.tokens_per_micro_batch))
    text = f"{steps} per epoch, {3 * steps} in all (3 of 3 epochs); per step {' '.join(flags.split()[:2])} x "
    assert report.facts[0][1].startswith(text)
    assert ("a step takes 102 rows and there are 100; lower --batch-size" in "".join(report.warnings)) == warned


def test_a_warm_up_without_an_end_is_warned_of(tiny):
    report = Report()
    data = SimpleNamespace(lengths=np.full(100, 9), responses=np.full(100, 3))
    estimate_steps(config_of(tiny, tiny, "--warmup-iters", "30", "--total-iters", "20"), data, Ranks(1, 1), report)
    assert "--lr 0.0005 is never reached" in report.warnings[0]


def test_many_cut_rows_are_warned_of(tiny, tmp_path):
    long = {"instruction": "Say red.", "input": "stone " * 300, "output": "river " * 300}
    (tmp_path / "train.jsonl").write_text(json.dumps(long) + "\n")
    report = doctor.report_on(config_of(tiny, tmp_path, "--processed-data-dir", str(tmp_path / "cache")))
    assert "train: 100% of the prompts are cut; raise --max-prompt-length" in report.warnings
    assert any("so their ends and EOS are never learnt; raise --max-length" in warning for warning in report.warnings)
    assert any("no dev.jsonl" in warning and "the latest checkpoint is kept" in warning for warning in report.warnings)


# --- memory ----------------------------------------------------------------------------------------------------------


BILLION = ModelFacts("model", LlamaConfig(), 10**9, 10**9, 0, 32000, 4096)


def memory_of(config, stage, precision, ranks, teacher=None, **zero):
    zero |= {"stage": stage, "reduce_bucket_size": 50_000_000}
    settings = DeepSpeedSettings.of({"zero_optimization": zero, precision: {"enabled": True}})
    return bytes_per_rank(config, settings, BILLION, teacher, Ranks(ranks, ranks))


@pytest.mark.parametrize(
    ("stage", "precision", "billions"),
    [
        (0, "fp32", {"weights": 4, "gradients": 4, "optimiser": 8}),
        (1, "bf16", {"weights": 2, "gradients": 2, "optimiser": 3, "ZeRO buckets": 0.2}),
        (2, "bf16", {"weights": 2, "gradients": 0.5, "optimiser": 3, "ZeRO buckets": 0.2}),
        (3, "bf16", {"weights": 0.5, "gradients": 0.5, "optimiser": 3, "ZeRO buckets": 0.2}),
    ],
)
def test_memory_is_counted_by_stage_dtype_and_ranks(tiny, stage, precision, billions):
    wanted = {name: n * 10**9 for name, n in billions.items()}
    assert memory_of(config_of(tiny, tiny), stage, precision, ranks=4) == (wanted, {})


def test_what_is_offloaded_is_on_the_host(tiny):
    found = memory_of(config_of(tiny, tiny), 2, "bf16", ranks=1, offload_optimizer={"device": "cpu"})
    assert found == ({"weights": 2 * 10**9, "gradients": 2 * 10**9}, {"optimiser": 12 * 10**9})


@pytest.mark.parametrize(
    ("flags", "stage", "taken"),
    [
        ("", 0, 2 * 10**9),
        ("", 3, 2 * 10**9 // 4),
        ("--teacher-dtype float32", 0, 4 * 10**9),
        ("--teacher-cache cache", 0, 2 * 32000 * 4096),
    ],
)
def test_the_teacher_is_whole_sharded_or_only_its_head(tiny, flags, stage, taken):
    config = config_of(tiny, tiny, *todi("t"), *flags.split())
    assert memory_of(config, stage, "bf16", ranks=4, teacher=BILLION)[0]["teacher"] == taken


def test_the_size_of_the_teacher_cache_is_told(tiny, rows, tmp_path, teacher, monkeypatch):
    found = described(tiny, rows, "--teacher-cache", str(tmp_path / "cache"), teacher=teacher)
    train, dev = doctor.read_data(found.config)
    monkeypatch.setattr(estimates, "host_memory", lambda: 4 * found.teacher.parameters - 1)
    found.estimate(train, dev)
    tokens = int(train.responses.sum() + dev.responses.sum())
    assert dict(found.report.facts)["cache"].startswith(f"at most {size(4 * 48 * tokens)} of ")
    assert any("to fill it the whole teacher is loaded" in warning for warning in found.report.warnings)
    assert not (tmp_path / "cache").exists()


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = SMALL | {"vocab_size": 400, "head_dim": 16, "num_key_value_heads": 1}
GEMMA = Gemma3Config(text_config=TEXT, vision_config=SMALL)
MAMBA = MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4)


@pytest.mark.parametrize("config", [GEMMA, MAMBA], ids=["gemma3 with vision", "mamba"])
def test_unusual_architectures_are_described(tiny, rows, tmp_path, config):
    shutil.copytree(tiny / "student", tmp_path / "model")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    found = described(tmp_path, rows, student="model")
    found.estimate(*doctor.read_data(found.config))
    assert not found.report.errors


def test_the_fullest_batch_is_between_the_mean_and_the_longest():
    lengths = np.array([10] * 90 + [100] * 10)
    assert 8 * lengths.mean() < fullest_batch(lengths, 8, 0) <= 800
    assert fullest_batch(lengths, 1000, 0) == lengths.sum()


def test_more_than_the_machine_has_is_refused(tiny, rows, monkeypatch):
    needed = 16 * described(tiny, rows).student.parameters  # fp32: weights, gradients, two moments
    for total, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(estimates, "host_memory", lambda total=total: 2 * total)
        found = described(tiny, rows)
        found.ranks = Ranks(2, 2)
        found.estimate(*doctor.read_data(found.config))
        assert bool(found.report.errors) == refused
    (error,) = found.report.errors
    assert error.startswith(f"memory: a rank needs {size(needed)} (weights ") and "; use --peft lora" in error


@pytest.mark.parametrize(("device", "host", "place"), [(1000, 10**12, "memory"), (10**12, 1000, "host memory")])
def test_more_than_the_gpu_or_its_host_has_is_refused(tiny, rows, monkeypatch, device, host, place):
    found = described(tiny, rows)
    found.settings = DeepSpeedSettings.of({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
    data = doctor.read_data(found.config)
    monkeypatch.setattr(get_accelerator(), "device_name", lambda: "cuda")
    monkeypatch.setattr(get_accelerator(), "total_memory", lambda: device)
    monkeypatch.setattr(estimates, "host_memory", lambda: host)
    found.estimate(*data)
    assert [error.partition(":")[0] for error in found.report.errors] == [place]
    assert any(fact.startswith("offloaded: ") for _, fact in found.report.facts)


@pytest.mark.parametrize(
    ("groups", "limit"),
    [
        ("0::/job/task\n", "job/memory.max"),  # of a group above the process's own
        ("0::/../other\n", "memory.max"),  # of a container that sees its own group as the mount
        ("5:cpu,cpuacct:/x\n4:memory:/docker/4e1f\n0::/\n", "memory/memory.limit_in_bytes"),  # version 1
        ("0::/\n", None),
    ],
)
def test_memory_is_that_of_the_tightest_control_group(tmp_path, groups, limit):
    for name, text in (("proc/self/cgroup", groups), ("sys/fs/cgroup/job/task/memory.max", "max\n")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    if limit is not None:
        file = tmp_path / "sys/fs/cgroup" / limit
        file.parent.mkdir(exist_ok=True)
        file.write_text("4000\n")
    assert host_memory(tmp_path) == (psutil.virtual_memory().total if limit is None else 4000)


def test_more_processes_than_gpus_are_refused_on_every_rank(monkeypatch):
    accelerator = SimpleNamespace(device_name=lambda *_: "cuda", device_count=lambda: 1)
    monkeypatch.setattr(runtime_ranks, "get_accelerator", lambda: accelerator)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(ValueError, match=r"^2 processes on a machine with 1 visible devices; set GPUS=1"):
            runtime_ranks.init_distributed()


# --- disk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "checkpoints"),
    [
        ("", 2),
        ("--save-interval 5 --keep-best-n-checkpoints 9", 2),
        ("--keep-best-n-checkpoints -1", 10),
        ("--peft lora", 2),
    ],
)
def test_the_disk_holds_the_checkpoints_and_two_resume_states(tiny, rows, tmp_path, flags, checkpoints, monkeypatch):
    """Neither has the frozen weights of a LoRA run."""
    preflight = check(config_of(tiny, rows, "--save-dir", str(tmp_path), "--num-epochs", "10", *flags.split()))
    student = student_facts(preflight.config.model, Report())
    assert (student.trainable < student.parameters / 5) == ("lora" in flags)
    needed = (checkpoints * 4 + 2 * 12) * student.trainable
    for free, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(estimates.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with contextlib.nullcontext() if not refused else pytest.raises(ValueError, match="the disk is too small"):
            estimate_disk(preflight.config, preflight.settings, student, report := Report())
    wanted = f"checkpoints {checkpoints} x {size(4 * student.trainable)}, resume state and its next version 2 x "
    assert wanted + size(12 * student.trainable) in report.facts[0][1]


def test_checking_a_folder_leaves_nothing_behind(tmp_path):
    assert check_writable(tmp_path / "a/b/c") == tmp_path
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="--save-dir /proc/run: cannot be written"):
        check_writable(Path("/proc/run"))


# --- probes and report -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "precision"), [("llama", "fp32"), ("bloom", "bf16")])
def test_the_doctor_gives_the_answer_of_training(tiny, rows, tmp_path, name, precision):
    """Bloom sees less of its neighbours than bf16 rounds."""
    shutil.copytree(tiny / "student", tmp_path / name)
    if name == "bloom":
        config = BloomConfig(vocab_size=500, hidden_size=64, n_layer=2, n_head=4)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    found = described(tmp_path, rows, student=name)
    found.settings = DeepSpeedSettings.of({precision: {"enabled": True}})
    doctor.probe(found)
    layout = batch_layout([load_student(found.config.model, found.settings.dtype)])
    assert (layout == "padded") == (name == "bloom")
    probes = [("probes", "--model-path: logits a chunk at a time"), ("", f"batches {layout}")]
    assert found.report.facts[-2:] == probes
    assert ("cannot tell packed examples apart" in " ".join(found.report.warnings)) == (name == "bloom")


def test_the_doctor_says_why_it_loads_no_models(tiny, rows, monkeypatch):
    found = described(tiny, rows)
    monkeypatch.setattr(get_accelerator(), "available_memory", lambda: 100)
    doctor.probe(found)
    found.student = replace(found.student, path="owner/name")
    doctor.probe(found)
    found.report.errors.append("an error")
    doctor.probe(found)
    reasons = (
        "the weights take .*, and 0.1 kB are free",
        "--model-path owner/name is a hub id",
        "correct the errors first",
    )
    for (_, fact), reason in zip(found.report.facts[-3:], reasons, strict=True):
        assert re.match(f"skipped: {reason}.*; training probes the models once they are loaded", fact)


def test_the_report_is_readable():
    report = Report()
    report.fact("student", "word " * 60)
    report.warn("beware")
    with report.collect_errors():
        raise ValueError("first\nsecond")
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 120 and lines[0] == "preflight"
    assert [line.split()[0] for line in lines[-3:]] == ["warning:", "error:", "error:"]
    with pytest.raises(ValueError, match=r"^first\nsecond$"):
        report.stop_on_errors()


def test_sizes():
    assert [size(n) for n in (1500, 255e6, 1.56e9, 6e15)] == ["1.5 kB", "255 MB", "1.56 GB", "6,000 TB"]


def run_doctor(tiny, rows, *words):
    with pytest.raises(SystemExit) as end:
        doctor.main(["--model-path", str(tiny / "student"), "--data-dir", str(rows), *map(str, words)])
    return end.value.code


def test_the_doctor_reports_and_writes_nothing(tiny, rows, tmp_path, teacher, capsys):
    lengths = "--max-length", 128, "--max-prompt-length", 64
    folders = "--save-dir", tmp_path / "run", "--processed-data-dir", tmp_path / "cache"
    assert run_doctor(tiny, rows, *todi(teacher), *lengths, *folders) == 0
    report = capsys.readouterr().out
    for name in "student teacher tokenizer vocabulary disk train dev steps memory resume probes".split():
        assert re.search(f"^  {name} ", report, re.MULTILINE), name
    assert not (tmp_path / "run").exists()


def test_the_doctor_names_all_that_is_wrong(tiny, rows, tmp_path, teacher, capsys):
    save_adapter(tiny, tmp_path / "adapter")
    wrong = [*todi(teacher), "--teacher-peft-path", tmp_path / "adapter", "--eval-gen", "--max-length", 900]
    wrong += ["--keep-best-n-checkpoints", -1, "--num-epochs", 999999999999]
    assert run_doctor(tiny, rows, *wrong) == 2
    report = " ".join(capsys.readouterr().out.split())
    for part in ("does not fit", "the disk is too small", "512 positions; lower it"):
        assert part in report
    assert run_doctor(tiny, rows, *wrong, "--model-path", "nowhere/at/all", "--data-dir", "nowhere") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("error: ")] == ["--model-path", "--data-dir"]


def test_the_doctor_names_unreadable_rows_once(tiny, rows, tmp_path, capsys):
    """The cache of rows reads them, and so does the search for a state to resume."""
    (tmp_path / "train.jsonl").write_text("")
    assert run_doctor(tiny, tmp_path, "--processed-data-dir", tmp_path / "cache") == 2
    assert capsys.readouterr().out.count("train.jsonl: no rows") == 1


def test_an_answer_longer_than_the_positions_is_refused(tiny, rows):
    student = student_facts(config_of(tiny, rows).model, Report())
    fits, exceeds = ["--eval-gen", "--max-new-tokens", "448"], ["--eval-gen", "--max-new-tokens", "449"]
    report = Report()
    check_positions(config_of(tiny, rows, *fits), 128, [student], report)
    check_positions(config_of(tiny, rows, *exceeds[1:]), 128, [student], report)
    assert not report.warnings
    check_positions(config_of(tiny, rows, "--max-length", "1000"), 128, [student], report)
    assert "--max-length 1000: " in report.warnings[0] and "pass --max-length 512" in report.warnings[0]
    with pytest.raises(ValueError, match=r"^--max-new-tokens 449: \S+ has 512 positions; lower it$"):
        check_positions(config_of(tiny, rows, *exceeds), 128, [student], report)


def of_resume(tiny, rows, folder, *flags) -> tuple[str, str]:
    """What the doctor says of --save-dir `folder`, and of why training would refuse it."""
    found = check(config_of(tiny, rows, "--save-dir", str(folder), *flags))
    with found.report.collect_errors():
        doctor.describe_resume(found)
    return "; ".join(text for _, text in found.report.facts), "; ".join(found.report.errors)


def test_the_doctor_says_what_becomes_of_what_save_dir_holds(tiny, rows, tmp_path):
    run = tmp_path / "run"
    assert of_resume(tiny, rows, run) == ("nothing to resume: starts at the first step", "")
    assert not run.exists()
    found = check(config_of(tiny, rows, "--save-dir", str(run)))
    start = {
        "format": FORMAT,
        "folder": "step7",
        "files": {"rank0.pt": 2},
        "criterion_counts_steps": False,
        "position": asdict(Position(epoch=2, step=7)),
        "best": [[-2.0, "epoch1_step4"]],
        "settings": find_resume(found.config, found.settings, 1).settings | {"layout": "packed"},
    }
    (run / "resume/step7").mkdir(parents=True)
    (run / "resume/step7/rank0.pt").write_bytes(b"  ")
    (run / "epoch1_step4").mkdir()
    (run / "resume/state.json").write_text(json.dumps(start))
    before = sorted(run.rglob("*"))
    assert of_resume(tiny, rows, run, "--log-interval", "3") == (
        f"continues {run} after step 7, --log-interval 10 -> 3",
        "",
    )
    assert "cannot be continued with --lr 0.1" in of_resume(tiny, rows, run, "--lr", "0.1")[1]
    assert "moves to previous/ first: resume, epoch1_step4" in of_resume(tiny, rows, run, "--resume", "never")[0]
    (run / "resume/step7/rank0.pt").write_bytes(b"")
    assert "is damaged (rank0.pt" in of_resume(tiny, rows, run)[1]
    edit_json(run / "resume/state.json", position=asdict(Position(step=7, finished=True)), folder=None)
    assert "this run is finished: nothing to do" in of_resume(tiny, rows, run)[0]
    (run / "resume/state.json").unlink()
    before.remove(run / "resume/state.json")
    assert "moves to previous/ first" in of_resume(tiny, rows, run)[0]
    assert sorted(run.rglob("*")) == before


def test_a_skeleton_counts_as_the_model_does(tiny, rows):
    for name in ("student", "student_tied"):
        model = AutoModelForCausalLM.from_pretrained(tiny / name)
        found = student_facts(config_of(tiny, rows, student=name).model, Report())
        assert (found.parameters, found.head_rows) == (model.num_parameters(), model.lm_head.weight.shape[0])
        assert found.config.to_dict() == AutoConfig.from_pretrained(tiny / name).to_dict()
