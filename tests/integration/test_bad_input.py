"""Every mistake of the table ends, on two ranks, in exit code 2 and one clear message, and damages nothing."""

import hashlib
import json
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from arguments import DataArguments
from data_utils.dataset import load_instruction_data
from integration.launch import run, run_jobs
from tiny import make_rows

RANKS = 2
SECONDS = 20
MARKER = "remote code ran"

# case | flags | what the message must say | ... {W} is the folder that `world` makes, KD are the flags of a teacher.
# The first word may be `evaluate`, the entry, or `breaks`: a function then raises on the last rank alone.
KD = "--kd-objective todi --teacher-model-path"
TABLE_TEXT = """
no data file | --data-dir {W}/nothing | --data-dir {W}/nothing: no train.jsonl there; see
empty data file | --data-dir {W}/empty | {W}/empty/train.jsonl: no rows; every line holds
broken JSON | --data-dir {W}/broken_json | {W}/broken_json/train.jsonl:3: not JSON | one JSON object
missing field | --data-dir {W}/missing_field | {W}/missing_field/train.jsonl:3: no output; write the
bad dev rows | --data-dir {W}/bad_dev | {W}/bad_dev/dev.jsonl:3: not JSON
unknown objective | --kd-objective tody | --kd-objective tody: unknown objective; did you mean todi?
unknown prompt template | --prompt-template chatml | --prompt-template chatml: unknown template; choose
unknown flag | --kd-objektive todi | --kd-objektive: unknown flag; did you mean --kd-objective?
out of range | --kd-rate 1.5 | --kd-rate 1.5: pass a number of at least 0 and at most 1
more tokens than positions | --max-length 600 --eval-gen | --max-length 600: | 512 positions; lower
no teacher | --kd-objective todi | --kd-objective todi: needs a teacher; pass --teacher-model-path
no model | --model-path {W}/nothing | --model-path {W}/nothing: no such folder; pass the folder
truncated student | --model-path {W}/truncated | {W}/truncated/model.safetensors: | copy it again
truncated header | --model-path {W}/short_header | model.safetensors: no safetensors file, or cut short
truncated teacher | KD {W}/truncated | --teacher-model-path {W}/truncated/model.
missing shard | --model-path {W}/shards | --model-path {W}/shards: no model-00002-of-00002.safetensors
missing tensor | --model-path {W}/holes | {W}/holes: no weights for 1 of the model's tensors (model.norm
weights of another size | --model-path {W}/mixed | {W}/mixed: | in the weights and | by config.json
broken config | --model-path {W}/bad_config | --model-path {W}/bad_config/config.json: not JSON
pickled weights | --model-path {W}/pickled | pytorch_model.bin but no model.safetensors | save_pretrained
remote code | --model-path {W}/remote | --model-path {W}/remote: it comes with code of its own | --trust
revision of a folder | --model-revision v1 | --model-revision v1: {W}/student is a folder
another tokenizer | KD {W}/other_tokenizer | such ids); the objectives compare
no adapter | --peft lora --peft-path {W}/student | --peft-path {W}/student: no adapter_config.json
adapter of another base | --peft lora --peft-path {W}/teacher_adapter | \
    --peft-path {W}/teacher_adapter: does not fit {W}/student: | made for {W}/teacher: pass that base
teacher's adapter of another base | KD {W}/teacher --teacher-peft-path {W}/student_adapter | \
    --teacher-peft-path {W}/student_adapter: does not fit {W}/teacher:
adapter of a deeper base | --peft lora --peft-path {W}/deep_adapter | \
    --peft-path {W}/deep_adapter: does not fit {W}/student: | absent for the base
truncated adapter | --peft lora --peft-path {W}/cut_adapter | {W}/cut_adapter/adapter_model.safe
pickled adapter | --peft lora --peft-path {W}/bin_adapter | adapter_model.bin but no adapter_model.
no such target module | --peft lora --peft-lora-target-modules query | \
    --peft-lora-target-modules query: | name the modules, or pass all-linear
no DeepSpeed config | --deepspeed_config {W}/no.json | --deepspeed_config {W}/no.json: no such file; see
broken DeepSpeed config | --deepspeed_config {W}/broken.json | {W}/broken.json: not JSON | configs/deep
DeepSpeed config is a list | --deepspeed_config {W}/list.json | {W}/list.json: list, not an object; see
misspelt section | --deepspeed_config {W}/typo.json | 'zero_optimisation' is no | 'zero_optimization'?
unknown ZeRO option | --deepspeed_config {W}/option.json | {W}/option.json: zero_optimization.stages:
no such stage | --deepspeed_config {W}/stage.json | {W}/stage.json: zero_optimization.stage: | (7)
save folder below a file | --save-dir {W}/empty/train.jsonl/run | --save-dir {W} | cannot be written
disk too small | --keep-best-n-checkpoints -1 --num-epochs 999999999999 | \
    --save-dir {W}/run: the disk is too small: the run needs | or keep less with --keep-best-n-checkpoints
evaluate: no checkpoint | evaluate --model-path {W}/empty | {W}/empty: no config.json there (found: tr
evaluate: truncated | evaluate --model-path {W}/truncated | {W}/truncated/model.safetensors: | again
evaluate: no data | evaluate --data-dir {W}/nothing | --data-dir {W}/nothing: no valid.jsonl there; see
evaluate: unknown template | evaluate --prompt-template chatml | --prompt-template chatml: unknown template; choose
evaluate: unknown flag | evaluate --sede 1 | --sede: unknown flag; did you mean --seed?
one rank's tokenizer | breaks distillation.load_tokenizer ValueError | broken on purpose
one rank's files | breaks distillation.check OSError | broken on purpose
one rank's view of the run folder | breaks training.resume._check_shared ValueError | broken on purpose
one rank's record | breaks distillation.record_start OSError | broken on purpose
one rank's models | breaks training.building.load_student ValueError | broken on purpose
"""
TABLE = {
    name: (flags.replace("KD", KD).split(), says)
    for line in TABLE_TEXT.strip().splitlines()
    for name, flags, *says in [[part.strip() for part in line.split("|")]]
}
BUG = "no mistake of a user's"
LONG = "a row longer than the limits"
# "port taken" is below: it needs processes of its own. "Wrong number of GPUs" is in tests/unit/test_preflight.py.


