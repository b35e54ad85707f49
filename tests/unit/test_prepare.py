"""Data preparation from small files in each source's own format: rows, manifest, refusals, and nothing half-written."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts/data"))
import prepare
import selection
from sources import SETS, files

from data_utils.dataset import read_rows
from data_utils.manifest import data_origin, read_manifest, sha256

LONG = "one two three four five six seven eight nine ten eleven"


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def dolly_row(instruction, context="", response="yes"):
    return {"instruction": instruction, "context": context, "response": response, "category": "open_qa"}


def self_inst_row(number, instances, app="Grammarly", instruction="Rewrite."):
    return {"id": f"user_oriented_task_{number}", "motivation_app": app, "instruction": instruction} | instances


@pytest.fixture
def dolly(tmp_path):
    return write_jsonl(tmp_path / "databricks-dolly-15k.jsonl", [dolly_row(f"question {n}") for n in range(40)])


@pytest.fixture
def run(tmp_path):
    """Prepares a set from a local source: its rows per file, its steps as (step, rows left), its manifest."""

    def prepare_set(name, source, *flags):
        folder = tmp_path / "out" / name
        prepare.main([name, "--source", str(source), "--output-dir", str(folder), *map(str, flags)])
        manifest = read_manifest(folder)
        rows = {path.stem: list(map(json.loads, path.open())) for path in folder.glob("*.jsonl")}
        return rows, [(step["step"], step["rows"]) for step in manifest["steps"]], manifest

    return prepare_set


# --- the sets --------------------------------------------------------------------------------------------------------


def test_dolly(run, tmp_path):
    rows = [
        dolly_row("Who? ", "A text.\n", "  Ada Lovelace, née Byron."),
        *(dolly_row(f"question {n}") for n in range(4)),
        *("{broken", "[1]", dolly_row("a", None), {"instruction": "a", "context": ""}),
        *(dolly_row("b", response=" \n"), dolly_row("", response="c"), "", dolly_row("question 1 ")),
    ]
    source = write_jsonl(tmp_path / "databricks-dolly-15k.jsonl", rows)
    splits, steps, manifest = run("dolly", source, "--dev-num", 2, "--valid-num", 1)
    assert {name: len(rows) for name, rows in splits.items()} == {"valid": 1, "dev": 2, "train": 2}
    written = [row for rows in splits.values() for row in rows]
    assert {"instruction": "Who?", "input": "A text.", "output": "Ada Lovelace, née Byron."} in written
    assert steps == [("read", 12), ("bad", 8), ("empty", 6), ("duplicate", 5)]
    assert [first for step in manifest["steps"] for first in step.get("first", [])] == [
        "databricks-dolly-15k.jsonl:6: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "databricks-dolly-15k.jsonl:7: a list, not an object",
        'databricks-dolly-15k.jsonl:8: "context" is NoneType, not str',
        'databricks-dolly-15k.jsonl:9: "response" is missing, not str',
        "databricks-dolly-15k.jsonl:10: no response",
        "databricks-dolly-15k.jsonl:11: no instruction",
        "databricks-dolly-15k.jsonl:13: repeats databricks-dolly-15k.jsonl:3",
    ]


def test_self_inst(run, tmp_path):
    rows = [
        self_inst_row(0, {"instances": [{"input": "If you have any", "output": "If you"}]}),
        self_inst_row(1, {"instances": []}),
        self_inst_row(2, {}),
    ]
    source = write_jsonl(tmp_path / "user_oriented_instructions.jsonl", rows)
    splits, steps, _ = run("self-inst", source)
    assert splits == {"valid": [{"instruction": "Rewrite.", "input": "If you have any", "output": "If you"}]}
    assert steps[:2] == [("read", 3), ("bad", 1)]


@pytest.mark.parametrize("judge", [False, True], ids=["the blog's table", "llm_judge"])
def test_vicuna(run, tmp_path, judge):
    def question(number):
        text = f"Question {number}?"
        return {"question_id": number, "category": "generic"} | ({"turns": [text]} if judge else {"text": text})

    def answer(number):
        text = f"Answer {number}."
        return {"question_id": number} | ({"choices": [{"index": 0, "turns": [text]}]} if judge else {"text": text})

    write_jsonl(tmp_path / "question.jsonl", [question(1), question(2), question(3)])
    name = "reference_answer/gpt-4.jsonl" if judge else "answer_gpt35.jsonl"
    write_jsonl(tmp_path / name, [answer(3), answer(1), "broken"])
    splits, _, manifest = run("vicuna", tmp_path)
    assert splits["valid"] == [{"instruction": f"Question {n}?", "input": "", "output": f"Answer {n}."} for n in (1, 3)]
    assert manifest["steps"][1]["first"] == [f"question.jsonl:2: {Path(name).name} has no answer to question 2"]
    assert set(manifest["source"]["files"]) == {"question.jsonl", Path(name).name if not judge else name}


def test_sinst(run, tmp_path):
    instances = [
        {"id": "task1-a", "input": "In.", "output": [LONG, f"{LONG} ", "", "short"]},
        {"id": "task1-b", "input": "In.", "output": ["short", LONG]},
        {"id": "task1-c", "input": "In.", "output": [1]},
    ]
    task = {"Definition": ["Summarise."], "Positive Examples": [], "Instances": instances}
    many = [{"id": f"task2-{n}", "input": f"In {n}.", "output": [LONG]} for n in range(101)]
    (tmp_path / "splits/default").mkdir(parents=True)
    (tmp_path / "splits/default/test_tasks.txt").write_text("task1_x\ntask2_y\ntask3_z\n")
    write_jsonl(tmp_path / "tasks/task1_x.json", [task])
    write_jsonl(tmp_path / "tasks/task2_y.json", [{"Definition": "Translate.", "Instances": many}])
    write_jsonl(tmp_path / "tasks/task3_z.json", ["{broken"])
    splits, steps, manifest = run("sinst", tmp_path)
    assert splits["valid"][0] == {"instruction": "Summarise.", "input": "In.", "output": [LONG, "short"]}
    assert splits["valid"][-1] == {"instruction": "Translate.", "input": "In 99.", "output": LONG}
    assert steps == [("read", 104), ("bad", 102), ("empty", 102), ("duplicate", 102), ("too short", 101)]
    assert manifest["steps"][-1]["first"] == ["task1_x.json, instance 2: response of 1 words"]
    assert prepare.parse_arguments(["sinst", "--min-response-tokens", "6"]).output_dir == Path("data/sinst/6_")


def test_uinst(run, tmp_path):
    def row(number, output):
        instance = {"instruction_with_input": "", "input": f"In {number}.", "constraints": "None.", "output": output}
        return {"instruction": "Do.", "instances": [instance], "reformulations": [{"instruction": "Just do."}]}

    path = write_jsonl(tmp_path / "x.jsonl", [row(n, LONG) for n in range(20)] + [row(20, "short")])
    source = tmp_path / "core_data.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.write(path, "core_data.jsonl")
    first, steps, _ = run("uinst", source, "--sample", 8)
    assert steps[-2:] == [("too short", 20), ("not drawn", 8)]
    assert {row["output"] for row in first["valid"]} == {LONG} and len(first["valid"]) == 8
    assert run("uinst", path, "--sample", 8, "--force")[0] == first
    assert run("uinst", path, "--sample", 8, "--seed", 11, "--force")[0] != first


# --- what they share -------------------------------------------------------------------------------------------------


def test_the_split_is_disjoint_complete_and_decided_by_the_seed(run, dolly):
    splits, _, _ = run("dolly", dolly, "--dev-num", 10, "--valid-num", 5)
    assert {name: len(rows) for name, rows in splits.items()} == {"valid": 5, "dev": 10, "train": 25}
    assert len({row["instruction"] for rows in splits.values() for row in rows}) == 40
    assert splits == run("dolly", dolly, "--dev-num", 10, "--valid-num", 5, "--force")[0]
    assert splits != run("dolly", dolly, "--dev-num", 10, "--valid-num", 5, "--seed", 11, "--force")[0]


def test_lengths_are_counted_as_in_training(run, tiny, tmp_path):
    from data_utils.prompts import alpaca_prompt, encode_pairs

    rows = [dolly_row("a " * n, response="b " * m) for n, m in ((5, 5), (6, 5), (5, 6), (9, 1))]
    tokenizer = selection.load_tokenizer(str(tiny / "student"))
    pairs = [encode_pairs(tokenizer, [alpaca_prompt(("a " * n).strip(), "")], [("b " * 5).strip()]) for n in (5, 6)]
    (prompt, total), (longer_prompt, _) = [(len(p[0]), len(p[0]) + len(r[0])) for p, r in pairs]
    assert longer_prompt == prompt + 1
    flags = ["--tokenizer", tiny / "student", "--max-prompt-length", longer_prompt, "--max-length", total]
    source = write_jsonl(tmp_path / "rows.jsonl", rows + [dolly_row("a", response=f"b{n}") for n in range(2)])
    _, steps, manifest = run("dolly", source, "--dev-num", 1, "--valid-num", 1, *flags)
    assert steps[-1] == ("too long", 3)
    assert manifest["steps"][-1]["first"] == [
        f"rows.jsonl:2: {total + 1} tokens",
        f"rows.jsonl:3: {total + 1} tokens",
        f"rows.jsonl:4: prompt of {prompt + 4} tokens",
    ]


def test_the_manifest_says_where_the_rows_come_from_and_sees_a_change(run, dolly, tmp_path):
    _, _, manifest = run("dolly", dolly, "--dev-num", 10, "--valid-num", 5, "--revision", "v1")
    folder = tmp_path / "out/dolly"
    page = "https://huggingface.co/datasets/databricks/databricks-dolly-15k"
    assert manifest["source"] == {"page": page, "revision": "v1", "local": True, "files": {dolly.name: sha256(dolly)}}
    assert manifest["files"]["dev.jsonl"] == {"rows": 10, "sha256": sha256(folder / "dev.jsonl")}
    assert manifest["settings"] == {"dev_num": 10, "valid_num": 5, "seed": 10}
    assert len(read_rows(folder / "train.jsonl")) == 25
    origin = {"set": "dolly", "source": page, "revision": "v1", "sha256_matches": True}
    assert data_origin(folder) == data_origin(folder, "train") == origin
    (folder / "valid.jsonl").write_text("{}\n")
    assert data_origin(folder) == origin | {"sha256_matches": False}
    assert data_origin(dolly.parent) is None
    for text in ("{", '{"name": "of another tool"}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest.json: "):
            data_origin(folder)


def test_folders_are_replaced_with_force_and_only_the_tools_own(run, dolly, tmp_path):
    folder, flags = tmp_path / "out/dolly", ("--dev-num", 10, "--valid-num", 5)
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"train.jsonl there, which this tool did not write; move the folder"):
        run("dolly", dolly, *flags, "--force")
    (folder / "train.jsonl").unlink()
    first = run("dolly", dolly, *flags)
    with pytest.raises(FileExistsError, match=r"--output-dir .*dev.jsonl.* there already; pass --force"):
        run("dolly", dolly, *flags)
    assert run("dolly", dolly, *flags, "--force") == first


def test_an_interrupted_write_leaves_the_folder_as_it_was(run, dolly, tmp_path, monkeypatch):
    flags = ("--dev-num", 10, "--valid-num", 5)
    first = run("dolly", dolly, *flags)
    with monkeypatch.context() as patch:

        def interrupt(_path):
            raise KeyboardInterrupt

        patch.setattr(prepare, "sha256", interrupt)
        patch.setattr(prepare, "build_manifest", lambda *_: {})
        with pytest.raises(KeyboardInterrupt):
            run("dolly", dolly, *flags, "--seed", 11, "--force")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dolly"]
    assert run("dolly", dolly, *flags, "--force") == first


# --- downloads -------------------------------------------------------------------------------------------------------


def test_a_download_from_github_resolves_the_revision(tmp_path, monkeypatch):
    commit = "a" * 40
    monkeypatch.setattr(files, "API_URL", f"file://{tmp_path}/api")
    monkeypatch.setattr(files, "RAW_URL", f"file://{tmp_path}/raw")
    repository = SETS["vicuna"].home.repository
    (tmp_path / "api" / repository / "commits").mkdir(parents=True)
    (tmp_path / "api" / repository / "commits/v0.2.5").write_text(commit)
    table = tmp_path / "raw" / repository / commit / "fastchat/eval/table"
    write_jsonl(table / "question.jsonl", [{"question_id": 1, "text": "Why?"}])
    with pytest.raises(OSError, match=r"answer_gpt35.jsonl of https://github.com/lm-sys/FastChat.* pass --source"):
        prepare.main(["vicuna", "--output-dir", str(tmp_path / "out")])
    write_jsonl(table / "answer/answer_gpt35.jsonl", [{"question_id": 1, "text": "So."}])
    prepare.main(["vicuna", "--output-dir", str(tmp_path / "out")])
    assert data_origin(tmp_path / "out")["revision"] == commit


def test_a_download_from_the_hub(dolly, tmp_path, monkeypatch):
    def download(repository, name, repo_type, revision):
        folder = tmp_path / "snapshots" / revision.replace("main", "b" * 40)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(dolly.read_bytes())
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    flags = ["--dev-num", "10", "--valid-num", "5", "--output-dir", str(tmp_path / "out")]
    prepare.main(["dolly", *flags])
    assert data_origin(tmp_path / "out")["revision"] == SETS["dolly"].home.revision
    prepare.main(["dolly", *flags, "--revision", "main", "--force"])
    assert data_origin(tmp_path / "out")["revision"] == "b" * 40


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dolly", "--dev-num", "0"], "--dev-num 0: pass 1 or more"),
        (["dolly", "--dev", "5"], "--dev"),
        (["vicuna", "--seed", "5"], "--seed"),
        (["dolly", "--max-length", "5"], "pass --tokenizer"),
        (["dolly", "--tokenizer", "x"], "--tokenizer x: it counts nothing"),
    ],
)
def test_bad_flags_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        prepare.parse_arguments(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dolly", "--source", "nowhere"], "--source nowhere: no such file or folder"),
        (["sinst", "--source", "."], r"--source \.: no splits/default/test_tasks.txt or test_tasks.txt there"),
        (
            ["vicuna", "--source", "dolly.jsonl"],
            r"a file, but this set needs .*gpt35.jsonl too; pass the folder",
        ),
        (["dolly", "--source", "dolly.jsonl", "--dev-num", "35", "--valid-num", "5"], "only 40 examples"),
        (["self-inst", "--source", "dolly.jsonl"], "no row is left"),
        (["uinst", "--source", "empty.zip"], r"empty.zip: 0 jsonl files in it"),
        (["uinst", "--source", "dolly.jsonl", "--tokenizer", "nowhere"], "--tokenizer nowhere: "),
    ],
)
def test_errors_name_the_flag_and_the_remedy(words, message, dolly, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dolly.rename("dolly.jsonl")
    zipfile.ZipFile("empty.zip", "w").close()
    with pytest.raises((ValueError, OSError), match=message):
        prepare.main([*words, "--output-dir", "out"])
    assert not Path("out").exists()


def test_prepare_dolly_is_prepare_with_the_set(dolly, tmp_path):
    script, folder = Path(prepare.__file__).with_name("prepare_dolly.py"), tmp_path / "out"
    flags = ["--source", dolly, "--output-dir", folder, "--dev-num", "10", "--valid-num", "5"]
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{folder / 'train.jsonl'}: 25 examples"
