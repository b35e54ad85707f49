"""Rows of jsonl -> prompts and responses -> token ids -> the cache on disk."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from arguments import DataArguments
from data_utils import dataset, sources
from data_utils.dataset import Row, load_instruction_data
from data_utils.prompts import cut_prompts, encode_pairs, encode_prompts, prompt_template
from data_utils.sources import find_source, training_sources
from preflight.estimates import describe_data
from preflight.report import Report
from tiny import make_rows, make_tokenizer

GOOD = {"instruction": "Add.", "output": "Three."}
ALPACA = prompt_template("alpaca")
LONG_PROMPT = ALPACA.render("Say red.", "stone " * 200)


class Retokenised(Exception):
    """Raised in place of tokenising."""


def write(path: Path, *rows) -> Path:
    """A jsonl file of objects and raw lines."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read_rows(path: Path, limit: int = -1, **named) -> list[Row]:
    return dataset.read_rows(path, ALPACA, limit, **named)


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
    tokenizer.train_from_iterator([ALPACA.render("Say it.", "x") + json.dumps(row) for row in make_rows(50)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


TOKENIZERS = {"plain": make_tokenizer, "bos and eos": with_bos, "leading space": with_leading_space}


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
    "two objects": (b'{"instruction": "a", "output": "b"} {}', "not JSON"),
    "nested too deep": (b"[" * 100_000, "not JSON"),
    "a number too long": (b'{"instruction": "a", "output": "b", "n": ' + b"1" * 5000 + b"}", "not JSON"),
    "a list": (b'["Add.", "Three."]', "list, not an object; write {'instruction': ..., 'output': ...}"),
    "instruction of a wrong type": ({**GOOD, "instruction": 3}, "instruction is int; write a string"),
    "input is an empty list": ({**GOOD, "input": []}, "input is list; write a string"),
    "a chat of TRL's": ({"prompt": [{"role": "user"}], "completion": []}, "prompt is list; write a string"),
    "empty instruction": ({"instruction": "", "output": "Three."}, "neither instruction nor prompt"),
    "no output": ({"instruction": "Add."}, "no output; write the response as a string, or several as a list"),
    "output is null": ({**GOOD, "output": None}, "output is empty or not text; write a response or remove the row"),
    "blank output": ({**GOOD, "output": " \n"}, "output is empty"),
    "empty list of outputs": ({**GOOD, "output": []}, "output is empty"),
    "a blank among the outputs": ({**GOOD, "output": ["Three.", ""]}, "output is empty"),
    "a number among the outputs": ({**GOOD, "output": ["Three.", 3]}, "not text"),
    "not UTF-8": (b'{"instruction": "caf\xe9", "output": "b"}', "; convert the file to UTF-8"),
    "half a surrogate pair": (rb'{"instruction": "\ud800", "output": "b"}', "; write whole characters"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_refused_with_file_line_and_reason(tmp_path, row, reason):
    path = write(tmp_path / "train.jsonl", GOOD, b"", row, GOOD)
    with pytest.raises(ValueError) as error:
        read_rows(path)
    message = str(error.value)
    assert message.startswith(f"{path}:3: ") and reason in message and "\n" not in message


def test_a_missing_file_names_the_flag_and_what_is_there(tmp_path, tokenizer, args):
    path = tmp_path / "train.jsonl"
    for read in (read_rows, lambda path: load_instruction_data(path, tokenizer, args)):
        with pytest.raises(FileNotFoundError, match=r"^--data-dir .*: no train\.jsonl there; see data/README"):
            read(path)
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(FileNotFoundError, match=r": no train.jsonl there \(found: rows.jsonl\); see"):
        read_rows(path)
    with pytest.raises(FileNotFoundError, match=r"^--data-dir .*gone\.json: no such file; pass a file or a folder"):
        find_source(str(tmp_path / "gone.json"), "train")
    path.write_bytes(b"  \r\n\t\n")
    with pytest.raises(ValueError, match=f"{path}: no rows; "):
        read_rows(path)


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_allowed(tmp_path):
    path = tmp_path / "train.jsonl"
    line = json.dumps(GOOD).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n   \n" + line + b"\n{")
    assert read_rows(path, 2) == [Row(ALPACA.render("Add.", ""), ("Three.",))] * 2  # and reads no further


fields = st.sampled_from(["instruction", "input", "output", "prompt"])
values = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
objects = st.dictionaries(fields, values | st.lists(values, max_size=3), max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | objects.map(lambda row: json.dumps(row).encode()))
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
@given(instruction=words, outputs=st.lists(words, min_size=1, max_size=3), ascii_only=st.booleans())
def test_any_text_survives_reading(tmp_path, instruction, outputs, ascii_only):
    path = tmp_path / "train.jsonl"
    row = {"instruction": instruction, "output": outputs if len(outputs) > 1 else outputs[0]}
    path.write_bytes(json.dumps(row, ensure_ascii=ascii_only).encode() + b"\n")
    assert read_rows(path) == [Row(ALPACA.render(instruction, ""), tuple(outputs))]


def test_fields_of_other_programs_are_known_and_a_prompt_of_its_own_wins(tmp_path):
    dolly = {"instruction": "Add.", "context": "1 and 2", "response": "Three.", "category": "closed_qa"}
    trl = {"prompt": "Q: 1+2", "completion": ["3", "three"]}
    ours = {**GOOD, "input": "", "context": "not used", "response": "not used"}
    read = read_rows(write(tmp_path / "train.jsonl", dolly, trl, ours, {**GOOD, "prompt": "Q:"}))
    prompts = (ALPACA.render("Add.", "1 and 2"), "Q: 1+2", ALPACA.render("Add.", ""), "Q:")
    assert [row.prompt for row in read] == list(prompts)
    assert [row.responses for row in read] == [("Three.",), ("3", "three"), ("Three.",), ("Three.",)]


def as_file(path: Path, rows: list[dict]) -> Path:
    """The rows in the format that the file's name says, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        write(path, *rows)
    else:
        table = dataset.datasets.Dataset.from_list(rows)
        {".csv": table.to_csv, ".parquet": table.to_parquet}[path.suffix](path)
    return path


FILES = ["train.jsonl", "train.json", "a set's/train.csv", "data/train-00000-of-00001.parquet", "train-1.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_folder_or_a_file_of_every_format_is_read(tmp_path, name):
    rows = [{**GOOD, "input": ""}, {**GOOD, "input": 'é, "2"\n3', "output": "NA"}]
    path = as_file(tmp_path / name, rows)
    folder = path.parent.parent if path.parent.name == "data" else path.parent
    for place in (folder, path):
        read = dataset.read_rows(find_source(str(place), "train"), ALPACA)
        wanted = [Row(ALPACA.render("Add.", row["input"]), (row["output"],)) for row in rows]
        assert read == wanted
    assert [row.place.removeprefix(str(path)) for row in read] in ([":1", ":2"], [":2", ":3"], [", row 1", ", row 2"])


def test_a_bad_row_is_named_in_every_format(tmp_path):
    rows = [GOOD, {"instruction": "Add.", "output": " "}, GOOD]
    for name, place in (("a.json", ", row 2"), ("a.csv", ":3"), ("a.parquet", ", row 2"), ("a.jsonl", ":2")):
        path = as_file(tmp_path / name, rows)
        with pytest.raises(ValueError, match=f"^{path}{place}: output is empty"):
            read_rows(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"[1, 2]", ", row 1: int, not an object"),
        ("a.json", b'[{"instruction": 1},', ": not JSON ("),
        ("a.json", b'["\xe9"]', ": not UTF-8 ("),
        ("a.csv", b"instruction,output\nAdd.\n", ":2: not as many fields as the header"),
        ("a.csv", b"instruction,output\na,b\nAdd.,x,y\n", ":3: not as many fields as the header"),
        ("a.csv", b"instruction,output\na,\xe9\n", ": not UTF-8 ("),
        ("a.csv", b"instruction,output\n", ": no rows; "),
        ("a.json", b"[]", ": no rows; "),
        ("a.parquet", b"PAR1", ": not a parquet file ("),
        ("a.txt", b"Add.", ": not a .jsonl, .json, .csv, .parquet file; convert it, or pass a folder"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        dataset.read_rows(find_source(str(path), "train"), ALPACA)
    assert str(path) in str(error.value)


def test_a_data_set_of_the_hub_is_loaded_with_its_split_and_revision(monkeypatch, args, tokenizer):
    """With a stub of `load_dataset`: there is no network here."""
    calls = []

    def load(name, **named):
        calls.append((name, named))
        if named["split"] != "train_sft":
            raise ValueError(f'Unknown split "{named["split"]}".')
        return dataset.datasets.Dataset.from_list([{**GOOD, "input": None}] * 3 + [{**GOOD, "input": "x"}])

    monkeypatch.setattr(dataset.datasets, "load_dataset", load)
    sources._from_hub.cache_clear()
    hub = replace(args, data_dir="some-org/chats.v2", data_split="train_sft", data_revision="abc")
    train, dev = dataset.load_data(tokenizer, hub)
    assert calls[0] == ("some-org/chats.v2", {"split": "train_sft", "revision": "abc"})
    assert sorted((len(train), len(dev))) == [1, 3]
    with pytest.raises(
        ValueError, match=r'--data-dir some-org/chats.v2: .* split train on the hub \(Unknown split "tr'
    ):
        dataset.load_data(tokenizer, replace(hub, data_split="train"))
    with pytest.raises(FileNotFoundError, match=r"--data-dir data/missing: no train\.jsonl there"):
        find_source("data/missing", "train", hub)  # data/ is a folder here, so it is no organisation


def test_without_a_dev_file_rows_are_held_out_by_their_content(tmp_path, tokenizer, args):
    rows = [*make_rows(100), *make_rows(3)]
    path = write(tmp_path / "train.jsonl", *rows)
    train, dev = training_sources(args)
    parts = {source.part: [text for _, text in source.rows()] for source in (train, dev)}
    assert len(parts["dev"]) in (5, 6) and sorted(parts["dev"] + parts["train"]) == sorted(
        map(str.strip, parts_of(path))
    )
    assert not set(parts["dev"]) & set(parts["train"])  # equal rows are on one side
    shuffled = as_file(tmp_path / "other/train.jsonl", rows[::-1])
    again = training_sources(replace(args, data_dir=str(shuffled.parent)))[1]
    assert {text for _, text in again.rows()} == set(parts["dev"])
    data, dev_data = dataset.load_data(tokenizer, replace(args, train_num=7))
    assert (len(data), len(dev_data)) == (7, len(parts["dev"]))
    assert train.digest() != dev.digest() != sources.as_source(path).digest()


def chats_of(question: str, count: int) -> list[dict]:
    """Chats that begin with one question, in both forms, and go on otherwise."""
    names = (("messages", "role", "content", "user"), ("conversations", "from", "value", "human"))
    for number in range(count):
        chat, role, content, user = names[number % 2]
        turns = ((user, question), ("assistant", f"Once {number}."), (user, "Again"), ("assistant", "Twice."))
        yield {chat: [{role: who, content: text, "id": number} for who, text in turns]}


MANY_ANSWERS = {
    "instruction": lambda i: ({"instruction": f"Add {i}.", "output": f"It is {j}."} for j in range(3)),
    "another name": lambda i: (
        {"instruction": f"Add {i}.", **more, "output": "One."} for more in ({}, {"input": ""}, {"context": None})
    ),
    "prompt": lambda i: ({"prompt": f"Add {i}.", "instruction": f"{j}", "completion": "One."} for j in range(3)),
    "chat": lambda i: chats_of(f"Add {i}.", 3),
}


@pytest.mark.parametrize("rows_of", MANY_ANSWERS.values(), ids=MANY_ANSWERS)
def test_rows_of_one_prompt_are_on_one_side(tmp_path, args, rows_of):
    write(tmp_path / "train.jsonl", *(row for i in range(100) for row in rows_of(i)))
    train, dev = ([text for _, text in source.rows()] for source in training_sources(args))
    assert len(train) + len(dev) == 300 and len(dev) in (15, 16, 17)
    questions = [{re.search(r"Add \d+", text)[0] for text in part} for part in (train, dev)]
    assert not questions[0] & questions[1]


def test_a_prompt_of_most_rows_stays_in_train(tmp_path, args):
    """Held out, it would leave little to train on; without any other, the one with fewer rows is dev."""
    for number in range(30):  # in some of them the large prompt has one of the smallest hashes
        rows = [{**GOOD, "input": f"{number}"}] * 100 + [{**GOOD, "input": f"{number}-{i}"} for i in range(20)]
        write(tmp_path / "train.jsonl", *rows)
        train, dev = training_sources(args)
        assert len(list(dev.rows())) == 6 and len(list(train.rows())) == 114
    write(tmp_path / "train.jsonl", *[GOOD] * 30, *[{**GOOD, "input": "x"}] * 20)
    train, dev = training_sources(args)
    assert len(list(dev.rows())) == 20 and len(list(train.rows())) == 30


def parts_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_one_prompt_is_too_few_to_hold_some_out(tmp_path, args):
    write(tmp_path / "train.jsonl", GOOD, {**GOOD, "output": "Four."})
    train, dev = training_sources(args)
    assert dev is None and train.part is None and len(list(train.rows())) == 2


def test_a_dev_file_has_the_names_of_this_project_and_of_the_hub(tmp_path, args):
    write(tmp_path / "train.jsonl", GOOD)
    as_file(tmp_path / "data/validation-00000-of-00002.parquet", [GOOD])
    as_file(tmp_path / "data/validation-00001-of-00002.parquet", [GOOD, GOOD])
    assert len(list(training_sources(args)[1].rows())) == 3
    as_file(tmp_path / "dev.csv", [GOOD])
    assert len(list(training_sources(args)[1].rows())) == 1


def test_a_digest_of_one_file_is_its_sha256_and_follows_its_content(train_file):
    before = sources.as_source(train_file).digest()
    assert before == hashlib.sha256(train_file.read_bytes()).hexdigest()
    train_file.write_text(train_file.read_text().replace("Say", "Sing", 1))
    assert sources.as_source(train_file).digest() != before


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


def test_the_prompt_is_the_alpaca_template(tmp_path):
    rows = read_rows(write(tmp_path / "train.jsonl", {**GOOD, "input": "{} {paired}"}, {**GOOD, "input": None}, GOOD))
    assert rows[0].prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write "
        "a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n{} {paired}\n\n"
        "### Response:\n"
    )
    assert rows[1].prompt == rows[2].prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nAdd.\n\n### Response:\n"
    )  # fmt: skip


def test_without_a_template_the_prompt_is_the_text_of_the_row(tmp_path):
    path = write(tmp_path / "train.jsonl", GOOD, {**GOOD, "input": "1 and 2"})
    assert [row.prompt for row in dataset.read_rows(path, prompt_template("none"))] == ["Add.", "Add.\n\n1 and 2"]


def test_an_unknown_template_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="--prompt-template chatml: unknown template; choose one of alpaca, none"):
        prompt_template("chatml")


# --- token ids -------------------------------------------------------------------------------------------------------


def test_prompt_and_response_together_are_the_text_and_eos(any_tokenizer):
    rows = make_rows(12)
    prompts = [ALPACA.render(row["instruction"], row["input"]) for row in rows]
    responses = [row["output"] if isinstance(row["output"], str) else row["output"][0] for row in rows]
    eos, bos = any_tokenizer.eos_token_id, any_tokenizer.bos_token_id
    for prompt, response, before, after in zip(prompts, responses, *encode_pairs(any_tokenizer, prompts, responses)):
        assert after[-1] == eos and (before + after).count(eos) == 1
        assert (before + after).count(bos) == (before[0] == bos) == (bos is not None)
        assert any_tokenizer.decode(before + after, skip_special_tokens=True) == prompt + response
        # As the model would see the whole text: nothing is between the prompt and its response.
        whole = any_tokenizer(prompt + response)["input_ids"]
        assert before + after in (whole, [*whole, eos])


@pytest.mark.parametrize(("make", "differs"), [(make_tokenizer, False), (with_leading_space, True)])
def test_a_response_gets_the_ids_it_has_after_its_prompt(make, differs):
    """docs/parity.md: they differ from those of the response alone where a tokenizer begins a text with a space."""
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


@pytest.mark.parametrize("add_eos", [False, True])
@pytest.mark.parametrize("opening", ["", "<bos><bos>"])
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


@pytest.mark.parametrize("limit", [64, 101])
def test_long_prompts_lose_their_middle(any_tokenizer, limit):
    whole, short = encode_prompts(any_tokenizer, [LONG_PROMPT, "Say red."])
    cut, kept = cut_prompts(any_tokenizer, [whole, short], limit, ALPACA.ending)
    assert kept == short
    assert len(cut) == limit < len(whole)
    assert any(cut == whole[:head] + whole[head - limit :] for head in range(limit // 2, limit))
    text = any_tokenizer.decode(cut, skip_special_tokens=True)
    assert text.endswith(ALPACA.ending) and (limit < 100 or "### Instruction:\nSay red." in text)
    assert (cut[0] == any_tokenizer.bos_token_id) == (any_tokenizer.bos_token_id is not None)


@pytest.mark.parametrize(("ending", "tail"), [("", 8), (" stone" * 10, 10), (" stone" * 90, 32)])
def test_the_ending_of_a_template_survives_the_cut(tokenizer, ending, tail):
    (whole,) = encode_prompts(tokenizer, [LONG_PROMPT])
    assert cut_prompts(tokenizer, [whole], 32, ending) == [whole[: 32 - tail] + whole[-tail:]]
    assert cut_prompts(tokenizer, [whole], len(whole), ending) == [whole]


# --- the data set ----------------------------------------------------------------------------------------------------


def test_examples_are_the_rows_in_order(train_file, tokenizer, args):
    data = load_instruction_data(train_file, tokenizer, args)
    rows = read_rows(train_file)
    prompts, responses = encode_pairs(tokenizer, [row.prompt for row in rows], [row.responses[0] for row in rows])
    wanted = list(zip(cut_prompts(tokenizer, prompts, 64, ALPACA.ending), responses))
    assert ids_of(data) == wanted
    assert data.lengths.tolist() == [len(prompt) + len(response) for prompt, response in wanted]
    assert data.responses.tolist() == [len(response) for _, response in wanted]
    assert data.keys() == [data[i].key for i in range(len(data))]
    assert data.max_token_id == max(token for example in wanted for ids in example for token in ids)
    assert data.cut_prompts == sum(len(prompt) > 64 for prompt in prompts) > 0
    assert data.cut_responses == 0


def test_training_uses_the_template_and_the_first_of_several_outputs(tmp_path, tokenizer, args):
    path = write(tmp_path / "train.jsonl", {**GOOD, "output": ["red", "blue"]})
    (example,) = load_instruction_data(path, tokenizer, replace(args, prompt_template="none"))
    assert [tokenizer.decode(ids) for ids in (example.prompt_ids, example.response_ids)] == ["Add.", "red<eos>"]


def test_what_is_too_long_is_cut_and_a_cut_response_has_no_eos(tmp_path, tokenizer, args):
    rows = [{**GOOD, "output": "stone " * 70}, GOOD, {**GOOD, "input": "stone " * 200, "output": "river " * 300}]
    path = write(tmp_path / "train.jsonl", *rows)
    length = int(load_instruction_data(path, tokenizer, replace(args, max_length=500)).lengths[0])
    for max_length, closed in ((length, [True, True, False]), (length - 1, [False, True, False])):
        data = load_instruction_data(path, tokenizer, replace(args, max_length=max_length))
        assert [tokenizer.eos_token_id in data[i].response_ids for i in range(3)] == closed
        assert (data.cut_prompts, data.cut_responses) == (1, closed.count(False))
        assert (data.lengths[2], len(data[2].prompt_ids)) == (max_length, 64)


def test_a_response_that_came_without_its_end_is_not_counted_as_cut(tmp_path, tokenizer, args):
    rows = [GOOD, {**GOOD, "output": "stone " * 300, "cut": True}, {**GOOD, "cut": True}]
    data = load_instruction_data(write(tmp_path / "train.jsonl", *rows), tokenizer, args)
    assert (data.cut_responses, data.unfinished) == (0, 2)
    assert [tokenizer.eos_token_id in data[i].response_ids for i in range(3)] == [True, False, False]
    report = Report()
    config = SimpleNamespace(data=replace(args, data_dir=str(tmp_path)))
    describe_data(config, data, None, report)
    facts = dict(report.facts)["train"]
    assert "0 responses to --max-length" in facts and '; 2 responses are marked "cut" and get no EOS; ' in facts
    assert report.warnings[-1] == (
        'train: 67% of the responses are marked "cut" and get no EOS; raise --max-length where they are generated'
    )


# --- cache -----------------------------------------------------------------------------------------------------------


def test_a_second_load_reads_the_cache(train_file, args, monkeypatch):
    """Also with tokenizers that were saved with the truncation of an earlier run: the first use resets it."""
    tokenizers = [make_tokenizer() for _ in range(2)]
    for tokenizer in tokenizers:
        tokenizer.backend_tokenizer.enable_truncation(5)
        tokenizer.backend_tokenizer.enable_padding(length=7)
    first = ids_of(load_instruction_data(train_file, tokenizers[0], args))
    assert max(len(prompt) for prompt, _ in first) == 64
    fail_to_tokenise(monkeypatch)
    train_file.touch()  # the content decides, not the time
    unrelated = replace(args, packing=False, data_process_workers=7, dev_num=3)
    assert ids_of(load_instruction_data(train_file, tokenizers[1], unrelated)) == first


def test_what_changes_the_ids_changes_the_cache(train_file, args, monkeypatch):
    def retokenises(tokenizer=None, args=args, limit=-1) -> bool:
        try:
            load_instruction_data(train_file, tokenizer or make_tokenizer(), args, limit)
        except Retokenised:
            return True
        return False

    untemplated = replace(args, prompt_template="none")
    assert not retokenises() and not retokenises(args=untemplated)
    fail_to_tokenise(monkeypatch)
    assert not retokenises() and not retokenises(args=untemplated)
    monkeypatch.setattr(dataset.inspect, "getsource", lambda template: "edited")
    assert retokenises(args=untemplated)
    for change in ({"max_length": 129}, {"max_prompt_length": 63}, {"force_process": True}):
        assert retokenises(args=replace(args, **change))
    larger, ending_otherwise = make_tokenizer(), make_tokenizer()
    larger.add_tokens(["stone river"])
    ending_otherwise.eos_token = "red"
    for tokenizer in (larger, ending_otherwise, with_bos(add_eos=False)):
        assert retokenises(tokenizer)
    assert retokenises(limit=23)
    train_file.write_text(train_file.read_text().replace("Say", "Sing", 1))
    assert retokenises()


def test_force_process_writes_the_same_again(train_file, tokenizer, args):
    data = load_instruction_data(train_file, tokenizer, args)
    again = load_instruction_data(train_file, tokenizer, replace(args, force_process=True))
    assert ids_of(again) == ids_of(data)  # the first stays readable while it is replaced


def test_only_the_first_process_of_a_node_tokenises(train_file, tokenizer, args, monkeypatch):
    dataset.load_data(tokenizer, args)
    fail_to_tokenise(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for forced in (False, True):
        train, dev = dataset.load_data(tokenizer, replace(args, force_process=forced))
        assert (len(train), len(dev)) == (23, 1)


@pytest.mark.parametrize("name", ["databricks-dolly-15k-in-the-processed-form-of-the-line-of-repositories", "a: b?"])
def test_several_processes_give_the_same_in_a_folder_of_any_name(tmp_path, tokenizer, args, monkeypatch, name):
    path = tmp_path / name / "train.jsonl"
    path.parent.mkdir()
    write(path, *make_rows(24))
    serial = ids_of(load_instruction_data(path, tokenizer, args))
    parallel_args = replace(args, data_process_workers=2, force_process=True)
    monkeypatch.setattr(dataset, "ROWS_PER_WORKER", 5)
    with patch.object(dataset.datasets.Dataset, "map", autospec=True, side_effect=dataset.datasets.Dataset.map) as map:
        assert ids_of(load_instruction_data(path, tokenizer, parallel_args)) == serial
        assert ids_of(load_instruction_data(path, tokenizer, parallel_args, 5)) == serial[:5]
    assert [call.kwargs["num_proc"] for call in map.call_args_list] == [2, None]  # the second has too few rows to share


def test_an_interrupted_run_leaves_no_cache_behind(train_file, tokenizer, args):
    def broken_save(self, path):
        Path(path).mkdir()
        raise KeyboardInterrupt

    with patch.object(dataset.datasets.Dataset, "save_to_disk", broken_save), pytest.raises(KeyboardInterrupt):
        load_instruction_data(train_file, tokenizer, args)
    assert len(load_instruction_data(train_file, tokenizer, args)) == 24


def test_two_runs_may_tokenise_at_once(train_file, tokenizer, args, monkeypatch, tmp_path):
    """The other one is done first, while this one is still writing."""
    save = dataset.datasets.Dataset.save_to_disk

    def save_late(self, path):
        with patch.object(dataset.datasets.Dataset, "save_to_disk", save), patch("os.getpid", lambda: 1):
            load_instruction_data(train_file, tokenizer, args)
        save(self, path)

    monkeypatch.setattr(dataset.datasets.Dataset, "save_to_disk", save_late)
    assert len(load_instruction_data(train_file, tokenizer, args)) == 24
    (folder,) = (tmp_path / "cache").iterdir()
    assert not folder.name.endswith(".tmp")
