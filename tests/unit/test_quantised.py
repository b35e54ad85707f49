"""Models in 4 or 8 bits: what preflight refuses and counts, and what is asked of Transformers. Run on no GPU so far."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import models.loading as loading
import preflight.checks as checks
from arguments import ModelArguments, TeacherArguments, parse_train_arguments
from criterions import build_criterion
from preflight.defaults import setting_name
from preflight.estimates import QUANTISED, weight_bytes
from preflight.report import Report
from preflight.skeleton import student_facts, teacher_facts
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.ranks import Ranks
from teacher.cache import fingerprint

LORA = ["--peft", "lora", "--model-bits", "4"]
KD = ["--kd-objective", "todi", "--teacher-model-path", "teacher"]


def config(*flags):
    return parse_train_arguments(["--model-path", "student", "--data-dir", "data", *flags])


class Gpu:
    def device_name(self):
        return "cuda"

    def current_device_name(self):
        return "cuda:1"


@pytest.fixture
def gpu_with_bitsandbytes(monkeypatch):
    """A machine that has both, as far as preflight and loading look."""
    monkeypatch.setattr(checks, "get_accelerator", Gpu)
    monkeypatch.setattr(loading, "get_accelerator", Gpu)
    monkeypatch.setattr(checks, "is_bitsandbytes_available", lambda: True)


def check_bits(flags, stage=2, needs_teacher=True):
    settings = DeepSpeedSettings.of({"zero_optimization": {"stage": stage}})
    checks._check_bits(config(*flags), settings, needs_teacher)


@pytest.mark.parametrize("flags", [LORA, [*KD, "--teacher-bits", "8"]], ids=" ".join)
def test_a_machine_without_gpu_is_refused_before_anything_is_loaded(tiny, rows, flags, monkeypatch):
    monkeypatch.setattr(loading, "_load", lambda *words, **options: pytest.fail("loaded"))
    flags = [str(tiny / word) if word == "teacher" else word for word in flags]
    given = parse_train_arguments(["--model-path", str(tiny / "student"), "--data-dir", str(rows), *flags])
    with pytest.raises(
        ValueError, match=r"--(model|teacher)-bits \d: needs a CUDA GPU, and this machine's device is cpu"
    ):
        checks.check(given)


def test_what_else_is_refused(gpu_with_bitsandbytes, monkeypatch):
    check_bits(LORA)
    check_bits([*KD, "--teacher-bits", "8"])
    with pytest.raises(ValueError, match="--model-bits 4: ZeRO-3 cannot partition quantised weights"):
        check_bits(LORA, stage=3)
    with pytest.raises(ValueError, match=r"--teacher-peft-path a would be merged into rounded weights.*export\.sh"):
        check_bits([*KD, "--teacher-bits", "8", "--teacher-peft-path", "a"])
    with pytest.raises(ValueError, match="--model-bits 4: quantised weights cannot be trained; add --peft lora"):
        config("--model-bits", "4")
    monkeypatch.setattr(checks, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="--model-bits 4: bitsandbytes is not installed; pip install bitsandbytes"):
        check_bits(LORA)
    check_bits([*KD, "--teacher-bits", "8"], needs_teacher=False)  # the teacher is not loaded


def test_what_is_asked_of_transformers(tiny, gpu_with_bitsandbytes, monkeypatch):
    asked = []
    found = AutoModelForCausalLM.from_pretrained

    def from_pretrained(path, quantization_config=None, device_map=None, **options):
        asked.append((quantization_config, device_map))
        return found(path, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    loading.load_student(ModelArguments(str(tiny / "student"), peft="lora", model_bits="4"), torch.bfloat16)
    loading.load_teacher(TeacherArguments(str(tiny / "teacher"), teacher_bits="8"), torch.bfloat16)
    loading.load_teacher(TeacherArguments(str(tiny / "teacher")), torch.bfloat16)
    (four, place), (eight, other_place), (whole, nowhere) = asked
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16 and eight.load_in_8bit
    assert place == other_place == {"": "cuda:1"}
    assert whole is None and nowhere is None


def test_a_quantised_model_is_not_moved():
    class Model(torch.nn.Module):
        is_quantized = True

        def to(self, device):
            raise ValueError("`.to` is not supported for `8-bit` bitsandbytes models")

    model = Model()
    assert loading.place(model, "cpu") is model


def test_the_linear_layers_are_counted_in_bits(tiny):
    report = Report()
    facts = teacher_facts(TeacherArguments(str(tiny / "teacher")), False, report)
    model = AutoModelForCausalLM.from_pretrained(tiny / "teacher")
    linear = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    assert facts.linear == sum(layer.weight.numel() for layer in linear) > 0.3 * facts.parameters
    rest = facts.parameters - facts.linear
    assert weight_bytes(facts, torch.bfloat16, "8") == 2 * rest + facts.linear
    assert weight_bytes(facts, torch.bfloat16, "4") == pytest.approx(2 * rest + 0.516 * facts.linear, rel=1e-3)
    assert weight_bytes(facts, torch.bfloat16, None) == 2 * facts.parameters
    adapted = student_facts(ModelArguments(str(tiny / "teacher"), peft="lora"), report)
    assert adapted.linear == facts.linear and adapted.trainable > 0  # the adapter stays as it is
    assert set(QUANTISED) == {"4", "8"}


def test_a_cache_of_a_quantised_teacher_is_another(tiny):
    prints = [
        fingerprint(TeacherArguments(str(tiny / "teacher"), teacher_bits=bits), torch.float32)
        for bits in (None, "4", "8")
    ]
    assert [found["dtype"] for found in prints] == ["float32", "float32, 4 bits", "float32, 8 bits"]


def test_runs_of_other_bits_have_other_folders():
    settings = DeepSpeedSettings.of({})
    names = {
        setting_name(found, build_criterion("sft", found.kd), settings, Ranks(1, 1))
        for found in (config("--peft", "lora"), config(*LORA))
    }
    assert len(names) == 2 and any("-bits=4" in name for name in names)
