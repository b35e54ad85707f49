"""The generators behind --generator: same answers, finished rows leave, samples by row, what each cannot do."""

import logging
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar
from weakref import WeakSet

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    AutoTokenizer,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from arguments import EvaluateArguments, GenerationArguments, ModelArguments, parse_evaluate_arguments
from data_utils.dataset import Row
from evaluation.defaults import Checkpoint
from evaluation.settings import evaluation_settings
from generation import dropping, transformers_generator, vllm_generator
from generation.building import batch_tokens, build_generator, cache_bytes_per_token, check_generator
from generation.transformers_generator import TransformersGenerator
from models.loading import load_checkpoint, load_student

IN_PROCESS = ("dropping", "transformers", "continuous")
NEW_TOKENS = 12
VOCABULARY = 120
WARPERS = {"temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper}
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDER = SIZES | {"num_key_value_heads": 2, "intermediate_size": 64, "initializer_range": 0.2}
OTHER_MODELS = {
    "GPT-2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    ),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**WIDER, sliding_window=6)),
    "convolution and attention": lambda: Lfm2ForCausalLM(
        Lfm2Config(**WIDER, full_attn_idxs=[1], block_multiple_of=8, conv_L_cache=3)
    ),
}


@pytest.fixture(scope="module")
def student(tiny):
    return load_checkpoint(str(tiny / "student"))


@pytest.fixture(scope="module")
def prompts():
    draw = torch.Generator().manual_seed(4)
    return [torch.randint(2, VOCABULARY, (length,), generator=draw).tolist() for length in (9, 3, 30, 4, 14, 3, 20, 7)]


def ending_with(tokenizer, eos: int, pad_too: bool = False):
    ending = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    ending.add_special_tokens({"eos_token": ending.convert_ids_to_tokens(eos)})
    if pad_too:
        ending.pad_token = ending.eos_token
    return ending


def generate(model, tokenizer, prompts, seeds=(1,), batch_size=8, new_tokens=NEW_TOKENS, **flags):
    """Answers of each seed."""
    tokens = batch_size * (max(map(len, prompts), default=0) + new_tokens)
    args = GenerationArguments(**flags)
    built = build_generator(model, tokenizer, args, max_new_tokens=new_tokens, tokens_per_batch=tokens)
    answers = built.generate(prompts, seeds)
    assert list(answers) == list(seeds)
    return answers[seeds[0]] if len(seeds) == 1 else answers


def early_eos(answers) -> int:
    """A token that ends some answers and not all, and not all in the same step."""
    places = Counter(token for ids in answers for token in set(ids[:-2]))
    return next(token for token, count in places.most_common() if 2 <= count < len(answers))


@pytest.fixture
def sizes(monkeypatch):
    """Rows of each forward pass."""
    seen, forward = [], dropping.forward
    record = lambda model, ids, *rest, **part: seen.append(len(ids)) or forward(model, ids, *rest, **part)  # noqa: E731
    monkeypatch.setattr(dropping, "forward", record)
    return seen


# --- greedy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad_too", [False, True], ids=["PAD", "PAD is EOS"])
@pytest.mark.parametrize("name", IN_PROCESS)
def test_greedy_answers_are_those_of_generate(student, prompts, name, pad_too):
    model, tokenizer = student
    endless = generate(model, tokenizer, prompts, generator="transformers")
    eos = early_eos(endless)
    wanted = [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in endless]
    assert len({len(ids) for ids in wanted}) > 1 and max(map(len, wanted)) == NEW_TOKENS
    ending = ending_with(tokenizer, eos, pad_too)
    for batch_size in (8, 3):
        assert generate(model, ending, prompts, batch_size=batch_size, generator=name) == wanted
    assert generate(model, ending, prompts[::-1], generator=name) == wanted[::-1]
    assert generate(model, ending, [], generator=name) == []
    assert generate(model, ending, prompts[:2], seeds=(3, 4), generator=name) == {3: wanted[:2], 4: wanted[:2]}


def test_finished_rows_leave_their_batch(student, prompts, sizes):
    model, tokenizer = student
    ending = ending_with(tokenizer, early_eos(generate(model, tokenizer, prompts)))
    sizes.clear()
    answers = generate(model, ending, prompts)
    lengths = [len(ids) for ids in answers]
    assert sizes == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert sizes[-1] < sizes[0] == len(prompts)


@pytest.mark.parametrize("kind", OTHER_MODELS)
@pytest.mark.parametrize("flags", [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}], ids=str)
def test_other_models_and_penalties(student, prompts, sizes, caplog, monkeypatch, kind, flags):
    """GPT-2 has learned positions; a convolution keeps states that rows cannot leave, and the log says so."""
    torch.manual_seed(3)
    model, tokenizer = OTHER_MODELS[kind]().eval(), student[1]
    monkeypatch.setattr(dropping, "_told", set())
    eos = early_eos(generate(model, tokenizer, prompts, generator="transformers", **flags))
    ending = ending_with(tokenizer, eos)
    wanted = generate(model, ending, prompts, generator="transformers", **flags)
    sizes.clear()
    with caplog.at_level(logging.INFO, logger="distillation"):
        assert generate(model, ending, prompts, **flags) == wanted
    assert len({len(ids) for ids in wanted}) > 1
    stays = kind == "convolution and attention"
    assert (sizes[-1] == sizes[0]) == stays
    assert ("finished answers stay in their batch" in caplog.text) == stays


