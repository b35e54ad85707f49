"""What flags leave open: which checkpoint a path means, what a run's folder is called, precision, accumulation."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from arguments import ModelArguments, parse_evaluate_arguments, parse_train_arguments
from criterions import build_criterion, unused_arguments
from evaluation.defaults import fill_in, find_checkpoints
from models import folders
from models.files import check_model_path
from models.folders import ROOT, find_checkpoint, short_names
from models.loading import adapter_base, load_student
from preflight import defaults
from preflight.defaults import with_accumulation, with_checkpoints, with_precision, with_save_dir
from runtime.deepspeed_settings import DeepSpeedSettings
from runtime.ranks import Ranks
from training.checkpoints import name_base

sys.path.insert(0, str(ROOT / "scripts/lib"))
import variables


def make_checkpoint(folder, file="config.json"):
    folder.mkdir(parents=True)
    (folder / file).write_text("{}")
    return folder


def train_config(*words):
    return parse_train_arguments(["--model-path", "m", "--data-dir", "d", *map(str, words)])


# ---- which checkpoint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "others"),
    [
        ("epoch2_step6_loss1.25", ["epoch1_step3_loss1.9", "epoch10_step30_loss1.3"]),
        ("epoch2_step6_loss1.4_rougel21.0", ["epoch1_step3_loss1.2_rougel20.5", "epoch3_step9_loss1.5_rougel9.9"]),
        ("epoch10_step6_loss1.2", ["epoch9_step3_loss1.2"]),
        ("epoch2_step6_loss7.0", ["epoch1_step3_lossnan"]),
    ],
)
def test_run_folder_means_its_best_checkpoint(tmp_path, best, others):
    run = tmp_path / "a run" / "criterion=todi__kd^rate=0.5"
    for name in (best, *others, ".epoch98_step98_loss0.1.tmp"):
        make_checkpoint(run / name)
    (run / "epoch99_step99_loss0.1").mkdir()  # empty: not a checkpoint
    for folder in (run, run.parent, run / best):
        assert find_checkpoint("--model-path", str(folder)) == str(run / best)


def test_folder_of_several_runs_is_refused(tmp_path):
    for run in ("lr=1", "lr=2"):
        make_checkpoint(tmp_path / run / "epoch1_step3_loss1.0")
    with pytest.raises(ValueError, match=r"--teacher-peft-path \S+: holds several runs \(lr=1, lr=2\); name one"):
        with_checkpoints(train_config("--teacher-model-path", "gpt2", "--teacher-peft-path", tmp_path))


def test_paths_are_relative_to_the_working_directory_or_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = make_checkpoint(Path("runs/a/epoch1_step2_loss3.0"))
    assert find_checkpoint("--model-path", "runs/a") == str(here)
    assert find_checkpoint("--model-path", "data/sample") == str(ROOT / "data/sample")
    assert find_checkpoint("--model-path", "openai-community/gpt2") == "openai-community/gpt2"


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("model_hub/qwen2.5/Qwen2.5-7B/", "download it (bash scripts/models/download.sh qwen2.5), or"),
        ("model_hub/llama2/llama2-7b-hf", "download it (bash scripts/models/download.sh tinyllama), or"),
        ("model_hub/smollm2/SmolLM2-18L", "put a model there (model_hub/README.md), or"),  # cut, not downloaded
        ("model_hub/qwen2.5/Qwen2.5-7", "put a model there (model_hub/README.md), or"),
        ("outputs/gpt2/sft", "train it first, or"),
    ],
)
def test_a_missing_model_folder_is_answered_with_how_to_fill_it(tmp_path, monkeypatch, path, remedy):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        check_model_path("--model-path", path)
    assert str(error.value) == f"--model-path {path}: no such folder; {remedy} pass the folder of a model or a hub id"


def test_adapters_find_their_base_from_any_folder(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny / "student", tmp_path / "old/hub/student")
    monkeypatch.chdir(tmp_path / "old")
    model = load_student(ModelArguments("hub/student", peft="lora"), torch.float32)
    name_base(model)
    adapter = tmp_path / "old/run/epoch1_step2_loss3.0"
    model.save_pretrained(adapter)
    (adapter.parent / "args.json").write_text(json.dumps({"model_path": "hub/student"}))
    monkeypatch.chdir("/")
    assert adapter_base(str(adapter)) == (str(tmp_path / "old/hub/student"), None)
    (tmp_path / "old").rename(tmp_path / "new")  # the whole tree: the record is wrong, the flag of the run is right
    monkeypatch.setattr(folders, "ROOT", tmp_path / "new")
    assert adapter_base(str(tmp_path / "new/run" / adapter.name)) == (str(tmp_path / "new/hub/student"), None)


# ---- the run's own folder --------------------------------------------------------------------------------------------

KD = "--teacher-model-path models/xl --kd-temperature 2 --lr 0.0005 --num-epochs 20"
BATCH = "--batch-size 4 --global-batch-size 32 --num-epochs 20"


def folder_of(words, ranks=(4, 4), precision="fp32"):
    config = with_checkpoints(train_config("--model-type", "gpt2", "--ckpt-name", "gpt2-base", *words.split()))
    config = with_accumulation(config, Ranks(*ranks))
    criterion = build_criterion(config.kd.objective, config.kd)
    settings = DeepSpeedSettings.of({precision: {"enabled": True}})
    return with_save_dir(config, criterion, settings, Ranks(*ranks)).train.save_dir


def test_run_folder_is_named_by_what_was_parsed():
    outputs = "outputs/gpt2/gpt2-base"
    found = folder_of(BATCH, precision="bf16")
    assert found == f"{outputs}/sft/criterion=cross_entropy__default-bf16__epoch=20__bsz=4x2x4=32__lr=0.0005"
    found = folder_of(f"{KD} {BATCH} --kd-objective fkl --teacher-ckpt-name gpt2-xlarge")
    wanted = "fkl/criterion=fkl__default-fp32__teacher=gpt2-xlarge__kd^rate=0.5__kd^temp=2.0__epoch=20__bsz=4x2x4=32"
    assert found == f"{outputs}/{wanted}__lr=0.0005"
    # Appended flags count, and what the objective does not use is left out.
    found = folder_of(f"{KD} {BATCH} --kd-objective adakd --adakd-base todi --js-beta 0.3 --lr 0.0001", (8, 4))
    wanted = "adakd+todi/criterion=adakd+todi__default-fp32__teacher=xl__kd^rate=0.5__epoch=20__bsz=4x1x4x2=32"
    assert found == f"{outputs}/{wanted}__lr=0.0001"
    found = folder_of(f"{KD} --kd-objective adakd+js --js-beta 0.3 --adakd-c 0.7 --seed 20", (1, 1))
    wanted = "teacher=xl__kd^rate=0.5__adakd-c=0.7__js-beta=0.3__epoch=20__bsz=8x1x1=8__lr=0.0005__seed=20"
    assert found == f"{outputs}/adakd+js/criterion=adakd+js__default-fp32__{wanted}"
    lora = "--peft lora --peft-lora-r 256 --peft-lora-alpha 8 --tokens-per-micro-batch 2048 --num-epochs 2"
    wanted = "lora-rank=256-alpha=8-dropout=0.1-fp16__epoch=2__tokens=2048x1x4=8192__lr=0.0005"
    assert folder_of(lora, precision="fp16") == f"{outputs}/sft/criterion=cross_entropy__{wanted}"
    assert folder_of("--save-dir here") == "here"


def test_long_names_are_cut_and_stay_apart():
    changed = f"{KD} --kd-objective adakd --adakd-ratio-min 0.25 --adakd-tau-base 1.5 --adakd-c 0.75 --adakd-beta 0.9"
    changed += " --adakd-epsilon 0.125 --adakd-delta 0.25 --adakd-warmup-ratio "
    first, second = (folder_of(changed + share).rsplit("/")[-1] for share in ("0.1", "0.2"))
    assert first != second and max(len(first), len(second)) <= defaults.LONGEST_NAME


def test_names_of_models_come_from_their_run_or_their_folder(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "sft" / "epoch1_step2_loss3.0")
    (checkpoint.parent / "args.json").write_text(json.dumps({"ckpt_name": "gpt2-xlarge"}))
    words = "--kd-objective", "fkl", "--model-path", "org/small", "--teacher-model-path", checkpoint.parent
    config = with_checkpoints(train_config(*words))
    assert (config.model.ckpt_name, config.teacher.teacher_ckpt_name) == ("small", "gpt2-xlarge")
    assert config.teacher.teacher_model_path == str(checkpoint)


# ---- hyper-parameters and objectives ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        ("--kd-objective todi --adakd-ratio 0.5 --kd-temperature 3", ["adakd_ratio"]),
        ("--kd-objective adakd+js --js-beta 0.3 --adakd-base todi", ["adakd_base"]),
        ("--kd-objective adakd --adakd-difficulty js --js-beta 0.3", []),
        ("--criterion cross_entropy --kd-rate 0.9 --kd-temperature 2", ["kd_rate", "kd_temperature"]),
    ],
)
def test_flags_without_effect_on_the_objective(words, unused):
    args = train_config(*words.split()).kd
    assert list(unused_arguments(build_criterion(args.objective, args), args)) == unused


# ---- precision and batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "bf16", "native", "fp16", "file"),
    [
        ("cuda", True, True, True, "ds_config_bf16.json"),
        ("cuda", True, False, True, "ds_config_fp16.json"),  # a GPU on which PyTorch emulates bf16
        ("npu", False, False, False, "ds_config_zero1_fp32.json"),
        ("cpu", True, True, True, "ds_config_zero1_fp32.json"),
    ],
)
def test_auto_precision_is_what_the_machine_computes_in(monkeypatch, device, bf16, native, fp16, file):
    supports = {"is_bf16_supported": lambda: bf16, "is_fp16_supported": lambda: fp16}
    accelerator = SimpleNamespace(device_name=lambda: device, **supports)
    monkeypatch.setattr(defaults, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    assert Path(with_precision(train_config("--precision", "auto")).train.deepspeed_config).name == file


def test_precision_and_deepspeed_config_must_agree():
    bf16 = ROOT / "configs/deepspeed/ds_config_zero3_bf16.json"
    for precision in ("auto", "bf16"):
        config = train_config("--precision", precision, "--deepspeed_config", bf16)
        assert with_precision(config) == config
    with pytest.raises(ValueError, match=r"--precision fp32: --deepspeed_config \S+ is bf16; pass one of the two"):
        with_precision(train_config("--precision", "fp32", "--deepspeed_config", bf16))


def test_global_batch_derives_the_accumulation():
    for ranks, steps in ((1, 8), (8, 1)):
        config = with_accumulation(train_config("--batch-size", 4, "--global-batch-size", 32), Ranks(ranks, ranks))
        assert config.train.gradient_accumulation_steps == steps


@pytest.mark.parametrize(
    ("words", "world", "message"),
    [
        ("", 3, r"32: is not a multiple of --batch-size 4 x 3 ranks = 12; pass 24 or 36$"),
        ("", 16, r"32: is not a multiple of --batch-size 4 x 16 ranks = 64; pass 64, or --batch-size 2$"),
        ("--gradient-accumulation-steps 4", 1, r"32: .* x --gradient-accumulation-steps 4 is 16; pass one of the two"),
    ],
)
def test_global_batch_that_cannot_be(words, world, message):
    config = train_config("--batch-size", 4, "--global-batch-size", 32, *words.split())
    with pytest.raises(ValueError, match=f"--global-batch-size {message}"):
        with_accumulation(config, Ranks(world, world))


def test_global_batch_counts_examples_not_tokens():
    with pytest.raises(ValueError, match="--global-batch-size 32: counts examples, and --tokens-per-micro-batch 4096"):
        train_config("--global-batch-size", 32, "--tokens-per-micro-batch", 4096)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_takes_data_and_lengths_from_the_run(tmp_path, monkeypatch):
    def filled(*words):
        config = parse_evaluate_arguments(["--model-path", *words])
        (checkpoint,) = find_checkpoints(config.checkpoints)
        args = fill_in(config.evaluate, checkpoint)
        return checkpoint.path, args.data_dir, args.max_length, args.max_prompt_length, args.prompt_template

    monkeypatch.chdir(tmp_path)
    run = make_checkpoint(Path("run/epoch1_step2_loss3.0"), "adapter_config.json").parent
    of_run = {"data_dir": "data/sample", "max_length": 192, "max_prompt_length": 128, "prompt_template": "none"}
    (run / "args.json").write_text(json.dumps(of_run))
    assert filled("run") == ("run/epoch1_step2_loss3.0", [str(ROOT / "data/sample")], 192, 128, "none")
    assert filled("gpt2", "--data-dir", "d", "--max-length", "300") == ("gpt2", ["d"], 300, 256, "alpaca")
    with pytest.raises(ValueError, match="--data-dir: name a folder; gpt2 has no run"):
        filled("gpt2")


def test_runs_have_short_names(tmp_path):
    def names(*paths):
        for path in paths:
            (tmp_path / path).mkdir(parents=True, exist_ok=True)
        return short_names([str(tmp_path / path) for path in paths])

    assert names("a/sft/epoch1", "a/todi/epoch2", "model") == ["sft", "todi", "model"]
    assert names("a/sft/epoch1", "b/sft/epoch1", "b/todi/epoch1") == ["a/sft", "b/sft", "todi"]
    assert names("a/sft/epoch1", "a/sft/epoch2") == ["sft/epoch1", "sft/epoch2"]
    assert short_names(["gpt2", "org/gpt2-xl"]) == ["gpt2", "gpt2-xl"]


# ---- variables of the scripts ----------------------------------------------------------------------------------------


def test_variables_of_other_programs_are_not_taken_for_ours():
    known = "LORA_RANK NODE_RANK PYTHON HOSTFILE KD_TEMP MASTER_ADDR SEED SEEDS GPUS TOP_P LR_MIN DATA_DIR EPOCH"
    others = "LOCAL_RANK RANK WORLD_SIZE HOSTNAME PYTHONPATH PYTHON_VERSION TEMP TMPDIR PATH HOME SHELL LANG EDITOR"
    assert [name for name in others.split() if variables.meant(name, known.split())] == []
    assert [variables.meant(name, known.split()) for name in ("EPOCHS", "MASTER_ADDRESS")] == ["EPOCH", "MASTER_ADDR"]
