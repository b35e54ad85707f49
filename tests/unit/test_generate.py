"""A data folder with a model's answers: schema, cut and empty answers, kills, ranks, other settings, mistakes."""

import errno
import fcntl
import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from torch import distributed as dist
from transformers import AutoTokenizer

import generate
from arguments import DataArguments, GenerationArguments
from data_utils.dataset import load_instruction_data
from data_utils.manifest import data_origin, read_manifest, sha256
from data_utils.prompts import cut_prompts, encode_prompts, prompt_template
from data_utils.rows import read_rows
from generation import answered_data
from generation.building import build_generator
from integration.launch import ROOT, run, torchrun
from models.loading import load_checkpoint
from runtime import atomic
from runtime.atomic import unfinished
from runtime.locks import lock

LIMIT = 10  # new tokens
LENGTHS = ["--max-length", str(64 + LIMIT), "--max-prompt-length", "64"]
SAMPLED = ["--do-sample", "--seeds", "10", "20", "--prompts-per-save", "7", "--eval-batch-size", "3"]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """Of a complete folder; the manifest without the command and the machine."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(found.pop("manifest.json"))
    return found | {"manifest": {name: value for name, value in manifest.items() if name != "run"}}


@pytest.fixture(scope="module")
def data(rows, tmp_path_factory):
    """The rows, some of them with further fields, in another format, without an answer."""
    folder = shutil.copytree(rows, tmp_path_factory.mktemp("data") / "set")
    first, second, third, *others = read(folder / "train.jsonl")
    second = {"instruction": second["instruction"], "context": "", "response": "red", "category": "colour"}
    text = [{**first, "cut": True, "id": 7}, second, {**third, "output": ""}, *others]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in text))
    return folder


@pytest.fixture(scope="module")
def answers(tiny, data):
    """The student's greedy answers as ids, never ended."""
    model, tokenizer = load_checkpoint(str(tiny / "student"))
    rows = read_rows(data / "train.jsonl", prompt_template("alpaca"), empty_references=True)
    prompts = encode_prompts(tokenizer, [row.prompt for row in rows])
    prompts = cut_prompts(tokenizer, prompts, 64, prompt_template("alpaca").ending)
    built = build_generator(model, tokenizer, GenerationArguments(), max_new_tokens=LIMIT, tokens_per_batch=300)
    return built.generate(prompts, [10])[10]


@pytest.fixture(scope="module")
def teacher(tiny, answers, tmp_path_factory):
    """The student with another EOS: one answer has it first, some later, most not at all."""
    firsts, counts = Counter(ids[0] for ids in answers), Counter(token for ids in answers for token in set(ids))
    eos = max((token for token, count in firsts.items() if count == 1), key=lambda token: counts[token])
    assert 2 < counts[eos] < len(answers)
    folder = shutil.copytree(tiny / "student", tmp_path_factory.mktemp("teacher") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(eos)})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make(teacher, data, capsys):
    """Runs code/generate.py in this process and returns what it prints."""

    def start(out, *flags, code=0):
        words = ["--model-path", teacher, "--data-dir", data, "--save-dir", out, *LENGTHS, *flags]
        ended = 0
        try:
            generate.main(list(map(str, words)))
        except SystemExit as end:
            ended = end.code
        printed, errors = capsys.readouterr()
        assert ended == code, errors
        return errors if code else printed

    return start


@pytest.fixture(scope="module")
def whole(teacher, data, tmp_path_factory):
    """Two samples of each prompt, made without interruption."""
    out, environment = tmp_path_factory.mktemp("whole") / "out", dict(os.environ)
    generate.main(command(teacher, data, out)[1:])
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)
    return out


def command(teacher, data, out) -> list[str]:
    flags = ["--model-path", teacher, "--data-dir", data, "--save-dir", out, *LENGTHS, *SAMPLED]
    return ["code/generate.py", *map(str, flags)]


