"""Chats: the ids are those of `apply_chat_template`, and what is learnt is what a slow reference finds.

One tiny tokenizer per kind of model (Llama-2, Llama-3, Mistral, Gemma, Qwen), with a template in that kind's format.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from arguments import DataArguments, GenerationArguments, parse_evaluate_arguments
from data_utils import dataset
from data_utils.batches import Example, collate
from data_utils.dataset import load_instruction_data, read_rows
from data_utils.encoding import RowEncoder
from data_utils.prompts import prompt_template, record_template, recorded_template
from data_utils.prompts.chat import SHIPPED
from evaluation.defaults import Checkpoint, fill_in
from evaluation.scoring import EvaluationSet
from generation.base import generation_config
from preflight.examples import marked
from tiny import make_rows, make_tokenizer

ROOT = Path(__file__).resolve().parents[2]
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


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=turns, system=st.none() | contents)
@pytest.mark.parametrize("bos", ["its own", "eos"])  # GPT-2's BOS is its EOS
def test_the_shipped_template_fits_a_tokenizer_without_one(kind, bos, texts, system):
    tokenizer = KINDS[kind].tokenizer()
    tokenizer.chat_template = None
    eos = tokenizer.eos_token
    if bos == "eos":
        tokenizer.bos_token = eos
    messages = chat(*texts, system=system)
    prompt_template(str(ROOT / SHIPPED), tokenizer)
    assert tokenizer.eos_token == eos
    example = example_of(tokenizer, messages)
    assert whole(example) == tokenizer.apply_chat_template(messages)["input_ids"]
    assert learnt(example) == slow_mask(tokenizer, messages, eos)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    headings = {"system": "### System:", "user": "### User:", "assistant": "### Assistant:"}
    parts = [f"{headings[m['role']]}\n{m['content']}{eos if m['role'] == 'assistant' else ''}" for m in messages]
    assert text == (tokenizer.bos_token or "") + "\n\n".join(parts)


def test_a_template_that_moves_earlier_text_is_refused_for_all_answers():
    tokenizer = KINDS["mistral"].tokenizer()
    messages = chat("Say red.", "red", "Say blue.", "blue", system="Be short.")
    with pytest.raises(ValueError, match=r"^x:1: --prompt-template chat: .* turn 3, an answer.*--train-on last"):
        example_of(tokenizer, messages)
    assert example_of(tokenizer, messages, train_on="last").predicted > 0


# --- forms -----------------------------------------------------------------------------------------------------------


def test_sharegpt_and_messages_are_the_same_chat(qwen, tmp_path):
    template = prompt_template("chat", qwen)
    messages = chat("Say red.", "red", "Say blue.", "blue", system="Be short.")
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in messages]
    path = write(
        tmp_path / "chats.jsonl",
        {"messages": messages, "prompt": "Say red."},  # as ultrachat has it
        {"conversations": turns, "id": 7},
        {"conversations": turns[1:], "system": "Be short."},
        {"conversations": [*turns, {"from": "human", "value": "Thanks."}]},  # what no answer follows is left out
    )
    rows = read_rows(path, template)
    assert [list(row.chat) for row in rows] == [messages] * 4
    assert {row.prompt for row in rows} == {rows[0].prompt} and {row.responses for row in rows} == {("blue",)}
    assert [row.form for row in rows] == [2, 3, 3, 3]


BAD_CHATS = {
    "no answer": ([{"role": "user", "content": "a"}], "messages has no turn of the assistant"),
    "a string": ("user: a", "messages is str; write a list of turns"),
    "not an object": (["a", "b"], "messages: turn 1 is str; write an object"),
    "unknown role": ([{"role": "narrator", "content": "a"}], "turn 1 is of 'narrator'; write system, user"),
    "parts": ([{"role": "user", "content": [{"type": "text"}]}], "turn 1 has list as its text; write a string"),
    "an empty answer": (chat("a", " ", "b", "c"), "turn 2, an answer, is empty"),
    "half a surrogate pair": (chat("\ud800", "b"), "not text"),
    "refused by the template": (chat("a", "b")[1:], "--prompt-template chat: the template refuses this chat ("),
}


@pytest.mark.parametrize(("messages", "said"), BAD_CHATS.values(), ids=BAD_CHATS)
def test_a_bad_chat_is_named_by_its_place(qwen, tmp_path, args, messages, said):
    path = write(tmp_path / "train.jsonl", {"messages": chat("a", "b")}, {"messages": messages})
    with pytest.raises(ValueError) as error:
        load_instruction_data(path, qwen, args)
    assert str(error.value).startswith(f"{path}:2: ") and said in str(error.value)


def test_a_text_template_takes_a_chat_of_one_question(tmp_path):
    alpaca = prompt_template("alpaca")
    (row,) = read_rows(write(tmp_path / "a.jsonl", {"messages": chat("Say red.", "red")}), alpaca)
    assert (row.prompt, row.responses) == (alpaca.render("Say red.", ""), ("red",))
    for messages in (chat("a", "b", "c", "d"), chat("a", "b", system="c")):
        with pytest.raises(ValueError, match=r"a.jsonl:1: messages has \d turns \(.*configs/chat.jinja for a"):
            read_rows(write(tmp_path / "a.jsonl", {"messages": messages}), alpaca)


def test_a_prompt_of_its_own_is_used_as_it_is(qwen, tmp_path, args):
    path = write(tmp_path / "train.jsonl", {"prompt": "Q: red? A:", "completion": " yes"})
    (example,) = load_instruction_data(path, qwen, args)
    assert qwen.decode(whole(example)) == "Q: red? A: yes<|im_end|>" and len(example.spans) == 0


# --- too long --------------------------------------------------------------------------------------------------------


def test_an_overlong_chat_keeps_its_system_message_and_its_last_turns(qwen, tmp_path, args):
    messages = chat(*(f"{word} {i}" for i in range(12) for word in ("Say number", "It is number")), system="Be short.")
    lengths = [len(qwen.apply_chat_template([messages[0], *messages[i:]])["input_ids"]) for i in range(1, 25, 2)]
    limit = lengths[7]  # the last five questions
    path = write(tmp_path / "train.jsonl", {"messages": messages}, {"messages": chat("a", "b")})
    data = load_instruction_data(path, qwen, replace(args, max_length=limit))
    assert whole(data[0]) == qwen.apply_chat_template([messages[0], *messages[15:]])["input_ids"]
    assert (data.cut_chats, data.cut_prompts, data.cut_responses) == (1, 0, 0)
    assert data.responses.tolist() == [sum(learnt(data[i])) for i in range(2)]
    assert data.forms == {"messages": 2}
    question = EvaluationSet(read_rows(path, prompt_template("chat", qwen)), qwen, 128, prompt_template("chat", qwen))
    assert [prompt.cut for prompt in question.prompts] == [True, False]
    text = qwen.decode(question.prompts[0].ids)
    assert len(question.prompts[0].ids) <= 128 and "Be short." in text and text.endswith("<|im_start|>assistant\n")
    assert "Say number 11<|im_end|>" in text and "Say number 0<" not in text


def test_an_unfinished_answer_needs_no_room_for_its_end(qwen, tmp_path, args):
    messages = chat("Say red.", "red", "Say blue.", "blue " * 20)
    whole_length = len(qwen.apply_chat_template(messages)["input_ids"])
    limit = whole_length - 2  # without <|im_end|> and the line break
    path = write(tmp_path / "train.jsonl", {"messages": messages, "cut": True}, {"messages": messages})
    data = load_instruction_data(path, qwen, replace(args, max_length=limit, max_prompt_length=limit - 1))
    assert (data.cut_chats, data.cut_responses, data.unfinished) == (1, 0, 1)
    assert whole(data[0]) == qwen.apply_chat_template(messages)["input_ids"][:limit]
    assert "Say red." not in qwen.decode(whole(data[1]))


def test_one_question_that_is_too_long_is_cut_like_a_text(qwen, tmp_path, args):
    path = write(tmp_path / "train.jsonl", {"messages": chat("stone " * 300, "river " * 300)})
    data = load_instruction_data(path, qwen, args)
    assert (data.cut_chats, data.cut_prompts, data.cut_responses) == (0, 1, 1)
    assert len(data[0].prompt_ids) == 128 and len(data[0]) == 256
    assert qwen.decode(data[0].prompt_ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert learnt(data[0]) == [False] * 128 + [True] * 128


# --- examples, batches, keys -----------------------------------------------------------------------------------------


def test_what_is_learnt_reaches_batch_table_and_key(qwen, tmp_path, args):
    path = write(tmp_path / "train.jsonl", {"messages": chat("a", "b", "c", "d")}, {"messages": chat("e", "f")})
    data = load_instruction_data(path, qwen, args)
    assert data.keys() == [data[i].key for i in range(2)]
    for layout in ("packed", "packed into one row", "padded"):
        batch = collate([data[0], data[1]], qwen.pad_token_id, 256, layout)
        wanted = [
            id for example in batch.examples for id, is_learnt in zip(whole(example), learnt(example)) if is_learnt
        ]
        assert batch.labels_N.tolist() == wanted
        flat = batch.input_ids_RT.flatten()
        assert flat[batch.response_positions + 1].tolist() == wanted
    assert len(batch.labels_N) == data.responses.sum()
    assert marked(data[0], qwen).count("«") == 2 and "«b<|im_end|>»\\n<|im_start|>user" in marked(data[0], qwen)


def test_spans_are_part_of_the_key_and_their_absence_is_not():
    ids = list(range(9))
    keys = {Example(ids[:3], ids[3:], spans).key for spans in ((), (0, 2), (0, 2, 4, 6), (0, 6))}
    assert len(keys) == 4
    # As it was before there were spans: teacher caches stay valid.
    plain = np.array([3, *ids], dtype="<i4").tobytes()
    assert Example(ids[:3], ids[3:]).key == hashlib.blake2b(plain, digest_size=16).digest()
    assert Example([], [5, 6, 7], (0, 1, 2, 3)).targets.tolist() == [2]


# --- files and records -----------------------------------------------------------------------------------------------

CHAT_FILE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TEXT_FILE = "Q: {{ instruction }}{% if input %} ({{ input }}){% endif %}\n\nA:"


def test_a_file_over_messages_becomes_the_tokenizers_template(tmp_path, args):
    path = tmp_path / "mine.jinja"
    path.write_text(CHAT_FILE)
    tokenizer = make_tokenizer()
    rows = write(tmp_path / "train.jsonl", {"messages": chat("Say red.", "red")}, {"instruction": "a", "output": "b"})
    data = load_instruction_data(rows, tokenizer, replace(args, prompt_template=str(path)))
    assert tokenizer.decode(whole(data[0])) == "user: Say red.\nassistant: red<eos>\n"
    assert tokenizer.decode(data[1].response_ids) == " b<eos>\n"  # one token with the space before it
    record_template(prompt_template(str(path), tokenizer), tmp_path)
    assert recorded_template(tmp_path) == "chat"
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert prompt_template("chat", again).identity == prompt_template(str(path), make_tokenizer()).identity


def test_a_file_over_instructions_is_kept_in_the_checkpoint(tmp_path, qwen):
    (tmp_path / "qa.jinja").write_text(TEXT_FILE)
    template = prompt_template(str(tmp_path / "qa.jinja"), qwen)
    assert template.render("Add.", "1 and 2") == "Q: Add. (1 and 2)\nA:" and template.ending == "\nA:"
    checkpoint = tmp_path / "run/epoch1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    record_template(template, checkpoint)
    (tmp_path / "qa.jinja").unlink()
    (tmp_path / "run/args.json").write_text(json.dumps({"data_dir": str(tmp_path), "prompt_template": "alpaca"}))
    moved = (checkpoint.parent).rename(tmp_path / "elsewhere") / "epoch1"
    config = parse_evaluate_arguments(["--model-path", str(moved)])
    filled = fill_in(config.evaluate, Checkpoint(str(moved)))
    assert prompt_template(filled.prompt_template, qwen).identity == template.identity
    (moved / "prompt_template.json").write_text('{"prompt_template": "chat"}')
    (moved.parent / "args.json").unlink()
    away = parse_evaluate_arguments(["--model-path", str(moved), "--data-dir", str(tmp_path)])
    assert fill_in(away.evaluate, Checkpoint(str(moved))).prompt_template == "chat"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ instruction", "; pass a jinja file"),
        ("{{ question }}", "uses neither `messages` nor `instruction`"),
        ("{{ instruction.__class__.__mro__ }}", "correct the file"),
        ("{{ instruction }} {{ nothing }}", "'nothing' is undefined"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no special token ends an answer"),
        (None, "No such file or directory; pass a jinja file"),
    ],
)
def test_a_file_that_is_no_template_is_refused(tmp_path, text, said):
    path = tmp_path / "mine.jinja"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"^--prompt-template {path}: ") as error:
        prompt_template(str(path), make_tokenizer())
    assert said in str(error.value)


LLAMA_DATE = (  # as in Llama 3.2
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}{{ 'Today Date: ' + date_string + '\\n' }}"
)
ISO_DATE = "{% set today = strftime_now( '%Y-%m-%d' ) %}{{ today }}"  # as in Mistral Small


@pytest.mark.parametrize(("writes", "date"), [(LLAMA_DATE, "Today Date: 26 Jul 2024\n"), (ISO_DATE, "2024-07-26")])
def test_a_template_that_writes_the_date_writes_the_same_one_every_day(writes, date, tmp_path, args):
    tokenizer = KINDS["llama-3"].tokenizer()
    plain = example_of(tokenizer, chat("Say red.", "red"))
    theirs = tokenizer.chat_template = writes + tokenizer.chat_template
    assert str(datetime.now().year) in tokenizer.apply_chat_template(chat("Say red."), tokenize=False)
    example = example_of(tokenizer, chat("Say red.", "red"))
    assert whole(example) == [*tokenizer(date, add_special_tokens=False)["input_ids"], *whole(plain)]
    template = prompt_template("chat", tokenizer)
    assert template.text(chat("Say red."), ask=True).startswith(date)
    assert tokenizer.chat_template == template.source == theirs, "a checkpoint keeps the model's own template"
    (tmp_path / "mine.jinja").write_text(theirs)
    from_file = prompt_template(str(tmp_path / "mine.jinja"), KINDS["llama-3"].tokenizer())
    assert from_file.text(chat("Say red.")).startswith(date) and from_file.identity == template.identity


@pytest.mark.parametrize(
    "use",
    [
        "{% set f = '%Y' %}{{ strftime_now(f) }}",
        "{% set now = strftime_now %}{{ now('%d') }}",
        "{{ strftime_now('%d' | replace('a', 'b')) }}",
    ],
)
def test_a_date_that_cannot_be_fixed_is_refused(use):
    tokenizer = KINDS["llama-3"].tokenizer()
    tokenizer.chat_template = use + tokenizer.chat_template
    with pytest.raises(ValueError, match=r"chat: the template writes today's date, .* fixed date in place of strftime"):
        prompt_template("chat", tokenizer)


def test_a_tokenizer_without_a_chat_template_is_answered_with_what_to_do():
    with pytest.raises(ValueError, match=r"^--prompt-template chat: .* has no chat template; pass configs/chat.jinja"):
        prompt_template("chat", make_tokenizer())


def test_another_template_is_another_cache_and_another_evaluation(tmp_path, args):
    path = write(tmp_path / "train.jsonl", {"messages": chat("a", "b", "c", "d")})
    load_instruction_data(path, KINDS["qwen"].tokenizer(), args)
    load_instruction_data(path, KINDS["qwen"].tokenizer(), replace(args, train_on="last"))
    other = KINDS["qwen"].tokenizer()
    other.chat_template = other.chat_template.replace("You help", "You teach")
    load_instruction_data(path, other, args)
    assert len(list((tmp_path / "cache").iterdir())) == 3
    identities = {prompt_template("chat", each).identity for each in (KINDS["qwen"].tokenizer(), other)}
    assert len(identities) == 2


SMOLLM2 = Path(__file__).parents[2] / "model_hub/smollm2/SmolLM2-135M-Instruct"


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="SmolLM2 is not here")
def test_a_published_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    messages = chat("Say red.", "Red.", "And blue?", "Blue.", system="Be short.")
    example = example_of(tokenizer, messages)
    assert whole(example) == tokenizer.apply_chat_template(messages)["input_ids"]
    assert learnt(example) == slow_mask(tokenizer, messages, "<|im_end|>")