@pytest.fixture(scope="module")
def world(tiny, rows, tmp_path_factory) -> Path:
    """A folder of good models and of every broken one."""
    folder = tmp_path_factory.mktemp("bad input")  # with a space
    for name in ("student", "teacher"):
        shutil.copytree(tiny / name, folder / name)
    make_data(folder)
    make_broken_models(folder)
    make_adapters(folder)
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher")
    torch.manual_seed(0)
    teacher.resize_token_embeddings(teacher.config.vocab_size + 24, mean_resizing=False)
    teacher.get_output_embeddings().weight.data[-24:] *= 20  # likely enough to be measured
    teacher.save_pretrained(folder / "wide_teacher")
    AutoTokenizer.from_pretrained(folder / "teacher").save_pretrained(folder / "wide_teacher")
    settings = {
        "broken": '{"bf16": ',
        "list": "[]",
        "typo": '{"zero_optimisation": {"stage": 2}}',
        "option": '{"zero_optimization": {"stages": 2}}',
        "stage": '{"zero_optimization": {"stage": 7}}',
    }
    for name, text in settings.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def make_data(folder: Path) -> None:
    lines = [json.dumps(row).encode() for row in make_rows(12)]
    third = {
        "broken_json": b'{"instruction": "Add.", ',
        "missing_field": b'{"instruction": "Add."}',
    }
    for name, line in third.items():
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    for name in ("good", "bad_dev", "empty", "long"):
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_bytes(b"" if name == "empty" else b"\n".join(lines))
    (folder / "good/valid.jsonl").write_bytes(b"\n".join(lines))
    (folder / "good/dev.jsonl").write_bytes(b"\n".join(lines))
    (folder / "bad_dev/dev.jsonl").write_bytes(b"\n".join([*lines[:2], third["broken_json"]]))
    long = {"instruction": "Say red.", "input": "stone " * 300, "output": "river " * 300}
    (folder / "long/train.jsonl").write_bytes(b"\n".join([*lines, json.dumps(long).encode()]))
    (folder / "long/dev.jsonl").write_bytes(b"\n".join(lines[:5]))


