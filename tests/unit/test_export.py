"""What leaves: merged weights, files that other programs read, the model card, GGUF, the hub."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.tiny import llama, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import export
import exporting.hub
import models.loading
from data_utils.prompts import prompt_template, record_template, recorded_template
from data_utils.prompts.chat import SHIPPED
from data_utils.rows import parse
from exporting.gguf_file import check_gguf
from exporting.portable import make_portable
from models.card import CARD, SetScore, model_card, origin
from models.loading import load_trained
from models.usage import QUESTION
from training.provenance import record_rows

IDS = torch.arange(5, 45)[None]
CHECKPOINT = "epoch2_step6_loss1.2345_rougel20.5000"
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
# A process without PEFT: importing it fails, as if it were not installed.
WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for name in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.save(model(torch.arange(5, 45)[None]).logits, f"{name}.pt")
    assert AutoTokenizer.from_pretrained(name).eos_token == "<eos>"
assert "peft" not in [name for name, module in sys.modules.items() if module is not None]
"""


def random_adapter(base: Path, folder: Path, targets: list[str]) -> PeftModel:
    """An adapter that changes the logits, saved as training saves it."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules=targets)
    adapted = get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted


@pytest.fixture
def run(tiny, tmp_path):
    """The folder of a KD run of LoRA on student_tied, with one checkpoint."""
    folder = tmp_path / "runs/todi"
    random_adapter(tiny / "student_tied", folder / CHECKPOINT, ALL_LINEAR)
    AutoTokenizer.from_pretrained(tiny / "student_tied").save_pretrained(folder / CHECKPOINT)
    flags = {
        "model_path": str(tiny / "student_tied"), "teacher_model_path": str(tiny / "teacher"), "kd_objective": "todi",
        "kd_rate": 0.5, "kd_temperature": 2.0, "lr": 0.001, "num_epochs": 2, "peft": "lora", "peft_lora_r": 4,
        "run": {"versions": {"torch": "2.0"}, "ranks": 2, "command": ["secret"],
                "rows": {"train": {"instruction, input, output": 1200, "messages": 100}}}, "deepspeed": {},
    }  # fmt: skip
    (folder / "args.json").write_text(json.dumps(flags))
    return folder


def trained_logits(run: Path, base: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_trained(str(base), str(run / CHECKPOINT), None, torch.float32)(IDS).logits


def export_run(run: Path, out: Path, *flags: str) -> Path:
    export.main(["--model-path", str(run), "--save-dir", str(out), *flags])
    return out


def refused(run: Path, out: Path, *flags: str) -> None:
    with pytest.raises(SystemExit) as end:
        export_run(run, out, *flags)
    assert end.value.code == 2


# ---- logits ----------------------------------------------------------------------------------------------------------


def test_exported_adapters_give_the_trained_logits_without_peft(tiny, run, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny / "student_tied")
    expected = {}
    for targets in (ALL_LINEAR, ["embed_tokens", "q_proj"], ["lm_head", "q_proj"]):
        shutil.rmtree(run / CHECKPOINT)
        random_adapter(tiny / "student_tied", run / CHECKPOINT, targets)
        out = export_run(run, tmp_path / targets[0])
        expected[targets[0]] = trained_logits(run, tiny / "student_tied")
        assert (base(IDS).logits - expected[targets[0]]).abs().max() > 0.1  # the adapter matters
        tied = json.loads((out / "config.json").read_text())["tie_word_embeddings"]
        assert tied == (targets == ALL_LINEAR) and not list(out.glob("adapter*"))
    command = [sys.executable, "-c", WITHOUT_PEFT, *expected]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=600)
    for name, logits in expected.items():
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.pt"), logits, atol=1e-5, rtol=0)


def test_an_exported_chat_adapter_stops_at_the_end_of_a_turn(run, tmp_path):
    """The adapter's tokenizer knows the end of a turn, the generation config of its base does not."""
    tokenizer = AutoTokenizer.from_pretrained(run / CHECKPOINT)
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}<pad>{% endfor %}"
    tokenizer.save_pretrained(run / CHECKPOINT)
    record_template(prompt_template("chat", tokenizer), run / CHECKPOINT)
    out = export_run(run, tmp_path / "out")
    ends = GenerationConfig.from_pretrained(out).eos_token_id
    assert tokenizer.eos_token == "<pad>" and tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
    assert recorded_template(out) == "chat", "so that an evaluation of the export asks as training did"


def test_half_precision_is_what_was_asked_for(run, tmp_path, capsys):
    out = export_run(run, tmp_path / "out", "--dtype", "bfloat16")
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    printed = capsys.readouterr().out
    assert "rounded to bfloat16: mean KL to the model in fp32" in printed
    assert "written and loaded again: logits off by 0.0e+00" in printed


