"""The Dolly preparation on rows of our own: schema, split, and files that are never half written or overwritten."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("prepare_dolly", ROOT / "scripts/data/prepare_dolly.py")
prepare_dolly = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare_dolly)


def row(instruction, context="", response="yes"):
    return {"instruction": instruction, "context": context, "response": response, "category": "open_qa"}


EXAMPLES = prepare_dolly.to_examples(row(f"question {n}") for n in range(40))


def test_rows_become_instruction_input_output():
    examples = prepare_dolly.to_examples([row("Who? ", "A text.\n", "  Ada Lovelace, née Byron.")])
    assert examples == [{"instruction": "Who?", "input": "A text.", "output": "Ada Lovelace, née Byron."}]


def test_empty_and_repeated_rows_are_dropped():
    rows = [row("a"), row("b", response=" \n"), row("", response="c"), row("a "), row("a", "other passage")]
    examples = prepare_dolly.to_examples(rows)
    assert [(e["instruction"], e["input"]) for e in examples] == [("a", ""), ("a", "other passage")]


def test_split_is_disjoint_complete_and_decided_by_the_seed():
    splits = prepare_dolly.split_examples(EXAMPLES, dev_num=10, valid_num=5, seed=10)
    assert {name: len(examples) for name, examples in splits.items()} == {"valid": 5, "dev": 10, "train": 25}
    together = [e["instruction"] for examples in splits.values() for e in examples]
    assert sorted(together) == sorted(e["instruction"] for e in EXAMPLES)
    assert splits == prepare_dolly.split_examples(EXAMPLES, dev_num=10, valid_num=5, seed=10)
    assert splits != prepare_dolly.split_examples(EXAMPLES, dev_num=10, valid_num=5, seed=11)


def test_split_without_training_rows_is_refused():
    with pytest.raises(ValueError, match="--dev-num 35 --valid-num 5: only 40 examples"):
        prepare_dolly.split_examples(EXAMPLES, dev_num=35, valid_num=5, seed=10)


def test_files_hold_the_splits(tmp_path):
    splits = prepare_dolly.split_examples(EXAMPLES, dev_num=10, valid_num=5, seed=10)
    prepare_dolly.write_splits(splits, tmp_path / "new" / "folder")
    written = {p.name: [json.loads(line) for line in p.open()] for p in (tmp_path / "new" / "folder").iterdir()}
    assert written == {f"{name}.jsonl": examples for name, examples in splits.items()}


def test_a_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        prepare_dolly.write_splits({"train": EXAMPLES, "dev": [{"output": object()}]}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_are_replaced_with_force_only(tmp_path):
    prepare_dolly.refuse_to_overwrite(tmp_path / "absent", force=False)
    (tmp_path / "dev.jsonl").write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"--output-dir .*: dev.jsonl there already; pass --force"):
        prepare_dolly.main(["--output-dir", str(tmp_path)])
    assert (tmp_path / "dev.jsonl").read_text() == "mine\n"
    prepare_dolly.refuse_to_overwrite(tmp_path, force=True)


def test_download_is_split_and_written(tmp_path, monkeypatch, capsys):
    def load_dataset(name, split):
        assert (name, split) == ("databricks/databricks-dolly-15k", "train")
        return [row(f"question {n}") for n in range(40)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    prepare_dolly.main(["--output-dir", str(tmp_path), "--dev-num", "10", "--valid-num", "5"])
    assert {p.name: len(p.read_text().splitlines()) for p in tmp_path.iterdir()} == {
        "train.jsonl": 25,
        "dev.jsonl": 10,
        "valid.jsonl": 5,
    }
    assert "train.jsonl: 25 examples" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--dev-num", "0"], ["--dev-nun", "5"], ["--dev", "5"]])
def test_bad_flags_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        prepare_dolly.parse_arguments(flags)
    assert flags[0] in capsys.readouterr().err
