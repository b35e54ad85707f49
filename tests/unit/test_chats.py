"""Chats: the ids are those of `apply_chat_template`, and what is learnt is what a slow reference finds.

One tiny tokenizer per kind of model (Llama-2, Llama-3, Mistral, Gemma, Qwen), with a template in that kind's format.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from arguments import DataArguments, GenerationArguments
from data_utils import dataset
from data_utils.batches import Example
from data_utils.dataset import read_rows
from data_utils.encoding import RowEncoder
from data_utils.prompts import prompt_template
from evaluation.scoring import EvaluationSet
from generation.base import generation_config
from tiny import make_rows

SYSTEM_IN_USER = (  # Llama-2 and Mistral have no turn for it
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
)
ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """template: with GENERATION and END around what an assistant writes. pieces: as SentencePiece, or bytes."""

    template: str
    end_of_turn: str
    bos: str | None
    eos: str
    pieces: bool
    special: tuple[str, ...] = ()

    def tokenizer(self, marks: bool = False) -> PreTrainedTokenizerFast:
        """marks: with Transformers' own tag around what is generated, for its mask."""
        special = ["<unk>", *filter(None, [self.bos]), self.eos, *self.special]
        if self.pieces:
            tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
            tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
            alphabet = [chr(i) for i in range(32, 127)] + ["\n"]
        else:
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
        tokenizer.train_from_iterator(
            [json.dumps(row) for row in make_rows(40)] + ["user assistant system model"], trainer
        )
        if self.bos is not None:
            ids = [(self.bos, tokenizer.token_to_id(self.bos))]
            tokenizer.post_processor = processors.TemplateProcessing(single=f"{self.bos} $A", special_tokens=ids)
        tags = ("{% generation %}", "{% endgeneration %}") if marks else ("", "")
        text = self.template.replace("GENERATION", tags[0]).replace("END", tags[1])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=self.bos,
            eos_token=self.eos,
            unk_token="<unk>",
            pad_token=self.eos,
            additional_special_tokens=list(self.special),
            chat_template=text,
        )


KINDS = {
    "llama-2": Kind(
        SYSTEM_IN_USER + "{% for m in rest %}" + ALTERNATE + "{% if m['role'] == 'user' %}{{ bos_token if loop.first }}"
        "{{ '[INST] ' + ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system else '') }}"
        "{{ m['content'].strip() + ' [/INST]' }}"
        "{% else %}GENERATION{{ ' ' + m['content'].strip() + ' ' + eos_token }}END{% endif %}{% endfor %}",
        "</s>", "<s>", "</s>", True,
    ),
    "llama-3": Kind(
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
        "{% if m['role'] == 'assistant' %}GENERATION{{ m['content'] | trim + '<|eot_id|>' }}END"
        "{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        "<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", False,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "mistral": Kind(
        SYSTEM_IN_USER + "{% set last = (rest | selectattr('role', 'equalto', 'user') | list)[-1] %}{{ bos_token }}"
        "{% for m in rest %}" + ALTERNATE + "{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + (system + '\\n\\n' if m == last and system else '') + m['content'] + '[/INST]' }}"
        "{% else %}GENERATION{{ ' ' + m['content'] + eos_token }}END{% endif %}{% endfor %}",
        "</s>", "<s>", "</s>", True, ("[INST]", "[/INST]"),
    ),
    "gemma": Kind(
        SYSTEM_IN_USER + "{{ bos_token }}{% for m in rest %}" + ALTERNATE + "{{ '<start_of_turn>' }}"
        "{{ ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
        "{% if m['role'] == 'assistant' %}GENERATION{{ m['content'] | trim + '<end_of_turn>' }}END{{ '\\n' }}"
        "{% else %}{{ (system + '\\n\\n' if loop.first and system else '') + m['content'] | trim }}"
        "{{ '<end_of_turn>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        "<end_of_turn>", "<bos>", "<eos>", True, ("<start_of_turn>", "<end_of_turn>"),
    ),
    "qwen": Kind(
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' %}GENERATION{{ m['content'] + '<|im_end|>' }}END{{ '\\n' }}"
        "{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>", None, "<|endoftext|>", False, ("<|im_start|>", "<|im_end|>"),
    ),
}  # fmt: skip
# Mistral's template puts the system message before the last question, so earlier ones are written otherwise.
MOVES_SYSTEM = {"mistral"}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind):
    return KINDS[kind].tokenizer()


@pytest.fixture(scope="module")
def qwen():
    return KINDS["qwen"].tokenizer()


@pytest.fixture
def args(tmp_path):
    return DataArguments(
        data_dir=str(tmp_path),
        max_length=256,
        max_prompt_length=128,
        prompt_template="chat",
        processed_data_dir=str(tmp_path / "cache"),
    )


