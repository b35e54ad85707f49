"""What the probes find out about tiny random models of many families: can they be packed, can they be cut."""

from functools import cache

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    OPTConfig,
    Qwen2MoeConfig,
    Qwen3NextConfig,
)
from transformers.masking_utils import sdpa_mask

from data_utils.batches import Example, collate
from models import cpu
from models.cpu import BY_EXAMPLE
from models.heads import LanguageModelHead, ModelLogits
from models.packing import unwrap_peft
from models.probes import batch_layout, packing_is_exact, split

VOCAB = 97
IDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
LAYERS = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **IDS}
SIZES = LAYERS | {"intermediate_size": 64, "max_position_embeddings": 128, "initializer_range": 0.3}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2_SIZES = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3, **IDS}

# One per kind of architecture. Windows are shorter than the examples, so that a wrong mask shows.
PACKABLE = {
    "gpt2": lambda: GPT2Config(**GPT2_SIZES),
    "llama": lambda: LlamaConfig(**GROUPED),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=4),
    "qwen2_moe": lambda: Qwen2MoeConfig(  # makes a window's mask and does not tell the attention
        **GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=0, num_experts=2, num_experts_per_tok=1
    ),
    "gemma2": lambda: Gemma2Config(**GROUPED, head_dim=8, sliding_window=4, final_logit_softcapping=3.0),
    "gemma3": lambda: Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=4),
    "granite": lambda: GraniteConfig(**GROUPED, logits_scaling=3.0),
    "cohere": lambda: CohereConfig(**GROUPED, logit_scale=0.3),
}
# Positions counted from the mask, and ALiBi, do not see where one example of a row ends.
NOT_PACKABLE = {
    "opt": lambda: OPTConfig(**LAYERS, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=128, init_std=0.3),
    "bloom": lambda: BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, **IDS),
    "falcon": lambda: FalconConfig(**LAYERS, initializer_range=0.3),
}
CONFIGS = PACKABLE | NOT_PACKABLE
# The families with both attention implementations; the others have eager alone.
ATTENTION = [(name, "eager") for name in CONFIGS] + [(n, "sdpa") for n in CONFIGS if n not in ("gemma2", "bloom")]
every_model = pytest.mark.parametrize("name, attention", ATTENTION)
pytestmark = pytest.mark.usefixtures("one_thread")


def build(name, attention="eager"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=attention).eval()


model_of = cache(build)


def build_lora(*targets, **config):
    torch.manual_seed(0)
    return get_peft_model(build("llama"), LoraConfig(target_modules=list(targets), init_lora_weights=False, **config))


# Packing


@every_model
def test_packing_and_heads_of_every_family(name, attention):
    model = model_of(name, attention)
    head = split(model).head
    assert packing_is_exact(model) == (name in PACKABLE)
    assert type(head) is LanguageModelHead and head.linear is model.get_output_embeddings()


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_does_not_decide(name, dtype):
    model = build(name).to(dtype)
    assert packing_is_exact(model) == (name in PACKABLE)
    assert type(split(model).head) is LanguageModelHead


DELTA_NET = {"linear_num_key_heads": 2, "linear_num_value_heads": 4} | dict.fromkeys(
    ("linear_key_head_dim", "linear_value_head_dim", "head_dim"), 8
)
HYBRID = {"layer_types": ["linear_attention", "full_attention"], **DELTA_NET}
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
WEAK = {"initializer_range": 0.03}  # little is seen of the neighbour: less than half precision rounds
LEAKING = {
    "bloom": lambda: BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, **WEAK, **IDS),
    "qwen3_next": lambda: Qwen3NextConfig(**GROUPED | WEAK, **HYBRID, num_experts=0),
    "falcon_h1": lambda: FalconH1Config(**GROUPED | WEAK, **MAMBA),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LEAKING)
def test_a_model_that_sees_little_of_the_neighbours_is_not_packed(name, dtype):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LEAKING[name](), attn_implementation="eager").to(dtype)
    assert not any(packing_is_exact(model, layout) for layout in ("packed", "packed into one row"))


# Example by example


def one_row_and_alone(model, batch):
    """Logits of packed examples, and of each alone with plain sdpa, at the response positions."""
    inputs = {"input_ids": batch.input_ids_RT, "position_ids": batch.position_ids_RT, "use_cache": False}
    logits_NV = model(**inputs).logits.flatten(0, 1)[batch.response_positions]
    model.set_attn_implementation("sdpa")
    alone = [collate([example], 0, 1, "padded") for example in batch.examples]
    alone_NV = [model(input_ids=one.input_ids_RT).logits[0, one.response_positions] for one in alone]
    return logits_NV, torch.cat(alone_NV)