def test_bf16(student, prompts):
    """Rounding may differ with the size of a batch: most answers agree."""
    model, tokenizer = student
    model = type(model)(model.config).to(torch.bfloat16).eval()
    wanted = generate(model, tokenizer, prompts, generator="transformers")
    assert sum(a == b for a, b in zip(generate(model, tokenizer, prompts), wanted)) >= len(prompts) / 2


@pytest.mark.parametrize(("kind", "able"), [(BloomForCausalLM, False), (MambaForCausalLM, False), (None, True)])
def test_continuous_batching_is_refused_where_it_would_answer_nonsense(student, prompts, kind, able):
    """Bloom adds its positions to the attention itself; paging goes unnoticed there. GPT-2 has learned positions."""
    config = kind and kind.config_class(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    model = (kind(config) if kind else OTHER_MODELS["GPT-2"]()).eval()
    if able:
        wanted = generate(model, student[1], prompts[:3], generator="transformers")
        assert generate(model, student[1], prompts[:3], generator="continuous") == wanted
        return
    with pytest.raises(ValueError, match="cannot read a paged cache; use --generator dropping"):
        generate(model, student[1], prompts, generator="continuous")


def test_a_cache_without_keys_has_no_bound_in_bytes():
    model = MambaForCausalLM(MambaForCausalLM.config_class(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1))
    with pytest.raises(ValueError, match="--generation-cache-mb 5: mamba keeps no keys and values; bound"):
        batch_tokens(model, GenerationArguments(generation_cache_mb=5), 77)


@pytest.mark.parametrize("flags", [{"num_beams": 2}, {"synced": True}], ids=str)
def test_beams_and_ranks_in_step_are_left_to_generate(student, flags):
    synced = flags.pop("synced", False)
    built = build_generator(
        *student, GenerationArguments(**flags), max_new_tokens=2, tokens_per_batch=99, synced=synced
    )
    assert type(built) is TransformersGenerator and built.synced == synced


@pytest.mark.parametrize("name", IN_PROCESS)
def test_two_ranks_give_one_ranks_answers(student, prompts, monkeypatch, name):
    """Each rank answers its share; here one after the other."""
    wanted, parts = generate(*student, prompts, generator=name), []
    module = sys.modules["generation.continuous"] if name == "continuous" else transformers_generator
    monkeypatch.setattr(module, "world_size", lambda: 2)
    for place in (0, 1):
        monkeypatch.setattr(module, "rank", lambda place=place: place)
        monkeypatch.setattr(module, "of_all_ranks", lambda part: parts.append(part) or part | parts[0])
        if place == 0:
            with pytest.raises(KeyError):  # the answers of rank 1
                generate(*student, prompts, batch_size=3, generator=name)
    assert generate(*student, prompts, batch_size=3, generator=name) == wanted
    assert not parts[0].keys() & parts[1].keys()


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", IN_PROCESS)
def test_the_model_and_the_random_state_stay_as_they_were(tiny, prompts, name, sample):
    if sample and name == "continuous":
        pytest.skip("greedy only")
    model, tokenizer = load_checkpoint(str(tiny / "student"), attn_implementation="eager")
    model.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    generate(model, tokenizer, prompts[:3], generator=name, do_sample=sample)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == "eager"


def test_an_answer_that_continuous_batching_lost(student, prompts, monkeypatch):
    lost = {"req_0": SimpleNamespace(error="no room", generated_tokens=[])}
    monkeypatch.setattr(type(student[0]), "generate_batch", lambda *args, **settings: lost)
    with pytest.raises(RuntimeError, match="8 of 8 prompts have no answer: no room; use --generator dropping"):
        generate(*student, prompts, generator="continuous")


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_depends_on_its_row_and_seed_only(student, prompts):
    """Neither the batch nor who leaves it changes a sample, nor do the other seeds."""
    model, tokenizer = student
    flags = {"do_sample": True, "temperature": 1.5}
    ending = ending_with(tokenizer, early_eos(generate(model, tokenizer, prompts, **flags)))
    wanted = generate(model, ending, prompts, batch_size=1, **flags)
    assert len({len(ids) for ids in wanted}) > 1
    for batch_size in (3, 8):
        assert generate(model, ending, prompts, batch_size=batch_size, **flags) == wanted
    assert generate(model, ending, [*prompts[:3], [5, 6]], **flags)[:3] == wanted[:3]
    seeds = generate(model, ending, prompts, seeds=(2, 1), **flags)
    assert seeds[1] == wanted != seeds[2]


@pytest.mark.parametrize(
    "flags", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 20, "top_p": 0.8}], ids=str
)
def test_samples_follow_the_distribution(student, flags):
    model, tokenizer = student
    prompt, count = [7, 8, 9], 3000
    answers = generate(
        model, tokenizer, [prompt] * count, batch_size=1000, new_tokens=1, seeds=(4,), do_sample=True, **flags
    )
    with torch.no_grad():
        scores = model(torch.tensor([prompt])).logits[:, -1].float()
    for name in [name for name in WARPERS if name in flags]:
        scores = WARPERS[name](flags[name])(None, scores)
    expected = scores.softmax(-1)[0].double() * count
    found = torch.bincount(torch.tensor(answers).flatten(), minlength=len(expected)).double()
    assert found[expected == 0].sum() == 0
    often = expected >= 5
    pairs = [torch.cat([of[often], of[~often].sum()[None]]) for of in (found, expected)]
    pairs = [of[pairs[1] > 0] for of in pairs]
    assert chisquare(*(of.numpy() for of in pairs), sum_check=False).pvalue > 1e-3


