"""Students cut out of a teacher."""

import json

import pytest
import torch
from tests.tiny import llama, make_rows, make_tokenizer
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

import make_student
from models.cutting import even_layers
from models.loading import load_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(12)))
    return folder


@pytest.fixture
def teacher(tmp_path):
    tokenizer = make_tokenizer()
    model = llama(len(tokenizer), hidden=32, layers=5, tied=True, seed=0)
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return model.eval()


def cut(tmp_path, data, *flags):
    make_student.main(
        [*("--model-path", str(tmp_path / "teacher")), *("--save-dir", str(tmp_path / "student")), *flags]
    )
    origin = json.loads((tmp_path / "student" / "origin.json").read_text())
    return load_checkpoint(str(tmp_path / "student"))[0], origin


IDS = torch.arange(20)[None] + 5


def test_layers_that_are_named_stay(tmp_path, teacher, data):
    student, origin = cut(tmp_path, data, "--keep-layers", "0", "3", "4", "--data-dir", str(data))
    teacher.model.layers = torch.nn.ModuleList(teacher.model.layers[i] for i in (0, 3, 4))
    teacher.config.num_hidden_layers = 3
    torch.testing.assert_close(student(IDS).logits, teacher(IDS, use_cache=False).logits)
    assert origin["layers"] == [0, 3, 4] and origin["nll_before"] != origin["nll"]


def test_the_student_generates_with_a_cache(tmp_path, teacher, data):
    student, _ = cut(tmp_path, data, "--layers", "3")
    with_cache = student.generate(IDS, max_new_tokens=8, do_sample=False, eos_token_id=None)
    without = student.generate(IDS, max_new_tokens=8, do_sample=False, eos_token_id=None, use_cache=False)
    assert with_cache.tolist() == without.tolist()


def test_even_layers_have_both_ends():
    assert even_layers(30, 4) == [0, 10, 19, 29]
    assert even_layers(5, 5) == [0, 1, 2, 3, 4]
    assert even_layers(5, 1) == [0]


def test_the_layer_without_effect_goes_first(tmp_path, teacher, data):
    for weight in (teacher.model.layers[2].self_attn.o_proj.weight, teacher.model.layers[2].mlp.down_proj.weight):
        torch.nn.init.zeros_(weight)
    teacher.save_pretrained(tmp_path / "teacher")
    student, origin = cut(tmp_path, data, "--layers", "4", "--choose", "least-effect", "--data-dir", str(data))
    assert origin["layers"] == [0, 1, 3, 4]
    assert origin["nll"] == pytest.approx(origin["nll_before"])
    torch.testing.assert_close(student(IDS).logits, teacher(IDS).logits)


def test_heads_and_neurons_without_activation_go_first(tmp_path, teacher, data):
    for layer in teacher.model.layers:
        torch.nn.init.zeros_(layer.self_attn.v_proj.weight[8:])  # the second key-value head, of heads 2 and 3
        torch.nn.init.zeros_(layer.mlp.up_proj.weight[::2])
    teacher.save_pretrained(tmp_path / "teacher")
    student, origin = cut(tmp_path, data, "--heads", "2", "--ffn-size", "32", "--data-dir", str(data))
    assert student.config.num_key_value_heads == 1 and student.config.head_dim == 8
    assert origin["student_parameters"] < origin["parameters"]
    torch.testing.assert_close(student(IDS).logits, teacher(IDS).logits)


def test_lists_of_the_config_are_cut_with_the_layers(tmp_path, data):
    tokenizer = make_tokenizer()
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    student, _ = cut(tmp_path, data, "--keep-layers", "0", "3")
    assert student.config.layer_types == ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "5"], "--layers 5: the model has 5; pass fewer"),
        (["--keep-layers", "0", "7"], "name some of 0 to 4"),
        (["--heads", "3", "--data-dir", "DATA"], "--heads 3: the model has 4, 2 per key; pass fewer, a multiple of 2"),
        (["--ffn-size", "64", "--data-dir", "DATA"], "--ffn-size 64: the model has 64; pass fewer"),
        (["--ffn-size", "8"], "--data-dir None: the choice is made on the rows of a dev.jsonl"),
        ([], "say what to cut"),
    ],
)
def test_wrong_input_is_named(tmp_path, teacher, data, flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        cut(tmp_path, data, *(str(data) if flag == "DATA" else flag for flag in flags))
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_heads_of_another_architecture_are_refused(tmp_path, data, capsys):
    tokenizer = make_tokenizer()
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=4)).save_pretrained(
        tmp_path / "teacher"
    )
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(SystemExit):
        cut(tmp_path, data, "--heads", "2", "--data-dir", str(data))
    assert "the layers of a model of type gpt2 have no q_proj" in capsys.readouterr().err
    student, _ = cut(tmp_path, data, "--layers", "2")
    assert student.config.num_hidden_layers == 2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student")(IDS).logits.shape[1] == 20