def test_the_rows_of_the_source_have_the_models_answers(make, teacher, data, answers, tmp_path):
    printed = make(tmp_path / "out", "--prompts-per-save", 5)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    eos, wanted, empty = tokenizer.eos_token_id, [], []
    for number, (row, ids) in enumerate(zip(read_objects(data / "train.jsonl"), answers)):
        cut = eos not in ids
        text = tokenizer.decode(ids if cut else ids[: ids.index(eos)], skip_special_tokens=True)
        text = (text.rstrip("\ufffd") if cut else text).strip()
        row.pop("cut", None)
        row["response" if "response" in row else "output"] = text
        wanted += [row | ({"cut": True} if cut else {})] if text else []
        empty += [] if text else [{"place": f"train.jsonl:{2 * number + 1}", "seed": 10}]
    made = read(tmp_path / "out/train.jsonl")
    assert made == wanted and 0 < sum("cut" in row for row in made) < len(made)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dev.jsonl", "manifest.json", "train.jsonl", "valid.jsonl"
    ]  # fmt: skip
    for name in ("dev.jsonl", "valid.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (data / name).read_bytes()
    manifest = read_manifest(tmp_path / "out")
    counts = manifest["answers"]["counts"]["train"]
    assert (counts["prompts"], counts["answers"], counts["empty"], counts["empty_at"]) == (24, 23, 1, empty)
    assert counts["cut"] == sum("cut" in row for row in made)
    assert f"train.jsonl: 23 answers, {counts['cut']} cut; 1 are empty and left out" in printed
    assert manifest["source"]["files"]["train.jsonl"] == sha256(data / "train.jsonl")
    assert manifest["answers"]["settings"]["decoding"]["max_new_tokens"] == LIMIT
    assert manifest["run"]["command"][0] == "code/generate.py" and "torch" in manifest["run"]["versions"]
    assert data_origin(tmp_path / "out", "valid")["sha256_matches"]


def read_objects(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def test_cut_answers_have_no_eos_in_training(whole, teacher, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    args = DataArguments(data_dir=str(whole), max_length=128, max_prompt_length=64, processed_data_dir=str(tmp_path))
    table = load_instruction_data(whole / "train.jsonl", tokenizer, args)
    ends = [table[i].response_ids[-1] == tokenizer.eos_token_id for i in range(len(table))]
    assert ends == ["cut" not in row for row in read(whole / "train.jsonl")] and 0 < sum(ends) < len(ends)


def test_two_ranks_give_the_same_folder(whole, teacher, data, tmp_path):
    done = run(torchrun(2, *command(teacher, data, tmp_path / "out")))
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == files(whole)
    assert done.stdout.count("part 8 of 8") == 1


def test_samples_differ_between_seeds_and_parts(make, teacher, tmp_path):
    same = [{"prompt": "Say red.", "output": "x"}] * 6
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in same))
    flags = ["--data-dir", tmp_path / "data", "--do-sample", "--seeds", 1, 2, "--prompts-per-save", 2]
    make(tmp_path / "out", *flags)
    assert len({row["output"] for row in read(tmp_path / "out/train.jsonl")}) == 12


DIES = """
import os, runpy, signal, sys
sys.path.insert(0, "code")
from runtime import atomic
written, rename = [], atomic.Path.replace
def replace(path, target):
    written.append(target)
    if len(written) == 4:  # settings.json, two parts, the third
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
atomic.Path.replace = replace
sys.argv = {words}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_kill_loses_nothing_that_was_saved(make, whole, teacher, data, tmp_path):
    """SIGKILL before the third part has its name."""
    killed = run([sys.executable, "-c", DIES.format(words=command(teacher, data, tmp_path / "out"))])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished"]
    assert len(list((tmp_path / "out/unfinished").glob("*.jsonl"))) == 2
    printed = make(tmp_path / "out", *SAMPLED)
    assert "2 of 8 parts are there already" in printed and printed.count("tokens/s") == 6
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.parametrize("name", ["train.jsonl", "valid.jsonl", "manifest.json"])
def test_a_folder_is_completed_without_the_model(make, whole, tmp_path, monkeypatch, name):
    """Ended while the folder was written, when all parts are there."""

    def dies(path):
        if path.name == name and path.parent == tmp_path / "out":
            raise KeyboardInterrupt
        return unfinished(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(atomic, "unfinished", dies)
        make(tmp_path / "out", *SAMPLED)
    _, resumed, printed = make(tmp_path / "out", *SAMPLED).partition("8 of 8 parts are there already")
    assert resumed and "tokens/s" not in printed
    assert files(tmp_path / "out") == files(whole)


def test_a_complete_folder_stays(make, whole, tmp_path):
    """Also where it was ended before the parts were removed."""
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "unfinished").mkdir()
    assert "is complete" in make(out, *SAMPLED) and files(out) == files(whole)


@pytest.mark.parametrize("state", ["complete", "unfinished"])
def test_other_settings_are_refused(make, whole, teacher, data, tiny, tmp_path, state):
    out = shutil.copytree(whole, tmp_path / "out")
    if state == "unfinished":
        settings = read_manifest(out)["answers"]["settings"]
        shutil.rmtree(out)
        (out / "unfinished").mkdir(parents=True)
        (out / "unfinished/settings.json").write_text(json.dumps(settings))
    before = {path: path.read_bytes() for path in out.rglob("*.json*")}
    other = shutil.copytree(data, tmp_path / "other")
    shutil.copy(data / "dev.jsonl", other / "train.jsonl")
    for flags, said in {
        ("--temperature", 0.5): "decoding.temperature: 1.0 for the answers there, 0.5 for this command (--temperature)",
        ("--seeds", 10): "seed: [10, 20] for the answers there, [10] for this command (--seed)",
        ("--train-num", 5): "(--train-num)",
        ("--splits", "train", "dev"): "(--splits)",
        ("--data-dir", other): "(--data-dir)",
        ("--model-path", tiny / "teacher"): "What differs: another model (--model-path, --peft-path)",
    }.items():
        assert said in make(out, *SAMPLED, *flags, code=2)
    assert {path: path.read_bytes() for path in out.rglob("*.json*")} == before


def test_other_splits_are_answered(make, data, tmp_path):
    make(tmp_path / "out", "--splits", "dev", "--prompts-per-save", 2)
    assert not (tmp_path / "out/train.jsonl").exists()
    answered, source = read(tmp_path / "out/dev.jsonl"), read(data / "dev.jsonl")
    assert [row["instruction"] for row in answered] == [row["instruction"] for row in source]
    assert [row["output"] for row in answered] != [row["output"] for row in source]
    assert (tmp_path / "out/valid.jsonl").read_bytes() == (data / "valid.jsonl").read_bytes()


def test_lengths_and_template_are_the_runs(make, teacher, tmp_path):
    """Of the run that wrote the checkpoint."""
    run_folder = tmp_path / "run"
    shutil.copytree(teacher, run_folder / "epoch1")
    of_run = {"max_length": 50, "max_prompt_length": 40, "prompt_template": "none"}
    (run_folder / "args.json").write_text(json.dumps(of_run))
    generate.main(["--model-path", str(run_folder), "--data-dir", str(ROOT / "data/sample"), "--train-num", "2",
                   "--save-dir", str(tmp_path / "out")])  # fmt: skip
    settings = read_manifest(tmp_path / "out")["answers"]["settings"]
    assert of_run.items() < settings.items() and settings["decoding"]["max_new_tokens"] == 10


def test_another_process_is_not_disturbed(make, data, tmp_path, monkeypatch):
    def held(*_):
        raise OSError(errno.EAGAIN, "held")

    make_lock, _ = lock(tmp_path / "out/unfinished/.lock")
    monkeypatch.setattr(fcntl, "lockf", held)  # a process does not lock itself out
    with make_lock:
        said = make(tmp_path / "out", code=2)
    assert "another process writes there (host " in said


def test_a_failed_write_ends_with_its_code(make, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.atomic.sync", full)
    said = make(tmp_path / "out", code=74)
    assert "No space left" in said and "make room; the same command resumes" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--seeds 1 2", "--seed [1, 2]: without --do-sample every seed gives the same answers"),
        ("--do-sample --seeds 1 1", "--seed [1, 1]: name each once"),
        ("--splits test", "no test.jsonl there"),
        ("--model-path a b", "--model-path ['a', 'b']: pass one model"),
        ("--model-path nobody/nothing", "nobody/nothing: "),
        (
            "--max-length 513",
            "has 512 positions; pass --max-length 512 --max-prompt-length 256, or less (in front of a script: "
            "MAX_LENGTH=512 MAX_PROMPT_LENGTH=256)",
        ),
        ("--max-new-tokens 449", "has 512 positions; lower one of them"),
        ("--max-length 64", "--max-length 64: pass more than --max-prompt-length 64"),
        ("--prompts-per-save 0", "--prompts-per-save 0: pass a number of at least 1"),
        ("--generator vllm", "--generator vllm: vllm is not installed"),
        ("--save-dir {data}", "--save-dir {data}: dev.jsonl, train.jsonl, valid.jsonl there, which code/generate.py"),
        ("--data-dir {broken}", "{broken}/train.jsonl:1: not JSON"),
    ],
)
def test_a_mistake_is_named(make, data, tmp_path, flags, said):
    places = {"data": data, "broken": tmp_path / "broken"}
    places["broken"].mkdir()
    (places["broken"] / "train.jsonl").write_text("{")
    assert said.format(**places) in make(tmp_path / "out", *flags.format(**places).split(), code=2)
    assert not (tmp_path / "out").exists()


def test_a_model_that_says_nothing_is_refused(make, tmp_path, monkeypatch):
    monkeypatch.setattr(answered_data, "_with_output", None)
    decode = "transformers.PreTrainedTokenizerBase.batch_decode"
    monkeypatch.setattr(decode, lambda self, answers, **_: [" \n"] * len(answers))
    assert "train.jsonl: the model answers no prompt" in make(tmp_path / "out", code=2)
    assert not (tmp_path / "out/train.jsonl").exists()


CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def test_chats_get_another_last_answer(teacher, tmp_path):
    """Earlier turns stay; what follows the last answer goes; a cut answer has no end of turn in training."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    template = CHAT_TEMPLATE.replace("</s>", tokenizer.eos_token).replace("<s>", "")
    chatty = shutil.copytree(teacher, tmp_path / "chatty")
    (chatty / "chat_template.jinja").write_text(template)
    turns = [("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"), ("user", "and?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    conversations = [{"from": "human", "value": "three"}, {"from": "gpt", "value": "3"}]
    folder, out = tmp_path / "chats", tmp_path / "out"
    folder.mkdir()
    chats = [{"messages": messages}, {"conversations": conversations, "response": "not read"}]
    (folder / "train.json").write_text(json.dumps(chats))
    (folder / "valid.csv").write_text("instruction,output\nfour,4\n")
    (folder / "validation.jsonl").write_text('{"instruction": "five", "output": "5"}\n')
    generate.main(
        [*f"--model-path {chatty} --data-dir {folder} --save-dir {out} --prompt-template chat".split(), *LENGTHS]
    )
    first, second = read(out / "train.jsonl")
    assert first["messages"][:3] == messages[:3] and len(first["messages"]) == 4
    assert second["conversations"][0] == conversations[0] and second["conversations"][1]["value"] != "3"
    assert second["response"] == "not read"
    assert read(out / "valid.jsonl") == [{"instruction": "four", "output": "4"}]
    assert read(out / "validation.jsonl") == [{"instruction": "five", "output": "5"}], "dev rows by the hub's name"
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    args = DataArguments(data_dir=str(out), prompt_template="chat", processed_data_dir=str(tmp_path / "ids"))
    table = load_instruction_data(out / "train.jsonl", tokenizer, args)
    end = tokenizer.eos_token_id
    assert [example.response_ids[-1] == end for example in table] == [not row.get("cut") for row in (first, second)]
    assert {bool(row.get("cut")) for row in (first, second)} >= {True}