def chat(*texts: str, system: str | None = None) -> list[dict]:
    """Questions and answers in turn."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def encoder(tokenizer, **changes) -> RowEncoder:
    values = {"data_dir": "d", "max_length": 4000, "max_prompt_length": 2000} | changes
    args = DataArguments(**values)
    return RowEncoder(tokenizer, prompt_template("chat", tokenizer), args.max_prompt_length, args)


def example_of(tokenizer, messages, **changes) -> Example:
    of_tokenizer = encoder(tokenizer, **changes)
    row = dataset.parse(json.dumps({"messages": messages}), "x:1", of_tokenizer.template)
    (encoded,) = of_tokenizer.examples([row])
    return Example(*encoded[:3])


def whole(example: Example) -> list[int]:
    return [*example.prompt_ids, *example.response_ids]


def learnt(example: Example) -> list[bool]:
    mask = np.zeros(len(example), dtype=bool)
    mask[example.targets] = True
    return mask.tolist()


def slow_mask(tokenizer, messages, end_of_turn: str, train_on: str = "all") -> list[bool]:
    """Prefix by prefix, in characters: from where a question with its generation prompt ends to the end of the turn."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    inside = np.zeros(len(text) + 1, dtype=bool)
    for i in answers if train_on == "all" else answers[-1:]:
        begin = len(tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True))
        end = text.index(end_of_turn, begin) + len(end_of_turn)
        inside[begin:end] = True
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [bool(inside[max(begin, end - 1)]) for begin, end in offsets]


letters = st.text(st.sampled_from("abc xyz.,!?\n01"), min_size=1, max_size=40)
words = st.text(st.characters(codec="utf-8", exclude_characters="<|[]>"), min_size=1, max_size=20) | letters
contents = words.filter(str.strip).map(str.strip)
turns = st.integers(1, 4).flatmap(lambda n: st.lists(contents, min_size=2 * n, max_size=2 * n))


# --- ids and what is learnt ------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=turns, system=st.none() | contents, train_on=st.sampled_from(["all", "last"]))
def test_ids_are_those_of_the_tokenizer_and_answers_are_learnt(kind, tokenizer, texts, system, train_on):
    if kind in MOVES_SYSTEM and train_on == "all" and len(texts) > 2:
        system = None
    messages = chat(*texts, system=system)
    example = example_of(tokenizer, messages, train_on=train_on)
    assert whole(example) == tokenizer.apply_chat_template(messages)["input_ids"]
    assert learnt(example) == slow_mask(tokenizer, messages, KINDS[kind].end_of_turn, train_on)
    bos = tokenizer.bos_token_id
    assert whole(example).count(bos) == (bos is not None) and (bos is None or whole(example)[0] == bos)
    assert example.predicted == sum(learnt(example))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=turns)
def test_what_is_learnt_is_what_transformers_calls_the_assistants(kind, tokenizer, texts):
    """With a template that marks it. A token that begins in a question's last character is learnt here, too."""
    marked_tokenizer = KINDS[kind].tokenizer(marks=True)
    messages = chat(*texts)
    theirs = marked_tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    assert whole(example_of(tokenizer, messages)) == theirs["input_ids"]
    assert learnt(example_of(tokenizer, messages)) == [bool(mark) for mark in theirs["assistant_masks"]]
    assert learnt(example_of(marked_tokenizer, messages)) == learnt(example_of(tokenizer, messages))


def test_the_question_ends_with_the_generation_prompt(kind, tokenizer):
    messages = chat("Say red.", "red", "Say blue.", "blue", system="Be short.")
    example = example_of(tokenizer, messages, train_on="last")
    question = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert list(example.prompt_ids) == question
    row = dataset.parse(json.dumps({"messages": messages}), "x:1", prompt_template("chat", tokenizer))
    (asked,) = EvaluationSet([row], tokenizer, 2000, prompt_template("chat", tokenizer)).prompts
    assert asked == (question, False)


def test_an_instruction_is_a_chat_of_two_turns(kind, tokenizer, tmp_path):
    template = prompt_template("chat", tokenizer)
    path = write(tmp_path / "train.jsonl", {"instruction": "Add.", "input": "1 and 2", "output": ["Three.", "3"]})
    (row,) = read_rows(path, template)
    (encoded,) = encoder(tokenizer).examples([row])
    messages = chat("Add.\n\n1 and 2", "Three.")
    assert [*encoded.prompt_ids, *encoded.response_ids] == tokenizer.apply_chat_template(messages)["input_ids"]
    assert row.responses == ("Three.", "3")
    assert row.prompt == tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)


def test_the_end_of_a_turn_is_learnt_and_ends_generation(kind, tokenizer):
    example = example_of(tokenizer, chat("Say red.", "red"))
    assert tokenizer.eos_token == KINDS[kind].end_of_turn
    assert whole(example)[example.targets[-1]] == tokenizer.eos_token_id
    config = generation_config(tokenizer, GenerationArguments(), 8)
    assert config.eos_token_id == tokenizer.convert_tokens_to_ids(KINDS[kind].end_of_turn)


def test_a_template_that_moves_earlier_text_is_refused_for_all_answers():
    tokenizer = KINDS["mistral"].tokenizer()
    messages = chat("Say red.", "red", "Say blue.", "blue", system="Be short.")
    with pytest.raises(ValueError, match=r"^x:1: --prompt-template chat: .* turn 3, an answer.*--train-on last"):
        example_of(tokenizer, messages)
    assert example_of(tokenizer, messages, train_on="last").predicted > 0