def make_broken_models(folder: Path) -> None:
    def copy(name: str) -> Path:
        shutil.copytree(folder / "student", folder / name)
        return folder / name / "model.safetensors"

    for name, keep in (("truncated", lambda data: data[:-100]), ("short_header", lambda data: data[:50])):
        file = copy(name)
        file.write_bytes(keep(file.read_bytes()))
    file = copy("pickled")
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    file = copy("holes")
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    copy("bad_config").with_name("config.json").write_text('{"model_type": ')
    file = copy("mixed")
    config = json.loads(file.with_name("config.json").read_text())
    file.with_name("config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    file = copy("shards")
    names = list(load_file(file))
    parts = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    file.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    file.rename(file.with_name("model-00001-of-00002.safetensors"))
    file = copy("remote")
    auto_map = {"AutoConfig": "remote.Remote", "AutoModelForCausalLM": "remote.Remote"}
    file.with_name("config.json").write_text(json.dumps(config | {"auto_map": auto_map, "model_type": "remote"}))
    file.with_name("remote.py").write_text(f"from pathlib import Path\nPath({str(folder / MARKER)!r}).touch()\n")
    shutil.copytree(folder / "teacher", folder / "other_tokenizer")
    words = {f"word{i}": i for i in range(400)} | {"<eos>": 400}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="word0")), eos_token="<eos>"
    ).save_pretrained(folder / "other_tokenizer")


def make_adapters(folder: Path) -> None:
    for name in ("student", "teacher"):
        model = AutoModelForCausalLM.from_pretrained(folder / name)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
        get_peft_model(model, config).save_pretrained(folder / f"{name}_adapter")
    for name in ("cut_adapter", "bin_adapter", "deep_adapter"):
        shutil.copytree(folder / "student_adapter", folder / name)
    file = folder / "cut_adapter/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    (folder / "bin_adapter/adapter_model.safetensors").rename(folder / "bin_adapter/adapter_model.bin")
    file = folder / "deep_adapter/adapter_model.safetensors"
    weights = load_file(file)
    deeper = {
        name.replace("layers.1.", "layers.2."): tensor.clone()
        for name, tensor in weights.items()
        if "layers.1." in name
    }
    save_file(weights | deeper, file)


def job(world: Path, name: str) -> dict:
    flags = TABLE[name][0]
    words = [word.replace("{W}", str(world)) for word in flags]
    argv = ["--model-path", str(world / "student"), "--data-dir", str(world / "good"), "--save-dir", str(world / "run")]
    if flags[0] == "evaluate":
        return {"name": name, "entry": "evaluate", "argv": [*argv, *words[1:]]}
    argv += ["--processed-data-dir", str(world / "cache"), "--max-length", "128", "--max-prompt-length", "64"]
    argv += ["--total-iters", "1", "--batch-size", "4"]
    if flags[0] == "breaks":
        breaks = {"rank": RANKS - 1, "function": flags[1], "error": flags[2]}
        return {"name": name, "entry": "distillation", "argv": argv, "breaks": breaks}
    return {"name": name, "entry": "distillation", "argv": argv + words}


def other_jobs(world: Path) -> list[dict]:
    """A bug on rank 0, and a run that goes well, its teacher with more ids than the student."""
    bug = job(world, "one rank's files")
    breaks = {"rank": 0, "function": "preflight.checks.Preflight.describe_models", "error": "RuntimeError"}
    bug |= {"name": BUG, "breaks": breaks}
    good = job(world, "no teacher")["argv"] + ["--teacher-model-path", str(world / "wide_teacher")]
    good += ["--data-dir", str(world / "long"), "--save-dir", str(world / "cache/run")]
    return [bug, {"name": LONG, "argv": good}]