def test_a_wrong_merge_is_not_written(run, tmp_path, monkeypatch, capsys):
    right = models.loading.merge_adapter

    def wrong(model, path):
        merged = right(model, path)
        merged.model.layers[0].mlp.up_proj.weight.data[0, 0] += 0.5
        return merged

    monkeypatch.setattr(models.loading, "merge_adapter", wrong)
    refused(run, tmp_path / "out")
    assert "merging the adapter changes the logits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_files_that_load_as_another_model_are_not_written(run, tmp_path, monkeypatch, capsys):
    def broken(folder):
        config = json.loads((folder / "config.json").read_text())
        config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 77.0
        (folder / "config.json").write_text(json.dumps(config))
        return []

    monkeypatch.setattr(export, "make_portable", broken)
    refused(run, tmp_path / "out")
    assert "the folder loads as another model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_kept(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").touch()
    refused(run, tmp_path / "out")
    assert "it is there already" in capsys.readouterr().err and (tmp_path / "out/precious").exists()


# ---- files for Transformers 4 ----------------------------------------------------------------------------------------


def test_transformers_4_finds_its_fields(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<a>", "<b>"]})
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    model = llama(len(tokenizer), hidden=32, layers=1, tied=True, seed=0, rope_parameters=rope)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert make_portable(tmp_path) == []
    config = json.loads((tmp_path / "config.json").read_text())
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    assert (config["rope_theta"], config["rope_scaling"], config["torch_dtype"]) == (5e5, scaling, "float32")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<a>", "<b>"] and "extra_special_tokens" not in settings
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("<a> red").input_ids == tokenizer("<a> red").input_ids and again.extra_special_tokens == ["<a>", "<b>"]
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == model.config.rope_parameters


def test_rotary_embeddings_per_kind_of_layer(tmp_path):
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"rope_parameters": kinds}}))
    make_portable(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    kinds["another_kind"] = kinds["full_attention"]
    (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": kinds}))
    assert any("another_kind" in note for note in make_portable(tmp_path))


# ---- model card ------------------------------------------------------------------------------------------------------


def front_matter(card: str) -> dict:
    import yaml

    return yaml.safe_load(card.split("---")[1])


def hub_model(folder: Path, base: Path, hub_id: str) -> Path:
    """A copy of `base` as an earlier export left it."""
    shutil.copytree(base, folder)
    card = f"---\nbase_model: {hub_id}\nlicense: apache-2.0\ntags:\n- causal-lm-distillation\n---\n# it\n"
    (folder / CARD).write_text(card)
    return folder


def test_the_card_of_an_export(tiny, run, tmp_path, monkeypatch):
    start = hub_model(tmp_path / "start", tiny / "student_tied", "org/start")
    data = tmp_path / "set"
    data.mkdir()
    manifest = {
        "title": "A set", "licence": "CC BY-SA 3.0",
        "files": {"train.jsonl": {"rows": 7, "sha256": "abc"}, "dev.jsonl": {"sha256": "def"}},
        "source": {"page": "https://huggingface.co/datasets/org/set", "revision": "123"},
    }  # fmt: skip
    (data / "manifest.json").write_text(json.dumps(manifest))
    flags = json.loads((run / "args.json").read_text())
    (run / "args.json").write_text(json.dumps(flags | {"model_path": str(start), "data_dir": str(data)}))
    score = SetScore("set-valid", "rougeL", 20.0, 18.5, 21.5, 7, 2)
    monkeypatch.setattr(export, "set_scores", lambda checkpoint: [score])
    record_template(prompt_template("alpaca"), run / CHECKPOINT)
    card = (export_run(run, tmp_path / "out") / CARD).read_text()
    facts = front_matter(card)
    assert (facts["base_model"], facts["license"], facts["datasets"]) == ("org/start", "apache-2.0", ["org/set"])
    assert facts["tags"] == ["causal-lm-distillation", "distillation", "todi"]
    for words in (
        f"`{CHECKPOINT}`", "distilled from teacher", "dev ROUGE-L: 20.5000", "dev NLL, nats per token: 1.2345",
        "| set-valid | rougeL | 20.00 [18.50, 21.50] | 7 | 2 |", "| kd_temperature | 2.0 |", "| lr | 0.001 |",
        "| revision | 123 |", "7 rows, sha256 `abc`", "torch 2.0", "| `dev.jsonl` | sha256 `def` |", "## Usage",
        "| train, used here | 1,300 rows: 1,200 of `instruction, input, output`, 100 of `messages` |",
    ):  # fmt: skip
        assert words in card, words
    assert str(tmp_path) not in card and "secret" not in card
    assert origin(str(tmp_path / "out")).hub_id == "org/start"


def test_set_scores_come_from_the_evaluations_of_the_checkpoint(run):
    folder = run / "eval" / CHECKPOINT / "dolly-valid/abc"
    for seed, shift in ((10, 0.0), (20, 2.0)):
        (folder / f"seed{seed}").mkdir(parents=True)
        rows = [{"rougeL": 10.0 + shift + i % 5} for i in range(50)]
        (folder / f"seed{seed}/answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"seed{seed}/metrics.json").write_text(json.dumps({"seed": seed, "made": "2026", "rougeL": 1}))
    (folder / "settings.json").write_text("{}")
    (score,) = export.set_scores(str(run / CHECKPOINT))
    assert (score.name, score.mean, score.rows, score.seeds) == ("dolly-valid", 13.0, 50, 2)
    assert 12 < score.low < 13 < score.high < 14


def test_the_numbers_of_rows_are_recorded_for_the_card(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"lr": 0.1, "run": {"ranks": 1}}))
    record_rows(tmp_path, {"train": SimpleNamespace(forms={"messages": 1200}), "dev": None})
    run = json.loads((tmp_path / "args.json").read_text())
    assert run == {"lr": 0.1, "run": {"ranks": 1, "rows": {"train": {"messages": 1200}}}}
    card = model_card("x", run | {"data_dir": "gone"})
    assert "| train, used here | 1,200 rows: 1,200 of `messages` |" in card


def test_a_card_without_a_run(tiny):
    card = model_card("student", {}, base=str(tiny / "student"))
    assert "Not evaluated on test sets" in card and front_matter(card)["tags"][0] == "causal-lm-distillation"
    assert model_card("x", {}, base="org/model").count("org/model") >= 2


def test_a_card_names_lora_settings_of_lora_runs_only():
    flags = {"peft_lora_r": 8, "peft_lora_alpha": 32, "lr": 0.1}
    assert "peft_lora" not in model_card("x", flags) and "| lr | 0.1 |" in model_card("x", flags)
    assert "| peft_lora_r | 8 |" in model_card("x", flags | {"peft": "lora"})


def test_every_checkpoint_carries_its_card(tiny, tmp_path):
    import training.checkpoints as checkpoints

    tokenizer = AutoTokenizer.from_pretrained(tiny / "student")
    (tmp_path / "args.json").write_text(json.dumps({"model_path": str(tiny / "student"), "lr": 0.25}))
    model = AutoModelForCausalLM.from_pretrained(tiny / "student")
    alpaca = prompt_template("alpaca")
    checkpoints.save_checkpoint(model, tokenizer, tmp_path / "epoch1_step2_loss3.0000", alpaca)
    card = (tmp_path / "epoch1_step2_loss3.0000" / CARD).read_text()
    assert "| lr | 0.25 |" in card and "dev NLL, nats per token: 3.0000" in card
    assert alpaca.render("{instruction}", "{input}") in card
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    checkpoints.save_checkpoint(adapted, tokenizer, tmp_path / "epoch2_step4_loss2.0000")
    card = (tmp_path / "epoch2_step4_loss2.0000" / CARD).read_text()
    assert front_matter(card)["library_name"] == "peft" and front_matter(card)["base_model_relation"] == "adapter"


@pytest.mark.parametrize("name", ["alpaca", "none", SHIPPED])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_snippet_of_a_card_asks_as_training_did(tiny, tmp_path, root, monkeypatch, name, adapter):
    monkeypatch.chdir(root)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "student")
    template = prompt_template(name, tokenizer)
    if adapter:
        random_adapter(tiny / "student", tmp_path, ["q_proj"])
    else:
        AutoModelForCausalLM.from_pretrained(tiny / "student").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    card = model_card("x", {"max_length": 40, "max_prompt_length": 32}, adapter=adapter, template=template)
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    exec(card.split("```python\n")[1].split("```")[0], known)
    prompt = known["tokenizer"].decode(known["inputs"]["input_ids"][0])
    row = parse(json.dumps({"instruction": QUESTION, "output": "x"}), "x:1", template)
    assert prompt == row.prompt and known["answer"].shape[1] <= len(known["inputs"]["input_ids"][0]) + 8
    placeholder = "{question}" if template.takes_chats else "{instruction}"
    assert f"~~~~text\n{prompt.replace(QUESTION, placeholder)}\n~~~~" in card
    assert ("it needs the package `peft`" in card) == adapter


