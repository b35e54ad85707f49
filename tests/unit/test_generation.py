"""Answers to prompts: batches, draws, where an answer ends, and the flags."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from arguments import GenerationArguments
from data_utils.prompts import encode_prompts, prompt_template
from generation.transformers_generator import TransformersGenerator
from models.loading import load_checkpoint
from tiny import make_rows

GREEDY, SAMPLED = GenerationArguments(), GenerationArguments(do_sample=True)
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def student(tiny):
    return load_checkpoint(str(tiny / "student"))


@pytest.fixture(scope="module")
def prompts(student):
    rows = make_rows(7, seed=3)
    return encode_prompts(
        student[1], [prompt_template("alpaca").render(row["instruction"], row["input"]) for row in rows]
    )


@pytest.fixture(scope="module")
def greedy(student, prompts):
    return generate(student, prompts)


def generate(student, prompts, args=GREEDY, batch_size=3, seed=1) -> list[list[int]]:
    """In batches of at least `batch_size` prompts."""
    tokens = batch_size * (max(map(len, prompts), default=0) + NEW_TOKENS)
    return TransformersGenerator(*student, args, NEW_TOKENS, tokens).generate(prompts, [seed])[seed]


@pytest.fixture
def shapes(student, monkeypatch):
    """Of each batch: prompts, and their tokens with padding."""
    seen, original = [], student[0].generate

    def generate_and_look(input_ids, **others):
        seen.append(tuple(input_ids.shape))
        return original(input_ids=input_ids, **others)

    monkeypatch.setattr(student[0], "generate", generate_and_look)
    return seen


def test_answers_are_in_the_order_of_the_prompts_whatever_the_batches(student, prompts, greedy):
    """Greedy answers of left-padded batches are those of one prompt at a time."""
    alone = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(NEW_TOKENS):
            ids = torch.cat([ids, student[0](ids).logits[:, -1:].argmax(-1)], dim=1)
        alone.append(ids[0, -NEW_TOKENS:].tolist())
    assert len(set(map(tuple, alone))) > 1
    assert greedy == alone
    assert generate(student, prompts[::-1], batch_size=len(prompts)) == alone[::-1]
    assert generate(student, []) == []


def test_samples_are_a_function_of_the_seed(student, prompts, greedy):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = generate(student, prompts, SAMPLED)
    assert torch.equal(torch.get_rng_state(), state), "the caller's draws change"
    torch.manual_seed(6)
    assert generate(student, prompts, SAMPLED) == first
    assert generate(student, prompts, SAMPLED, seed=2) != first != greedy
    same = generate(student, [[5, 6, 7]] * 6, SAMPLED, batch_size=2)
    assert len(set(map(tuple, same))) > 3, "batches draw alike"


def test_a_seed_does_not_depend_on_the_others(student, prompts):
    generator = TransformersGenerator(*student, SAMPLED, NEW_TOKENS, 2 * (max(map(len, prompts)) + NEW_TOKENS))
    together = generator.generate(prompts, [5, 6, 7])
    assert list(together) == [5, 6, 7] and together[5] != together[6] != together[7]
    assert generator.generate(prompts, [6]) == {6: together[6]}
    assert generator.generate(prompts, [7, 5]) == {7: together[7], 5: together[5]}


def test_a_batch_holds_what_fits_its_tokens(student, prompts, shapes):
    budget = 3 * (max(map(len, prompts)) + NEW_TOKENS)
    TransformersGenerator(*student, GREEDY, NEW_TOKENS, budget).generate(prompts, [1])
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True) and sum(count for count, _ in shapes) == len(prompts)
    assert all(count * (width + NEW_TOKENS) <= budget for count, width in shapes)
    assert all((count + 1) * (width + NEW_TOKENS) > budget for count, width in shapes[:-1])
    shapes.clear()
    TransformersGenerator(*student, GREEDY, NEW_TOKENS, 1).generate(prompts, [1])  # too few for any prompt
    assert [count for count, _ in shapes] == [1] * len(prompts)


def test_answers_end_with_eos(student, prompts, greedy):
    """A token of one greedy answer is made the EOS: that answer ends with it, and the others do not change."""
    model, tokenizer = student
    eos = greedy[0][3]
    ending = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    ending.add_special_tokens({"eos_token": ending.convert_ids_to_tokens(eos)})
    wanted = [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in greedy]
    assert len(wanted[0]) <= 4 and any(len(ids) == NEW_TOKENS for ids in wanted)
    assert generate((model, ending), prompts, batch_size=7) == wanted
    ending.pad_token = ending.eos_token
    assert generate((model, ending), prompts, batch_size=7) == wanted, "padded with EOS"


def test_flags_reach_the_sampler(student, prompts, greedy):
    for args in ({"top_k": 1}, {"temperature": 1e-6}, {"top_p": 1e-6}):
        assert generate(student, prompts, GenerationArguments(do_sample=True, **args)) == greedy, args
    assert generate(student, prompts, GenerationArguments(max_new_tokens=2)) == [ids[:2] for ids in greedy]
    flags = {"num_beams": 2, "repetition_penalty": 1.2, "no_repeat_ngram_size": 6}
    config = TransformersGenerator(*student, GenerationArguments(**flags), 99, 200).generation_config()
    assert {name: getattr(config, name) for name in flags} == flags
    assert (config.do_sample, config.max_new_tokens) == (False, 99)
    assert (config.eos_token_id, config.pad_token_id) == (student[1].eos_token_id, student[1].pad_token_id)


def test_an_adapter_answers_like_the_merged_model(tiny, student, prompts, greedy):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny / "student")
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    answers = generate((model, student[1]), prompts)
    assert generate((model.merge_and_unload(), student[1]), prompts) == answers != greedy


@pytest.mark.parametrize(
    ("args", "settings_of_the_model"),
    [
        (GREEDY, {"repetition_penalty": 5.0, "max_length": 3, "no_repeat_ngram_size": 1}),
        (GREEDY, {"suppress_tokens": list(range(2, 200))}),
        (SAMPLED, {"top_k": 1, "temperature": 0.01, "top_p": 0.01, "min_p": 0.99}),
    ],
    ids=["greedy", "greedy, tokens suppressed", "sampled"],
)
def test_nothing_is_left_to_the_models_own_defaults(student, prompts, monkeypatch, args, settings_of_the_model):
    clean = generate(student, prompts[:3], args)
    own = GenerationConfig(**settings_of_the_model)
    monkeypatch.setattr(student[0], "generation_config", own)
    assert generate(student, prompts[:3], args) == clean
    assert student[0].generation_config is own, "a checkpoint is saved with what it came with"