def fingerprint(world: Path) -> dict[str, str]:
    """Every file, but for the cache of tokenised rows and what a run that got as far as its log may write."""
    files = [path for path in world.rglob("*") if path.is_file()]
    files = [path for path in files if not {"cache", "run", "__pycache__"} & set(path.relative_to(world).parts)]
    return {str(path.relative_to(world)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def ends(world, tmp_path_factory) -> dict[str, list[dict]]:
    """How every case ended on every rank."""
    before, out = fingerprint(world), tmp_path_factory.mktemp("ends")
    run_jobs(out, RANKS, [job(world, name) for name in TABLE] + other_jobs(world))
    assert fingerprint(world) == before, "something was damaged"
    assert not list((world / "run").glob("epoch*")), "something was trained"
    return {name: json.loads((out / f"{name}.json").read_text()) for name in [*TABLE, BUG]}


@pytest.mark.parametrize("case", TABLE)
def test_a_mistake_stops_every_rank_with_one_clear_message(world, ends, case):
    assert [rank["code"] for rank in ends[case]] == [2] * RANKS
    first, *others = (rank["stderr"] for rank in ends[case])
    lines = [line for line in first.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, first
    for part in TABLE[case][1]:
        assert part.replace("{W}", str(world)) in lines[0]
    assert not any("error: " in other for other in others), "said once"
    assert not any("Traceback" in rank["stderr"] for rank in ends[case])
    assert max(rank["seconds"] for rank in ends[case]) < SECONDS
    assert not (world / MARKER).exists()


def test_a_bug_on_one_rank_stops_the_others_too(ends):
    first, second = (rank["code"] for rank in ends[BUG])
    assert first == "RuntimeError: broken on purpose"
    assert second == "OtherRankFailed: rank 0: RuntimeError('broken on purpose')"


def test_a_row_longer_than_the_limits_is_cut_and_counted(world, ends):
    log = " ".join((world / "cache/run/train.log").read_text().split())
    assert re.search(
        r"[1-9]\d* prompts cut to --max-prompt-length 64, 1 responses to --max-length 128; 0 rows keep", log
    )


def test_the_mass_of_dropped_ids_is_measured_on_dev(world, ends):
    log = (world / "cache/run/train.log").read_text()
    (mass,) = re.findall(r"teacher gives (\S+) of its probability on dev to the 24 ids that are dropped", log)
    teacher = AutoModelForCausalLM.from_pretrained(world / "wide_teacher")
    args = DataArguments(
        str(world / "long"), max_length=128, max_prompt_length=64, processed_data_dir=str(world / "cache")
    )
    dev = load_instruction_data(world / "long/dev.jsonl", AutoTokenizer.from_pretrained(world / "student"), args)
    masses = []
    for example in (dev[i] for i in range(len(dev))):
        ids = torch.tensor([[*example.prompt_ids, *example.response_ids]])
        with torch.no_grad():
            probabilities = teacher(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1].softmax(-1)
        masses += probabilities[:, -24:].sum(-1).tolist()
    assert 0.001 < float(mass) == pytest.approx(sum(masses) / len(masses), rel=0.01)


@pytest.mark.parametrize("launcher", ["python", "deepspeed"])
def test_a_taken_port_is_named(world, launcher):
    with socket.socket() as other_run:
        other_run.bind(("127.0.0.1", 0))
        other_run.listen()
        port = str(other_run.getsockname()[1])
        words, ranks = [], {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        if launcher == "deepspeed":
            words, ranks = ["-m", "deepspeed.launcher.runner", "--num_gpus", str(RANKS), "--master_port", port], {}
        command = [sys.executable, *words, "code/distillation.py", *job(world, "out of range")["argv"][:-2]]
        done = run(command, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **ranks)
    assert done.returncode == 2, done.stderr
    assert f"error: MASTER_ADDR=127.0.0.1 MASTER_PORT={port}: " in done.stderr and "set MASTER_PORT to a" in done.stderr
    assert "Traceback" not in done.stderr