@pytest.mark.parametrize("path", ["/gone/model", "outputs/gone", "a/b/c", "./x", "runs/lr--1e-4", "a/x.git"])
def test_a_folder_that_is_gone_is_no_hub_id(path):
    assert origin(path).hub_id is None and origin("org/name").hub_id == "org/name"
    assert "base_model:" not in model_card("x", {"model_path": path})


def test_a_broken_manifest_or_card_costs_no_checkpoint(tiny, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    (tmp_path / CARD).write_text("---\n- : [\n---\n")
    card = model_card("x", {"data_dir": str(tmp_path), "model_path": str(tmp_path)})
    assert "| manifest.json | cannot be read |" in card


# ---- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_file_has_the_tensors_and_the_tokenizer(tiny, tmp_path, dtype):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    out = export_run(tiny / "student", tmp_path / "out", "--gguf", "--dtype", dtype)
    reader = gguf.GGUFReader(out / "out.gguf")
    weights = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert len(found) == len(weights)
    for name, weight in weights.items():
        tensor = found[names.get_name(name, try_suffixes=(".weight",))]
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).reshape(weight.shape)
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:  # undo what llama.cpp does to queries and keys: adjacent pairs, not halves
            values = torch.cat([torch.cat([head[0::2], head[1::2]]) for head in values.chunk(heads)])
        assert torch.equal(values, weight), name
    value = {name: field.contents() for name, field in reader.fields.items()}
    assert (value["llama.block_count"], value["llama.attention.head_count_kv"], value["llama.rope.freq_base"]) == (
        2,
        2,
        1e4,
    )
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert value["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert (value["tokenizer.ggml.pre"], value["tokenizer.ggml.eos_token_id"]) == ("gpt-2", tokenizer.eos_token_id)
    assert value["tokenizer.ggml.token_type"][:3] == [3, 3, 1] and not value["tokenizer.ggml.add_bos_token"]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert value["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges]


def test_what_gguf_cannot_say_is_refused(tiny, run, tmp_path, monkeypatch, capsys):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "student")
    config = AutoConfig.from_pretrained(tiny / "student")
    if importlib.util.find_spec("gguf") is None:
        refused(run, tmp_path / "out", "--gguf")
        assert "the package gguf is not installed" in capsys.readouterr().err
        monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace())
    assert check_gguf("--gguf", config, tokenizer) == "gpt-2"
    config.model_type = "qwen3"
    with pytest.raises(ValueError, match=r"type qwen3; only llama .* python convert_hf_to_gguf.py"):
        check_gguf("--gguf", config, tokenizer)
    config.model_type, config.rope_parameters["rope_type"] = "llama", "yarn"
    with pytest.raises(ValueError, match="scaled rotary embeddings"):
        check_gguf("--gguf", config, tokenizer)
    config.rope_parameters["rope_type"] = "default"
    tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    with pytest.raises(ValueError, match="the tokenizer is not one of gpt-2, smollm, llama-bpe"):
        check_gguf("--gguf", config, tokenizer)