# --- memory and fingerprint ------------------------------------------------------------------------------------------


def test_the_cache_is_bounded_by_bytes(student, prompts, sizes):
    model, tokenizer = student
    args = GenerationArguments(generation_cache_mb=1)
    with torch.no_grad():
        cache = model(torch.tensor([prompts[2]])).past_key_values
    held = sum(of.nbytes for layer in cache.layers for of in (layer.keys, layer.values)) / len(prompts[2])
    layers = model.config.num_hidden_layers
    assert cache_bytes_per_token(model) == held * (layers + 1) / layers
    assert batch_tokens(model, args, 77) == 2**20 // cache_bytes_per_token(model)
    assert batch_tokens(model, GenerationArguments(), 77) == 77
    generate(model, tokenizer, prompts * 10, new_tokens=40, generation_cache_mb=1)
    widest = (max(map(len, prompts)) + 40) * cache_bytes_per_token(model)
    assert sizes[0] == 2**20 // widest


def draws_of(model, path, **flags):
    rows = [Row("a", ["b"], "rows:1")]
    args = EvaluateArguments(eval_batch_size=2, max_length=64, max_prompt_length=32, prompt_template="none")
    return evaluation_settings(model, Checkpoint(path), "set", rows, args, GenerationArguments(**flags))["draws"]


def test_what_answers_depend_on_is_in_the_fingerprint(tiny):
    path = str(tiny / "student")
    model, _ = load_checkpoint(path)
    draws = lambda **flags: draws_of(model, path, **flags)  # noqa: E731
    whole_batches = {"batches": 2, "tokens_per_batch": 128, "device": "cpu"}
    assert draws() is draws(generator="transformers") is draws(num_beams=2) is None
    assert draws(do_sample=True) == {"rows": 1, "device": "cpu"}
    assert draws(do_sample=True, generator="transformers") == whole_batches
    assert draws(do_sample=True, num_beams=2) == whole_batches
    for name in ("continuous", "vllm"):
        assert draws(generator=name) == {"generator": name, "device": "cpu"}


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--generator", "continuous", "--do-sample"], "--do-sample True: --generator continuous cannot do that"),
        (["--generator", "continuous", "--num-beams", "2"], "--num-beams 2: --generator continuous cannot"),
        (["--generator", "vllm", "--num-beams", "2"], "--num-beams 2: --generator vllm cannot do that; use dropping"),
        (["--generator", "vllm", "--no-repeat-ngram-size", "3"], "--no-repeat-ngram-size 3: --generator vllm"),
        (["--generator", "continuous", "--repetition-penalty", "1.2"], "--repetition-penalty 1.2: --generator cont"),
    ],
)
def test_flags_that_a_generator_cannot_obey(words, message):
    with pytest.raises(ValueError, match=message):
        parse_evaluate_arguments(["--model-path", "m", *words])