@pytest.mark.parametrize("name", [name for name, attention in ATTENTION if attention == "sdpa"])
def test_on_a_cpu_packed_examples_attend_one_by_one(name):
    """OPT too, whose own mask does not see where an example ends."""
    model = build(name, "sdpa")
    layout = batch_layout([model])
    if name == "falcon":
        assert layout == "padded" and model.config._attn_implementation == "sdpa"
        return
    assert layout == "packed into one row" and model.config._attn_implementation == BY_EXAMPLE
    ids = torch.randint(2, VOCAB, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    examples = [Example(ids[:5], ids[5:17]), Example(ids[17:18], ids[18:19]), Example(ids[19:22], ids[22:])]
    together, alone = one_row_and_alone(model, collate(examples, 0, 64, layout))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window, masks", [(100, 0), (16, 0), (15, 1), (1, 1)])
@pytest.mark.parametrize("name", ["gemma3", "qwen2_moe"])
def test_a_window_needs_a_mask_where_an_example_is_longer(name, window, masks, monkeypatch):
    """And not where the row is. The longest of 3 examples in a row of 44 has 16 tokens."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.sliding_window = window
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    assert batch_layout([model]) == "packed into one row"
    ids = torch.randint(2, VOCAB, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    cuts = [(0, 3, 12), (12, 14, 28), (30, 33, 46)]
    batch = collate([Example(ids[a:b], ids[b:c]) for a, b, c in cuts], 0, 64, "packed into one row")
    made = []
    monkeypatch.setattr(cpu, "sdpa_mask", lambda **given: made.append(given) or sdpa_mask(**given))
    together, alone = one_row_and_alone(model, batch)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert len(made) == masks


def test_all_models_attend_by_example_or_none():
    llama, falcon, opt = (build(name, "sdpa") for name in ("llama", "falcon", "opt"))
    assert batch_layout([llama, falcon]) == "padded"
    assert batch_layout([opt]) == "packed into one row"
    assert batch_layout([opt, build("llama", "eager")]) == "padded"
    assert batch_layout([llama, build("llama", "eager")]) == "packed"
    assert [model.config._attn_implementation for model in (llama, falcon, opt)] == ["sdpa"] * 3


def test_rows_of_a_model_that_makes_its_own_mask_keep_their_own_borders():
    opt = build("opt", "sdpa").double()
    opt.set_attn_implementation(BY_EXAMPLE)
    ids = torch.randint(2, VOCAB, (2, 12), generator=torch.Generator().manual_seed(3))
    positions = torch.stack([torch.arange(12), torch.cat([torch.arange(5), torch.arange(7)])])
    found = []
    for implementation in (BY_EXAMPLE, "sdpa"):
        opt.set_attn_implementation(implementation)
        found.append(opt(input_ids=ids, position_ids=positions).logits)
    assert torch.equal(*found)


def test_padded_batches_and_generation_are_those_of_sdpa():
    model, ids = build("mistral", "sdpa"), torch.randint(2, VOCAB, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[2, :1] = 0
    found = []
    for implementation in ("sdpa", BY_EXAMPLE):
        model.set_attn_implementation(implementation)
        answers = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
        one = model.generate(ids[1:2], max_new_tokens=8, do_sample=False)
        found.append((model(input_ids=ids, attention_mask=mask).logits, answers, one))
    for sdpa, ours in zip(*found):
        assert torch.equal(sdpa, ours)


def test_gradients_with_checkpointing_are_the_same():
    examples = [Example([5, 6, 7], [8, 9, 10, 11]), Example([4, 3], [2, 12])]
    gradients = []
    for checkpointing in (False, True):
        model = build("llama", "sdpa").double().train()
        batch = collate(examples, 0, 64, batch_layout([model]))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=batch.input_ids_RT, position_ids=batch.position_ids_RT, use_cache=False).logits.sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*gradients)


def test_the_attention_is_not_saved(tmp_path):
    model = build("llama", "sdpa")
    assert batch_layout([model]) == "packed into one row"
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


class OfOtherShapes(LlamaForCausalLM):
    """Differences of the size that bf16 makes in a model of thirty layers, where rows of another length take another
    kernel: 0.045 of the logits' spread, and several times that at the worst of all entries."""

    def seed(self, ids_RT):
        return ids_RT.shape[1]

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids, **kwargs)
        noise = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(self.seed(input_ids)))
        output.logits = output.logits + 0.045 * output.logits.std() * noise.to(output.logits.dtype)
        return output


class OfOtherIds(OfOtherShapes):
    """The same in a mixture of experts, where the ids decide the shapes of the products."""

    def seed(self, ids_RT):
        return int(ids_RT.sum())


@pytest.mark.parametrize("model_class", [OfOtherShapes, OfOtherIds])
def test_the_rounding_of_a_deep_bf16_model_does_not_decide(model_class):
    torch.manual_seed(0)
    assert packing_is_exact(model_class(PACKABLE["llama"]()).bfloat16())