# ---- hub and commands ------------------------------------------------------------------------------------------------


class Hub:
    """A stub of huggingface_hub.HfApi that records what is uploaded."""

    calls: list = []  # noqa: RUF012
    failure: Exception | None = None

    def whoami(self):
        if self.failure:
            raise self.failure

    def create_repo(self, name, **options):
        self.calls.append((name, options))
        return f"https://hub/{name}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture
def hub(monkeypatch):
    stub = type("Stub", (Hub,), {"calls": []})
    monkeypatch.setattr(exporting.hub, "HfApi", stub)
    return stub


def test_push_uploads_the_complete_folder(run, tmp_path, hub, capsys):
    out = export_run(run, tmp_path / "out", "--push-to-hub", "org/name")
    assert hub.calls[0] == ("org/name", {"private": True, "exist_ok": True})
    assert hub.calls[1] == ("org/name", sorted(path.name for path in out.iterdir()))
    assert {CARD, "config.json", "model.safetensors", "tokenizer.json"} <= set(hub.calls[1][1])
    assert "uploaded, private: https://hub/org/name" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["name", "org/a name", "a/b/c"])
def test_a_wrong_repository_is_refused_before_anything_is_loaded(run, tmp_path, hub, name, capsys):
    refused(run, tmp_path / "out", "--push-to-hub", name)
    assert f"--push-to-hub {name}: " in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_nobody_logged_in(run, tmp_path, hub, capsys):
    hub.failure = OSError("401 Client Error\nmore")
    refused(run, tmp_path / "out", "--push-to-hub", "org/name")
    assert "(401 Client Error); run hf auth login, or set HF_TOKEN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_commands_name_absolute_paths(tiny, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export_run(run, Path("my out"))
    printed = capsys.readouterr().out
    out = tmp_path / "my out"
    assert f"vllm serve '{out}'" in printed
    draft = f'{{"method": "draft_model", "model": "{out}", "num_speculative_tokens": 5}}'
    assert f"vllm serve {tiny / 'teacher'} --speculative-config '{draft}'" in printed
    assert f"python convert_hf_to_gguf.py '{out}' --outfile '{out}/my out.gguf'" in printed
