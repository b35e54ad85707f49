"""Rows of jsonl -> prompts and responses -> token ids -> the cache on disk."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from arguments import DataArguments
from data_utils import dataset
from data_utils.dataset import Row, load_instruction_data, read_rows
from data_utils.prompts import alpaca_prompt, cut_prompts, encode_pairs, encode_prompts
from tiny import make_rows, make_tokenizer

DOLLY = Path(__file__).resolve().parents[2] / "../shared/data/dolly"
GOOD = {"instruction": "Add.", "output": "Three."}
MARKER = "### Response:\n"


class Retokenised(Exception):
    """Raised in place of tokenising."""


def write(path: Path, *rows) -> Path:
    """A jsonl file of objects and raw lines."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def with_bos(add_eos: bool = True) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a BOS before every text and, as some do, an EOS after it."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    template = "<bos> $A <eos>" if add_eos else "<bos> $A"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def with_leading_space() -> PreTrainedTokenizerFast:
    """As SentencePiece: a text starts with a space that is not there, so a response alone gives other ids."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<eos>"])
    tokenizer.train_from_iterator([alpaca_prompt("Say it.", "x") + json.dumps(row) for row in make_rows(50)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


TOKENIZERS = {
    "plain": make_tokenizer,
    "bos": lambda: with_bos(add_eos=False),
    "bos and eos": with_bos,
    "leading space": with_leading_space,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def args(tmp_path):
    return DataArguments(
        data_dir=str(tmp_path), max_length=128, max_prompt_length=64, processed_data_dir=str(tmp_path / "cache")
    )


@pytest.fixture
def train_file(tmp_path):
    return write(tmp_path / "train.jsonl", *make_rows(24))


def fail_to_tokenise(monkeypatch):
    def tokenise(*_):
        raise Retokenised

    monkeypatch.setattr(dataset, "_tokenise", tokenise)


def ids_of(data) -> list[tuple[list[int], list[int]]]:
    return [(list(data[i].prompt_ids), list(data[i].response_ids)) for i in range(len(data))]


# --- rows ------------------------------------------------------------------------------------------------------------

BAD_ROWS = {
    "broken json": (b'{"instruction": "Add.", ', "not JSON"),
    "two objects": (b'{"instruction": "a", "output": "b"} {}', "not JSON"),
    "a list": (b'["Add.", "Three."]', "list, not an object"),
    "a string": (b'"Add."', "str, not an object"),
    "null": (b"null", "not an object"),
    "nested too deep": (b"[" * 100_000, "not JSON"),
    "a number too long": (b'{"instruction": "a", "output": "b", "n": ' + b"1" * 5000 + b"}", "not JSON"),
    "instruction of a wrong type": ({**GOOD, "instruction": 3}, "instruction is int"),
    "instruction is NaN": (b'{"instruction": NaN, "output": "b"}', "instruction is float"),
    "input of a wrong type": ({**GOOD, "input": ["x"]}, "input is list"),
    "input is zero": ({**GOOD, "input": 0}, "input is int"),
    "input is an empty list": ({**GOOD, "input": []}, "input is list"),
    "prompt of a wrong type": ({**GOOD, "prompt": {"text": "x"}}, "prompt is dict"),
    "no instruction": ({"output": "Three."}, "neither instruction nor prompt"),
    "empty instruction": ({"instruction": "", "output": "Three."}, "neither instruction nor prompt"),
    "no output": ({"instruction": "Add."}, "no output"),
    "output is null": ({**GOOD, "output": None}, "output is empty or not text"),
    "empty output": ({**GOOD, "output": ""}, "output is empty"),
    "blank output": ({**GOOD, "output": " \n"}, "output is empty"),
    "empty list of outputs": ({**GOOD, "output": []}, "output is empty"),
    "a blank among the outputs": ({**GOOD, "output": ["Three.", ""]}, "output is empty"),
    "a number among the outputs": ({**GOOD, "output": ["Three.", 3]}, "not text"),
    "a chat": (
        {"messages": [{"role": "user", "content": "Add."}]},
        "a chat (messages), where a row is one instruction",
    ),
    "a chat of TRL's": ({"prompt": [{"role": "user"}], "completion": []}, "prompt is list; write a string"),
    "not UTF-8": (b'{"instruction": "caf\xe9", "output": "b"}', "not UTF-8"),
    "half a surrogate pair": (rb'{"instruction": "\ud800", "output": "b"}', ""),
    "half a surrogate pair in the output": (rb'{"instruction": "a", "output": "\udc00"}', ""),
}


@pytest.mark.parametrize("line", [1, 3])
@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_refused_with_file_line_and_reason(tmp_path, row, reason, line):
    path = write(tmp_path / "train.jsonl", *[GOOD] * (line - 1), row, GOOD)
    with pytest.raises(ValueError) as error:
        read_rows(path)
    message = str(error.value)
    assert message.startswith(f"{path}:{line}: ") and reason in message and "\n" not in message


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-16")
    with pytest.raises(ValueError, match=f"{path}:1: not UTF-8 .*; convert the file to UTF-8"):
        read_rows(path)


def test_a_missing_file_names_the_flag(tmp_path, tokenizer, args):
    for read in (read_rows, lambda path: load_instruction_data(path, tokenizer, args)):
        with pytest.raises(FileNotFoundError, match=r"^--data-dir .*: no train\.jsonl there; see data/README"):
            read(tmp_path / "train.jsonl")
        with pytest.raises(FileNotFoundError, match=" there"):
            read(tmp_path)  # a folder is no file


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \r\n\t\n"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: no rows; "):
        read_rows(path)


def test_blank_lines_and_windows_line_ends_are_allowed_and_counted(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n" + json.dumps(GOOD).encode() + b"\r\n\r\n   \n" + json.dumps(GOOD).encode())
    assert len(read_rows(path)) == 2
    path.write_bytes(path.read_bytes() + b"\n\n{")
    with pytest.raises(ValueError, match=f"{path}:7: not JSON"):
        read_rows(path)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read_rows(path) == [Row(alpaca_prompt("Add.", ""), ("Three.",))]


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path):
    path = write(tmp_path / "train.jsonl", GOOD, {**GOOD, "output": "Four."}, b"{")
    assert [row.responses for row in read_rows(path, 2)] == [("Three.",), ("Four.",)]
    with pytest.raises(ValueError, match=":3: not JSON"):
        read_rows(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["instruction", "input", "output", "prompt"]), inner, max_size=4)
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_bytes_raise_anything_but_value_error(tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    try:
        rows = read_rows(path)
    except ValueError as error:
        assert str(error).startswith(str(path))
    else:
        assert rows and all(row.prompt and row.responses and all(row.responses) for row in rows)
        json.dumps([[row.prompt, *row.responses] for row in rows], ensure_ascii=False).encode()


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries({"instruction": words, "output": words | st.lists(words, min_size=1, max_size=3)}),
        min_size=1,
        max_size=5,
    ),
    ascii_only=st.booleans(),
)
def test_any_text_survives_reading(tmp_path, rows, ascii_only):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=ascii_only).encode() + b"\n" for row in rows))
    responses = [tuple(r["output"]) if isinstance(r["output"], list) else (r["output"],) for r in rows]
    assert read_rows(path) == [Row(alpaca_prompt(r["instruction"], ""), outputs) for r, outputs in zip(rows, responses)]


def test_fields_of_other_programs_are_known_by_their_names(tmp_path):
    dolly = {"instruction": "Add.", "context": "1 and 2", "response": "Three.", "category": "closed_qa"}
    trl = {"prompt": "Q: 1+2", "completion": "Three."}
    ours = {"instruction": "Add.", "input": "", "output": "Three.", "context": "not used", "response": "not used"}
    read = read_rows(write(tmp_path / "train.jsonl", dolly, trl, ours))
    prompts = (alpaca_prompt("Add.", "1 and 2"), "Q: 1+2", alpaca_prompt("Add.", ""))
    assert read == [Row(prompt, ("Three.",)) for prompt in prompts]


def converted(message: str, folder: Path, stdin: bytes = b"") -> bytes:
    """What the command at the end of a message prints."""
    command = message[message.index("python -c ") :].removeprefix("python").split(" < ")[0]
    run = subprocess.run(f"{sys.executable}{command}", shell=True, cwd=folder, input=stdin, capture_output=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(("field", "text"), [("messages", "content"), ("conversations", "value")])
def test_a_chat_is_answered_with_a_command_that_converts_it(tmp_path, field, text):
    chat = {field: [{text: "Hello."}, {text: "Hi."}, {text: 'Say "it\'s".'}, {text: "it's"}]}
    path = write(tmp_path / "chats.jsonl", chat)
    with pytest.raises(ValueError) as error:
        read_rows(path)
    (tmp_path / "train.jsonl").write_bytes(converted(str(error.value), tmp_path, path.read_bytes()))
    assert read_rows(tmp_path / "train.jsonl") == [Row(alpaca_prompt('Say "it\'s".', ""), ("it's",))]


@pytest.mark.parametrize("name", ["set/train.json", "a set's/train.csv", "set/data/train-00000-of-00001.parquet"])
def test_rows_in_another_format_are_answered_with_a_command_that_converts_them(tmp_path, name):
    there = tmp_path / name
    there.parent.mkdir(parents=True)
    table = dataset.datasets.Dataset.from_list([{**GOOD, "input": None}, {**GOOD, "input": "é"}])
    {".json": table.to_json, ".csv": table.to_csv, ".parquet": table.to_parquet}[there.suffix](there)
    path = tmp_path / name.split("/")[0] / "train.jsonl"
    with pytest.raises(FileNotFoundError, match=" there, but ") as error:
        read_rows(path)
    converted(str(error.value), tmp_path)
    assert read_rows(path) == [Row(alpaca_prompt("Add.", text), ("Three.",)) for text in ("", "é")]


def test_what_is_there_instead_of_the_file_is_named(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(FileNotFoundError, match=r": no train.jsonl there \(found: rows.jsonl\); see"):
        read_rows(tmp_path / "train.jsonl")
    with pytest.raises(FileNotFoundError, match=r"--data-dir .*rows.jsonl: a file; pass the folder"):
        read_rows(tmp_path / "rows.jsonl" / "train.jsonl")


def test_an_evaluation_takes_rows_without_a_reference(tmp_path):
    outputs = ["Three.", "", " \n", None, [], ["", "Three.", " "], ["", None]]
    path = write(tmp_path / "valid.jsonl", *({**GOOD, "output": output} for output in outputs))
    rows = read_rows(path, empty_references=True)
    assert [row.responses for row in rows] == [("Three.",), *[("",)] * 4, ("Three.",), ("",)]
    assert [row.place for row in rows] == [f"{path}:{line}" for line in range(1, 8)]
    for bad in (3, [3], {}):
        with pytest.raises(ValueError, match=f"{path}:1: output is empty or not text"):
            read_rows(write(path, {**GOOD, "output": bad}), empty_references=True)


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [{"input": "1 and 2"}, {"input": ""}, {"input": None}, {}])
def test_the_prompt_is_the_alpaca_template(tmp_path, row):
    (read,) = read_rows(write(tmp_path / "train.jsonl", {**GOOD, **row}))
    if row.get("input"):
        assert read.prompt == (
            "Below is an instruction that describes a task, paired with an input that provides further context. Write "
            "a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n"
            "### Response:\n"
        )
    else:
        assert read.prompt == (
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nAdd.\n\n### Response:\n"
        )


def test_braces_in_the_text_are_text():
    assert "\n{paired} {0}\n\n### Input:\n{}\n\n" in alpaca_prompt("{paired} {0}", "{}")


def test_a_prompt_of_the_rows_own_wins(tmp_path):
    path = write(tmp_path / "train.jsonl", {**GOOD, "prompt": "Q: 1+2\nA:"}, {"prompt": "Q:", "output": ["3", "three"]})
    assert read_rows(path) == [Row("Q: 1+2\nA:", ("Three.",)), Row("Q:", ("3", "three"))]


# --- token ids -------------------------------------------------------------------------------------------------------


def test_prompt_and_response_together_are_the_text_and_eos(any_tokenizer):
    rows = make_rows(12)
    prompts = [alpaca_prompt(row["instruction"], row["input"]) for row in rows]
    responses = [row["output"] if isinstance(row["output"], str) else row["output"][0] for row in rows]
    eos, bos = any_tokenizer.eos_token_id, any_tokenizer.bos_token_id
    for prompt, response, before, after in zip(prompts, responses, *encode_pairs(any_tokenizer, prompts, responses)):
        assert after[-1] == eos and (before + after).count(eos) == 1
        assert (before + after).count(bos) == (before[0] == bos) == (bos is not None)
        assert any_tokenizer.decode(before + after, skip_special_tokens=True) == prompt + response
        # As the model would see the whole text: nothing is between the prompt and its response.
        whole = any_tokenizer(prompt + response)["input_ids"]
        assert before + after in (whole, [*whole, eos])


def test_a_response_gets_the_ids_it_has_after_its_prompt():
    tokenizer = with_leading_space()
    _, ((*ids, _),) = encode_pairs(tokenizer, ["say\n"], ["red river"])
    assert tokenizer.convert_ids_to_tokens(ids)[0][0] == "r"
    assert ids != tokenizer("red river", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("make", "differs"), [(make_tokenizer, False), (with_leading_space, True)])
def test_a_tokenizer_that_begins_a_text_with_a_space_reads_a_response_alone_otherwise(make, differs):
    """docs/parity.md: what changes where prompt and response are tokenised together."""
    tokenizer = make()
    responses = [row["output"] for row in make_rows(12) if isinstance(row["output"], str)]
    _, together = encode_pairs(tokenizer, ["Say it.\n"] * len(responses), responses)
    for response, ids in zip(responses, together):
        alone = tokenizer(response, add_special_tokens=False)["input_ids"]
        assert (ids[0] != alone[0]) == differs
        assert tokenizer.convert_ids_to_tokens(alone)[0].startswith("▁") == differs
        assert differs or [*alone, tokenizer.eos_token_id] == ids


def test_a_token_across_the_border_is_split_there(tokenizer):
    prompt, response = "Say nu", "mber"
    alone, joint = tokenizer([prompt, prompt + response])["input_ids"]
    assert joint[: len(alone)] != alone
    ((before,), (after,)) = encode_pairs(tokenizer, [prompt], [response])
    assert tokenizer.decode(before) == prompt
    assert tokenizer.decode(after[:-1]) == response


def test_prompts_stay_open(any_tokenizer):
    (ids,) = encode_prompts(any_tokenizer, ["Say red."])
    assert ids[-1] != any_tokenizer.eos_token_id
    assert any_tokenizer.decode(ids, skip_special_tokens=True) == "Say red."


@pytest.mark.parametrize("add_eos", [False, True])
@pytest.mark.parametrize("opening", ["", "<bos>", "<bos><bos>"])
def test_a_text_that_brings_its_bos_gets_no_second_one(add_eos, opening):
    """As a rendered chat template of the Llama families does."""
    tokenizer = with_bos(add_eos)
    ((before,), (after,)) = encode_pairs(tokenizer, [f"{opening}Say red.<eos>Say"], [" blue.<eos>"])
    content = tokenizer("Say red.<eos>Say", add_special_tokens=False)["input_ids"]
    assert before == [tokenizer.bos_token_id, *content]
    assert after == tokenizer(" blue.<eos>", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("special", [{}, {"bos_token": "<eos>"}], ids=["no BOS", "BOS is EOS"])
@pytest.mark.parametrize("prompt", ["<eos><eos>Say red.<eos>", "<eos>"])
def test_special_tokens_of_a_text_are_content_where_the_tokenizer_adds_none(tokenizer, special, prompt):
    """As Qwen's and GPT-2's."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", **special)
    assert encode_prompts(tokenizer, [prompt]) == [tokenizer(prompt)["input_ids"]]