def test_generators_that_cannot_run_here(monkeypatch):
    vllm, continuous = GenerationArguments(generator="vllm"), GenerationArguments(generator="continuous")
    monkeypatch.setattr(vllm_generator.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--generator vllm: vllm is not installed; pip install vllm, or use"):
        check_generator(vllm)
    with pytest.raises(ValueError, match="use dropping in training"):
        check_generator(vllm, training=True)
    with pytest.raises(ValueError, match="--generator continuous: ZeRO-3"):
        check_generator(continuous, training=True, zero_stage=3)
    monkeypatch.setattr(vllm_generator.importlib.util, "find_spec", lambda name: object())
    check_generator(vllm)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="it runs in one process, and there are 2; start with python"):
        check_generator(vllm)


# --- vLLM, by a stub -------------------------------------------------------------------------------------------------


class StubLLM:
    """The interface of vLLM 0.11, as far as it is used: an answer is its prompt backwards, and a token of its seed."""

    made: ClassVar[list] = []
    alive: ClassVar[WeakSet] = WeakSet()

    def __init__(self, **settings):
        assert not StubLLM.alive, "there is no memory for two engines"
        StubLLM.alive.add(self)
        self.settings, self.calls = settings, []
        assert (Path(settings["model"]) / "model.safetensors").is_file()
        StubLLM.made.append(self)

    def generate(self, prompts, sampling_params):
        self.calls.append((prompts, sampling_params))
        assert {type(i) for prompt in prompts for i in prompt["prompt_token_ids"]} == {int}, "it encodes no other"
        return [SimpleNamespace(outputs=[self._answer(*pair)]) for pair in zip(prompts, sampling_params)]

    def apply_model(self, function):
        function(self)

    def load_weights(self, weights):
        self.loaded = dict(weights)

    def reset_prefix_cache(self):
        self.calls.clear()

    def _answer(self, prompt, params):
        ids = [*reversed(prompt["prompt_token_ids"]), params.seed % 50 + 2][: params.max_tokens]
        ends = len(ids) < params.max_tokens
        return SimpleNamespace(token_ids=ids, finish_reason="stop" if ends else "length")


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = StubLLM, SimpleNamespace
    module.__spec__ = SimpleNamespace(name="vllm")
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(StubLLM, "made", [])
    monkeypatch.setattr(StubLLM, "alive", WeakSet())


def test_vllm_by_a_stub(tiny, vllm):
    model, tokenizer = load_checkpoint(str(tiny / "student"))
    flags = {"generator": "vllm", "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 4}
    prompts = [np.array([5, 6, 7], dtype=np.int32), [8]]  # a data set has arrays
    answers = generate(model, tokenizer, prompts, seeds=(1, 2), new_tokens=3, **flags)
    eos = tokenizer.eos_token_id
    assert [answers[seed][0] for seed in (1, 2)] == [[7, 6, 5]] * 2, "cut without EOS"
    assert all(answers[seed][1][0] == 8 and answers[seed][1][-1] == eos for seed in (1, 2))
    (engine,) = StubLLM.made
    assert engine.settings["max_model_len"] == 6 and engine.settings["dtype"] == "float32"
    seeds = {params.seed for _, of_call in engine.calls for params in of_call}
    assert len(seeds) == 4
    params = engine.calls[0][1][0]
    assert (params.temperature, params.top_p, params.top_k, params.stop_token_ids) == (0.7, 0.9, 4, [eos])
    assert generate(model, tokenizer, [[3]], seeds=(1,), new_tokens=2, generator="vllm")[0][0] == 3
    assert len(StubLLM.made) == 1 and engine.calls[-1][1][0].temperature == 0.0, "the engine is kept"
    del engine
    StubLLM.made.clear()
    generate(model, tokenizer, [[3] * 9], new_tokens=2, generator="vllm")
    assert StubLLM.made[-1].settings["max_model_len"] == 11, "a longer prompt needs another"
    assert generate(model, tokenizer, [], generator="vllm") == []


@pytest.mark.parametrize("peft", [None, "lora"])
def test_vllm_gets_the_weights_of_a_model_in_training(tiny, vllm, peft):
    """An adapter is merged into a copy: merging in place would round the weights."""
    model = load_student(ModelArguments(model_path=str(tiny / "student"), peft=peft), torch.float32)
    vllm_generator.refresh(model, 64)
    (engine,) = StubLLM.made
    assert engine.settings["max_model_len"] == 64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vllm_generator.refresh(model, 64)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    name = "model.layers.0.self_attn.q_proj"
    weight = model.get_submodule(f"base_model.model.{name}" if peft else name)
    expected = weight.weight + weight.get_delta_weight("default") if peft else weight.weight
    torch.testing.assert_close(engine.loaded[f"{name}.weight"], expected)
    assert len(StubLLM.made) == 1 and generate(model, SimpleNamespace(eos_token_id=1), [[8]], generator="vllm")