def test_probing_changes_neither_mode_nor_random_numbers():
    model = build("gpt2").train()
    assert model.config.resid_pdrop > 0
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert packing_is_exact(model) and type(split(model).head) is LanguageModelHead
    assert model.training and torch.equal(torch.rand(3), expected)
    model.eval()
    assert packing_is_exact(model) and not model.training


class WithoutPositions(LlamaForCausalLM):
    """A forward that does not know `position_ids`."""

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_a_forward_without_position_ids_is_not_packed():
    torch.manual_seed(0)
    assert not packing_is_exact(WithoutPositions(PACKABLE["llama"]()))


# Hidden states, however the examples are laid out


def examples():
    """Every response token is another id, so that a label says which position it belongs to. One has no response."""
    lengths = [(5, 4), (3, 9), (11, 2), (1, 6), (4, 0), (2, 1), (0, 5), (7, 7)]
    ids = iter(torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0)).tolist())
    responses = [[next(ids) for _ in range(response)] for _, response in lengths]
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(VOCAB, (prompt,), generator=draw).tolist() for prompt, _ in lengths]
    return [Example(prompt, response) for prompt, response in zip(prompts, responses)]


@cache
@torch.no_grad()
def one_at_a_time(name, attention):
    """States and logits at the positions that predict a response token, by that token; one example per call."""
    model = model_of(name, attention)
    states, logits, labels = [], [], []
    for example in examples():
        first = max(1, len(example.prompt_ids))
        input_ids = torch.tensor([[*example.prompt_ids, *example.response_ids]])
        states.append(model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0, first - 1 : -1])
        logits.append(model(input_ids=input_ids, use_cache=False).logits[0, first - 1 : -1])
        labels.append(input_ids[0, first:])
    order = torch.cat(labels).argsort()
    return torch.cat(states)[order], torch.cat(logits)[order], torch.cat(labels)[order]


LAYOUTS = ("packed into one row", 30), ("packed", 30), ("packed", 1), ("padded", 1000)


@every_model
@torch.no_grad()
def test_every_layout_gives_the_same_states_and_logits(name, attention):
    model = split(model_of(name, attention))
    states_ND, logits_NV, labels_N = one_at_a_time(name, attention)
    for layout, max_length in LAYOUTS:
        if name in NOT_PACKABLE and layout != "padded":
            continue
        batch = collate(examples(), 0, max_length, layout)
        order = batch.labels_N.argsort()
        assert torch.equal(batch.labels_N[order], labels_N)
        actual_ND = model.states(batch)[order]
        torch.testing.assert_close(actual_ND, states_ND, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.head.finish(model.head.project(actual_ND)), logits_NV, rtol=1e-4, atol=1e-3)


# Heads


def test_lora_beside_the_head_leaves_it_a_plain_layer():
    model = build_lora("q_proj", "down_proj")
    head = split(model).head
    assert type(head) is LanguageModelHead and head.linear is unwrap_peft(model).lm_head
    assert packing_is_exact(model)


class ScaledLogits(LlamaForCausalLM):
    """A head with a step that no config key tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 1.1 * output.logits
        return output


def scaled_logits():
    torch.manual_seed(0)
    return ScaledLogits(PACKABLE["llama"]()).eval()


UNUSUAL = {
    "LoRA on the head": lambda: build_lora("lm_head", "q_proj"),
    "a copy of the head": lambda: build_lora("q_proj", modules_to_save=["lm_head"]),
    "a step of its own": scaled_logits,
}


@pytest.mark.parametrize("size", [None, 80])
@pytest.mark.parametrize("unusual", UNUSUAL)
@torch.no_grad()
def test_an_unusual_head_falls_back_to_the_models_own_logits(unusual, size):
    model = UNUSUAL[unusual]().eval()
    cut = split(model, size)
    assert type(cut.head) is ModelLogits
    for layout, max_length in LAYOUTS:
        batch = collate(examples(), 0, max_length, layout)
        actual_NV = cut.head.finish(cut.head.project(cut.states(batch)))
        inputs = {"attention_mask": batch.attention_mask_RT, "position_ids": batch.position_ids_RT, "use_cache": False}
        expected_RTV = model(input_ids=batch.input_ids_RT, **inputs).logits
        assert actual_NV.shape == (len(batch.labels_N), size or VOCAB)
        expected_NV = expected_RTV.flatten(0, 1)[batch.response_positions, :size]
        torch.testing.assert_close(actual_NV, expected_NV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("nothing", [[], [Example([5, 6], [])]], ids=["no example", "no response"])
def test_own_logits_of_no_positions(nothing):
    model = split(scaled_logits())
    assert model.states(collate(nothing, 0, 10, "packed")).shape == (0, VOCAB)