def test_a_text_without_tokens_is_a_prompt_all_the_same():
    tokenizer = with_leading_space()
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    assert tokenizer(" ")["input_ids"] == []
    assert encode_prompts(tokenizer, [" "]) == [[tokenizer.eos_token_id]]


@pytest.mark.parametrize("limit", [64, 65, 100])
def test_long_prompts_lose_their_middle(any_tokenizer, limit):
    prompt = alpaca_prompt("Say red.", "stone " * 200)
    whole, short = encode_prompts(any_tokenizer, [prompt, "Say red."])
    cut, kept = cut_prompts(any_tokenizer, [whole, short], limit)
    assert kept == short
    assert len(cut) == limit < len(whole)
    assert any(cut == whole[:head] + whole[head - limit :] for head in range(limit // 2, limit))
    text = any_tokenizer.decode(cut, skip_special_tokens=True)
    assert text.endswith(f"\n\n{MARKER}")
    assert (cut[0] == any_tokenizer.bos_token_id) == (any_tokenizer.bos_token_id is not None)


def test_the_instructions_head_survives_the_cut(tokenizer):
    (ids,) = cut_prompts(tokenizer, encode_prompts(tokenizer, [alpaca_prompt("Say red.", "stone " * 200)]), 100)
    assert "### Instruction:\nSay red." in tokenizer.decode(ids)


def test_prompts_are_cut_only_where_they_must_be(tokenizer):
    (ids,) = encode_prompts(tokenizer, [alpaca_prompt("Say red.", "stone")])
    assert cut_prompts(tokenizer, [ids], len(ids)) == [ids]
    assert len(cut_prompts(tokenizer, [ids], len(ids) - 1)[0]) == len(ids) - 1


# --- the data set ----------------------------------------------------------------------------------------------------


def test_examples_are_the_rows_in_order(train_file, tokenizer, args):
    data = load_instruction_data(train_file, tokenizer, args)
    rows = read_rows(train_file)
    prompts, responses = encode_pairs(tokenizer, [row.prompt for row in rows], [row.responses[0] for row in rows])
    wanted = list(zip(cut_prompts(tokenizer, prompts, 64), responses))
    assert ids_of(data) == wanted
    assert data.lengths.tolist() == [len(prompt) + len(response) for prompt, response in wanted]
    assert data.responses.tolist() == [len(response) for _, response in wanted]
    assert data.max_token_id == max(token for example in wanted for ids in example for token in ids)
    assert data.cut_prompts == sum(len(prompt) > 64 for prompt in prompts) > 0
    assert data.cut_responses == 0


def test_training_uses_the_first_of_several_outputs(tmp_path, tokenizer, args):
    data = load_instruction_data(write(tmp_path / "train.jsonl", {**GOOD, "output": ["red", "blue"]}), tokenizer, args)
    assert tokenizer.decode(data[0].response_ids) == "red<eos>"


def test_long_responses_are_cut_and_have_no_eos(tmp_path, tokenizer, args):
    rows = [{**GOOD, "output": "stone " * 300}, GOOD, {**GOOD, "input": "stone " * 200, "output": "river " * 300}]
    data = load_instruction_data(write(tmp_path / "train.jsonl", *rows), tokenizer, args)
    assert data.lengths.tolist()[::2] == [128, 128]
    assert [tokenizer.eos_token_id in data[i].response_ids for i in range(3)] == [False, True, False]
    assert (data.cut_prompts, data.cut_responses) == (1, 2)
    assert len(data[2].prompt_ids) == 64


def test_a_response_that_just_fits_keeps_its_eos(tmp_path, tokenizer, args):
    path = write(tmp_path / "train.jsonl", {**GOOD, "output": "stone " * 70})
    length = int(load_instruction_data(path, tokenizer, replace(args, max_length=500)).lengths[0])
    fits, cut = (load_instruction_data(path, tokenizer, replace(args, max_length=n)) for n in (length, length - 1))
    assert fits[0].response_ids[-1] == tokenizer.eos_token_id and fits.cut_responses == 0
    assert cut[0].response_ids[-1] != tokenizer.eos_token_id and cut.cut_responses == 1


# --- cache -----------------------------------------------------------------------------------------------------------


def test_a_second_load_reads_the_cache(train_file, args, monkeypatch):
    first = ids_of(load_instruction_data(train_file, make_tokenizer(), args))
    fail_to_tokenise(monkeypatch)
    assert ids_of(load_instruction_data(train_file, make_tokenizer(), args)) == first
    os.utime(train_file, (0, 0))  # the content decides, not the time
    load_instruction_data(train_file, make_tokenizer(), args)


def test_the_cache_is_found_by_a_tokenizer_with_stored_truncation(train_file, args, monkeypatch):
    """Tokenizers are often saved with the truncation of an earlier run; the first use here resets it."""
    tokenizers = [make_tokenizer() for _ in range(2)]
    for tokenizer in tokenizers:
        tokenizer.backend_tokenizer.enable_truncation(5)
        tokenizer.backend_tokenizer.enable_padding(length=7)
    dev_file = write(train_file.with_name("dev.jsonl"), *make_rows(5, seed=1))
    first = [ids_of(load_instruction_data(path, tokenizers[0], args)) for path in (train_file, dev_file)]
    assert max(len(prompt) for prompt, _ in first[0]) == 64
    fail_to_tokenise(monkeypatch)
    assert [ids_of(load_instruction_data(path, tokenizers[1], args)) for path in (train_file, dev_file)] == first


@pytest.mark.parametrize(
    "change", ["content", "max_length", "max_prompt_length", "limit", "vocabulary", "bos", "eos", "force_process"]
)
def test_what_changes_the_ids_changes_the_cache(train_file, args, monkeypatch, change):
    tokenizer, limit = make_tokenizer(), -1
    load_instruction_data(train_file, tokenizer, args, limit)
    fail_to_tokenise(monkeypatch)
    if change == "content":
        text = train_file.read_text()
        train_file.write_text(text.replace("Say", "Sing", 1))
    elif change == "limit":
        limit = 23
    elif change == "vocabulary":
        tokenizer.add_tokens(["stone river"])
    elif change == "bos":
        tokenizer = with_bos(add_eos=False)
    elif change == "eos":
        tokenizer.eos_token = "red"
    else:
        value = {"max_length": 129, "max_prompt_length": 63, "force_process": True}[change]
        args = replace(args, **{change: value})
    with pytest.raises(Retokenised):
        load_instruction_data(train_file, tokenizer, args, limit)


def test_what_does_not_change_the_ids_does_not_change_the_cache(train_file, tokenizer, args, monkeypatch):
    load_instruction_data(train_file, tokenizer, args)
    fail_to_tokenise(monkeypatch)
    load_instruction_data(train_file, tokenizer, replace(args, packing=False, data_process_workers=7, dev_num=3))


def test_limit_tokenises_the_first_rows(train_file, tokenizer, args):
    every = ids_of(load_instruction_data(train_file, tokenizer, args))
    assert ids_of(load_instruction_data(train_file, tokenizer, args, 5)) == every[:5]
    assert ids_of(load_instruction_data(train_file, tokenizer, args, 500)) == every


def test_force_process_writes_the_same_again(train_file, tokenizer, args):
    data = load_instruction_data(train_file, tokenizer, args)
    again = load_instruction_data(train_file, tokenizer, replace(args, force_process=True))
    assert ids_of(again) == ids_of(data)  # the first stays readable while it is replaced


def test_only_the_first_process_of_a_node_tokenises(train_file, tokenizer, args, monkeypatch):
    load_instruction_data(train_file, tokenizer, args)
    fail_to_tokenise(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for forced in (False, True):
        train, dev = dataset.load_data(tokenizer, replace(args, force_process=forced))
        assert (len(train), dev) == (24, None)


def test_several_processes_give_the_same(train_file, tokenizer, args, monkeypatch):
    serial = ids_of(load_instruction_data(train_file, tokenizer, args))
    used = []
    map_rows = dataset.datasets.Dataset.map

    def watched(self, *positional, num_proc=None, **named):
        used.append(num_proc)
        return map_rows(self, *positional, num_proc=num_proc, **named)

    monkeypatch.setattr(dataset.datasets.Dataset, "map", watched)
    monkeypatch.setattr(dataset, "ROWS_PER_WORKER", 5)
    parallel_args = replace(args, data_process_workers=2, force_process=True)
    assert ids_of(load_instruction_data(train_file, tokenizer, parallel_args)) == serial
    assert used == [2]
    assert len(load_instruction_data(train_file, tokenizer, parallel_args, 5)) == 5
    assert used == [2, None]  # too few rows to share


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["databricks-dolly-15k-in-the-processed-form-of-the-line-of-repositories", "a: b?"])
def test_any_folder_name_will_do(tmp_path, tokenizer, args, monkeypatch, name, workers):
    monkeypatch.setattr(dataset, "ROWS_PER_WORKER", 5)
    (tmp_path / name).mkdir()
    path = write(tmp_path / name / "train.jsonl", *make_rows(12))
    assert len(load_instruction_data(path, tokenizer, replace(args, data_process_workers=workers))) == 12


def test_an_interrupted_run_leaves_no_cache_behind(train_file, tokenizer, args, monkeypatch):
    def broken_save(self, path):
        Path(path).mkdir()
        (Path(path) / "dataset_info.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset.datasets.Dataset, "save_to_disk", broken_save)
        load_instruction_data(train_file, tokenizer, args)
    assert len(load_instruction_data(train_file, tokenizer, args)) == 24
    fail_to_tokenise(monkeypatch)
    assert len(load_instruction_data(train_file, tokenizer, args)) == 24


def test_two_runs_may_tokenise_at_once(train_file, tokenizer, args, monkeypatch, tmp_path):
    """The other one is done first, while this one is still writing."""
    save = dataset.datasets.Dataset.save_to_disk

    def save_late(self, path):
        with monkeypatch.context() as patch:
            patch.setattr(dataset.datasets.Dataset, "save_to_disk", save)
            patch.setattr(dataset.os, "getpid", lambda: 1)
            load_instruction_data(train_file, tokenizer, args)
        save(self, path)

    monkeypatch.setattr(dataset.datasets.Dataset, "save_to_disk", save_late)
    assert len(load_instruction_data(train_file, tokenizer, args)) == 24
    (folder,) = (tmp_path / "cache").iterdir()
    assert not folder.name.endswith(".tmp")


def test_a_bad_row_leaves_no_cache_behind(tmp_path, tokenizer, args):
    path = write(tmp_path / "train.jsonl", GOOD, b"{")
    for _ in range(2):
        with pytest.raises(ValueError, match=":2: not JSON"):
            load_instruction_data(path, tokenizer, args)


# --- real rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "count"), [("dev", 1000), ("valid", 500)])
def test_dolly(split, count, tokenizer, args):
    path = DOLLY / f"{split}.jsonl"
    if not path.is_file():
        pytest.skip(f"no Dolly rows at {path}")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [alpaca_prompt(row["instruction"], row["input"]) for row in rows]
    data = load_instruction_data(path, tokenizer, replace(args, max_length=512, max_prompt_length=256))
    assert len(data) == count
    assert data.responses.min() > 0 and data.lengths.max() <= 512
    assert (data.lengths - data.responses).max() == 256 and data.cut_prompts > 0
    closed = sum(data[i].response_ids[-1] == tokenizer.eos_token_id for i in range(count))
    assert closed == count - data.cut_responses
    short = [i for i in range(count) if data.lengths[i] < 256][:20]
    texts = tokenizer.batch_decode([[*data[i].prompt_ids, *data[i].response_ids] for i in short])
    assert texts == [rows[i]["prompt"] + rows[i]["output"] + "<eos>" for i in short]
