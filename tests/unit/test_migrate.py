"""docs/migrate.md is true: its flags of other programs get an answer from the parser, its flags of ours exist."""

import re
from pathlib import Path

from arguments import parse_evaluate_arguments, parse_export_arguments, parse_train_arguments

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/migrate.md").read_text(encoding="utf-8")
FLAG = re.compile(r"--[a-z][\w-]*")
PARSERS = {
    parse_train_arguments: ["--model-path", "a", "--data-dir", "b"],
    parse_evaluate_arguments: ["--model-path", "a"],
    parse_export_arguments: ["--model-path", "a", "--save-dir", "b"],
}


def flag_rows() -> list[tuple[str, str]]:
    """Flag of another program, and what its row says."""
    rows = [line.strip("|").split("|") for line in TEXT.splitlines() if line.startswith("| `--")]
    return [(flag, said) for there, said in rows for flag in FLAG.findall(there)]


def answer(parse, flag: str) -> str:
    """The parser's refusal; empty if it knows the flag, whatever it says about the value."""
    try:
        parse([*PARSERS[parse], flag, "1"])
    except ValueError as error:
        refused = any(words in str(error) for words in ("unknown flag", "here it is", "not supported"))
        return str(error) if refused else ""
    return ""


def test_the_tables_are_read():
    flags = [flag for flag, _ in flag_rows()]
    assert len(flags) > 100 and {"--load_in_4bit", "--skew-alpha", "--projector-lr"} <= set(flags)


def test_a_flag_of_another_program_gets_the_answer_that_the_page_gives():
    wrong = []
    for flag, said in flag_rows():
        refusal = answer(parse_train_arguments, flag)
        renamed = re.search(r"here it is (--\S+)", refusal)
        if renamed is not None:
            agrees = f"`{renamed[1]}" in said and "refused" not in said
        else:
            agrees = "unknown flag" not in refusal and ("not supported" not in refusal or "refused" in said)
        if not agrees:
            wrong.append(f"{flag}: {said.strip()} | {refusal}")
    assert not wrong


def test_a_flag_that_is_said_to_be_refused_is():
    rows = [(flag, said) for flag, said in flag_rows() if said.strip().startswith("refused")]
    assert len(rows) > 15
    assert [flag for flag, _ in rows if "not supported" not in answer(parse_train_arguments, flag)] == []


def test_every_flag_of_ours_on_the_page_exists():
    foreign = {flag for flag, _ in flag_rows()}
    ours = {flag for line in TEXT.splitlines() for flag in FLAG.findall(line)} - foreign
    unknown = {flag for flag in ours if all("unknown flag" in answer(parse, flag) for parse in PARSERS)}
    assert not unknown and {"--global-batch-size", "--adakd-tau-base", "--js-beta"} <= ours | foreign
