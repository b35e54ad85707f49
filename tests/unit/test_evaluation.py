"""Scores, result files, generation, and `code/evaluate.py` from the command line."""

import atexit
import json
import multiprocessing
import os
import runpy
import shutil
import socket
import subprocess
import sys

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from arguments import GenerationArguments
from data_utils.prompts import alpaca_prompt, encode_prompts
from evaluation.metrics.rouge import rouge_l, tokenizer_warning
from evaluation.results import Evaluation, format_table, summarise, table, write_summary
from generation.transformers_generator import generate_answers, generation_config, pad_left
from models.loading import load_checkpoint
from tiny import make_rows

GREEDY, SAMPLED = GenerationArguments(), GenerationArguments(do_sample=True)
NEW_TOKENS = 8

# --- ROUGE-L ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("the red river", ["the red river"], 100),
        ("The RED, river!", ["the red river"], 100),
        ("running dogs", ["run dog"], 100),
        ("a b c d", ["a c"], 100 * 2 / 3),
        ("red river", ["river red"], 50),
        ("red", ["blue"], 0),
        ("", ["blue"], 0),
        ("red river", ["blue", "red river", "red"], 100),
        ("red river stone", ["red", "red river"], 80),
    ],
)
def test_rouge_l(answer, references, score):
    assert rouge_l([answer], [references]) == pytest.approx([score])


def naive_rouge_l(answer: list[str], reference: list[str]) -> float:
    """F-measure of the longest common subsequence, by recursion over its definition."""
    lengths = [[0] * (len(reference) + 1) for _ in range(len(answer) + 1)]
    for i, a in enumerate(answer):
        for j, b in enumerate(reference):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if a == b else max(lengths[i][j + 1], lengths[i + 1][j])
    return 100 * 2 * lengths[-1][-1] / (len(answer) + len(reference))


sentences = st.lists(st.sampled_from("red blue river stone cloud".split()), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(answers=st.lists(sentences, min_size=1, max_size=4), references=st.lists(sentences, min_size=1, max_size=3))
def test_rouge_l_is_the_best_f_measure_of_the_references(answers, references):
    found = rouge_l([" ".join(words) for words in answers], [[" ".join(words) for words in references]] * len(answers))
    assert found == pytest.approx([max(naive_rouge_l(a, r) for r in references) for a in answers])


def test_many_answers_are_scored_by_several_processes_alike(monkeypatch):
    answers = [f"red river {i} stone" for i in range(9)]
    references = [["red stone", f"river {i}"] if i % 2 else ["blue"] for i in range(9)]
    alone = rouge_l(answers, references)
    monkeypatch.setattr("evaluation.metrics.rouge.ANSWERS_PER_PROCESS", 3)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert rouge_l(answers, references) == alone
    assert len(set(alone)) == 2


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("北京是中国的首都", "北京是中国的首都", 100),
        ("北京是首都", "北京是中国的首都", 100 * 10 / 13),
        ("ラーメンを食べる。", "ラーメン", 100 * 8 / 12),
        ("Москва — столица", "москва столица", 100),
        ("हिन्दी भाषा", "हिन्दी", 100 * 2 / 3),
        ("ＡＢＣ cafe\u0301", "abc café", 100),
        ("The running dogs", "run dog", 80),
    ],
)
def test_the_unicode_tokenizer_sees_every_script(answer, reference, score):
    assert rouge_l([answer], [[reference]], "unicode") == pytest.approx([score])


@given(text=st.text(st.characters(codec="ascii"), max_size=80), reference=st.text(st.characters(codec="ascii")))
def test_english_text_scores_alike_with_both_tokenizers(text, reference):
    assert rouge_l([text], [[reference]], "unicode") == rouge_l([text], [[reference]], "ascii")


@pytest.mark.parametrize(
    ("texts", "tokenizer", "warns"),
    [
        (["北京是首都", "a b"], "ascii", True),
        (["北京是首都"], "unicode", False),
        (["Garçon, où êtes-vous ?"], "ascii", False),
        (["", "...!"], "ascii", False),
    ],
)
def test_texts_that_rouge_l_does_not_see_are_reported(texts, tokenizer, warns):
    warning = tokenizer_warning("references", texts, tokenizer)
    assert bool(warning) == warns and (not warns or "71% of the letters of the references" in warning)


def test_rouge_l_needs_references_for_each_answer():
    with pytest.raises(ValueError):
        rouge_l(["red", "blue"], [["red"]])


# --- results ---------------------------------------------------------------------------------------------------------


def test_summary_has_mean_and_standard_deviation_of_the_sample():
    summary = summarise({"dolly": {10: 20.0, 20: 23.0, 30: 26.0}, "vicuna": {10: 7.0}})
    assert summary["dolly"] == {"mean": 23.0, "std": 3.0, "seeds": {10: 20.0, 20: 23.0, 30: 26.0}}
    assert (summary["vicuna"]["mean"], summary["vicuna"]["std"]) == (7.0, 0.0)


def test_table_has_a_row_a_data_set_and_a_column_a_seed():
    lines = table(summarise({"dolly": {20: 23.125, 10: 20.0}, "self-inst": {20: 7.0, 10: 100.0}})).splitlines()
    assert [line.split() for line in lines] == [
        ["data", "set", "seed", "10", "seed", "20", "mean", "std"],
        ["-" * 9, "-" * 7, "-" * 7, "-" * 5, "-" * 5],
        ["dolly", "20.00", "23.12", "21.56", "2.21"],
        ["self-inst", "100.00", "7.00", "53.50", "65.76"],
    ]
    assert len(set(map(len, lines))) == 1


def test_columns_are_aligned():
    assert format_table(["a", "b"], [["long", "1"], ["x", "22"]]) == "a      b\n----  --\nlong   1\nx     22"


def evaluation(root, **settings) -> Evaluation:
    return Evaluation(root, "set-valid", {"set": "set", **settings}, {"model_path": "m"})


def metrics(seed: int, score: float) -> dict:
    return {"seed": seed, "rougeL": score, "made": f"2030-01-01T00:00:{seed:02}"}


def test_answers_and_metrics_are_written(tmp_path):
    records = [{"answer": "ä\n\u2028 \ud800"}, {"answer": "b"}]
    made = evaluation(tmp_path)
    made.write(10, records, metrics(10, 1.5))
    folder = made.folder / "seed10"
    assert [json.loads(line) for line in (folder / "answers.jsonl").read_text().split("\n")[:-1]] == records
    assert json.loads((folder / "metrics.json").read_text()) == metrics(10, 1.5)
    assert {path.name for path in folder.iterdir()} == {"answers.jsonl", "metrics.json"}
    assert json.loads((made.folder / "settings.json").read_text()) == {"set": "set", "model_path": "m"}
    assert made.scores() == {10: 1.5}


def test_the_summary_is_of_all_that_is_on_the_disk(tmp_path):
    greedy, sampled = evaluation(tmp_path, do_sample=False), evaluation(tmp_path, do_sample=True)
    assert greedy.folder != sampled.folder and evaluation(tmp_path, do_sample=True).folder == sampled.folder
    sampled.write(20, [], metrics(20, 3.0))
    greedy.write(10, [], metrics(10, 1.0))
    evaluation(tmp_path, unfinished=True).folder.mkdir()
    (tmp_path / "old-set/seed10").mkdir(parents=True)  # without a fingerprint
    sampled.write(21, [], metrics(21, 5.0))
    write_summary(tmp_path)
    first, second = json.loads((tmp_path / "summary.json").read_text())["evaluations"]
    assert (first["do_sample"], first["rougeL"]["mean"], first["fingerprint"]) == (False, 1.0, greedy.folder.name)
    assert second["rougeL"] == {"mean": 4.0, "std": pytest.approx(2**0.5), "seeds": {"20": 3.0, "21": 5.0}}


def write_often(root, number: int) -> None:
    for seed in range(20):
        evaluation(root, number=number).write(seed, [{"answer": "a" * 1000}] * 20, metrics(seed, number))
        write_summary(root)


def test_evaluations_at_the_same_time_do_not_damage_the_summary(tmp_path):
    processes = [multiprocessing.get_context("fork").Process(target=write_often, args=(tmp_path, i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = json.loads((tmp_path / "summary.json").read_text())["evaluations"]
    assert {entry["number"]: len(entry["rougeL"]["seeds"]) for entry in found} == {0: 20, 1: 20, 2: 20}


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tiny):
    return load_checkpoint(str(tiny / "student"))


@pytest.fixture(scope="module")
def prompts(student):
    rows = make_rows(7, seed=3)
    return encode_prompts(student[1], [alpaca_prompt(row["instruction"], row["input"]) for row in rows])


@pytest.fixture(scope="module")
def greedy(student, prompts):
    return generate(student, prompts)


def generate(student, prompts, args=GREEDY, batch_size=3, seed=1) -> list[str]:
    """In batches of at least `batch_size` prompts."""
    return generate_answers(*student, prompts, args, NEW_TOKENS, tokens_for(prompts, batch_size), [seed])[seed]


def tokens_for(prompts, batch_size) -> int:
    return batch_size * (max(map(len, prompts), default=0) + NEW_TOKENS)


def test_prompts_are_padded_on_the_left():
    input_ids, mask = pad_left([[5, 6, 7], [8]], 0, torch.device("cpu"))
    assert input_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_answers_come_in_the_order_of_the_prompts_whatever_the_batch(student, prompts, greedy):
    """Greedy answers of left-padded batches are those of one prompt at a time."""
    model, tokenizer = student
    alone = []
    for ids in prompts:
        ids = torch.tensor([ids])
        for _ in range(NEW_TOKENS):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        alone.append(tokenizer.decode(ids[0, -NEW_TOKENS:], skip_special_tokens=True).strip())
    assert len(set(alone)) > 1
    assert greedy == alone
    assert generate(student, prompts[::-1], batch_size=len(prompts)) == alone[::-1]


def test_samples_are_a_function_of_the_seed(student, prompts, greedy):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = generate(student, prompts, SAMPLED)
    assert torch.equal(torch.get_rng_state(), state)  # nothing else is disturbed
    torch.manual_seed(6)
    assert generate(student, prompts, SAMPLED) == first
    assert generate(student, prompts, SAMPLED, seed=2) != first != greedy


def test_a_seed_does_not_depend_on_the_others(student, prompts):
    def answers(*seeds):
        return generate_answers(*student, prompts, SAMPLED, NEW_TOKENS, tokens_for(prompts, 2), seeds)

    together = answers(5, 6, 7)
    assert list(together) == [5, 6, 7] and together[5] != together[6] != together[7]
    assert answers(6) == {6: together[6]} and answers(7, 5) == {7: together[7], 5: together[5]}


def test_a_batch_holds_what_fits_its_tokens(student, prompts, monkeypatch):
    shapes = []
    original = student[0].generate

    def generate_and_look(input_ids, **others):
        shapes.append(tuple(input_ids.shape))
        return original(input_ids=input_ids, **others)

    monkeypatch.setattr(student[0], "generate", generate_and_look)
    budget = 3 * (len(max(prompts, key=len)) + NEW_TOKENS)
    generate_answers(*student, prompts, GREEDY, NEW_TOKENS, budget, [1])
    assert (
        sum(rows for rows, _ in shapes) == len(prompts)
        and [w for _, w in shapes] == sorted([w for _, w in shapes])[::-1]
    )
    assert all(rows * (width + NEW_TOKENS) <= budget for rows, width in shapes)
    assert all((rows + 1) * (width + NEW_TOKENS) > budget for rows, width in shapes[:-1])
    shapes.clear()
    generate_answers(*student, prompts, GREEDY, NEW_TOKENS, 1, [1])  # too little for any
    assert [rows for rows, _ in shapes] == [1] * len(prompts)


def test_a_batch_ends_with_its_last_answer(student, prompts, monkeypatch):
    """EOS as the only likely token: one step is enough for the whole batch."""
    model, tokenizer = student
    lengths = []
    original = model.generate

    def generate_and_look(**inputs):
        generated = original(**inputs)
        lengths.append(generated.shape[1] - inputs["input_ids"].shape[1])
        return generated

    monkeypatch.setattr(model, "generate", generate_and_look)
    with monkeypatch.context() as patch:
        original_forward = model.forward

        def forward(*args, **kwargs):
            output = original_forward(*args, **kwargs)
            output.logits[:, -1, tokenizer.eos_token_id] = 1e4
            return output

        patch.setattr(model, "forward", forward)
        assert generate(student, prompts) == [""] * len(prompts)
    assert lengths and set(lengths) == {1}


def test_batches_draw_differently(student):
    same = [[5, 6, 7]] * 6
    answers = generate(student, same, SAMPLED, batch_size=2)
    assert len(set(answers)) > 3


@pytest.mark.parametrize("args", [{"top_k": 1}, {"temperature": 1e-6}, {"top_p": 1e-6}], ids=str)
def test_sampling_flags_reach_the_sampler(student, prompts, greedy, args):
    assert generate(student, prompts, GenerationArguments(do_sample=True, **args)) == greedy


def test_answers_end_at_eos(student, prompts):
    """A token of one greedy answer is made the EOS: that answer ends before it, and the others do not change."""
    model, tokenizer = student
    width = max(map(len, prompts))
    input_ids, mask = pad_left(prompts, tokenizer.pad_token_id, model.device)
    ids = model.generate(
        input_ids, attention_mask=mask, generation_config=generation_config(GREEDY, tokenizer, NEW_TOKENS)
    )[:, width:].tolist()
    eos = ids[0][3]
    ending = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    ending.add_special_tokens({"eos_token": ending.convert_ids_to_tokens(eos)})
    wanted = [row[: row.index(eos)] if eos in row else row for row in ids]
    assert len(wanted[0]) <= 3 and any(len(row) == NEW_TOKENS for row in wanted)
    answers = generate_answers(model, ending, prompts, GREEDY, NEW_TOKENS, tokens_for(prompts, 7), [1])[1]
    assert answers == [ending.decode(row, skip_special_tokens=True).strip() for row in wanted]


def test_max_new_tokens_bounds_the_answer(student, prompts, greedy):
    short = generate(student, prompts, GenerationArguments(max_new_tokens=2))
    assert all(full.startswith(start.rstrip("\ufffd")) for full, start in zip(greedy, short))
    assert all(len(start) < len(full) for full, start in zip(greedy, short))
    full = generate_answers(*student, prompts, GenerationArguments(max_new_tokens=NEW_TOKENS), 1, 200, [1])
    assert full == {1: greedy}


@pytest.mark.parametrize(
    ("args", "settings_of_the_model"),
    [
        pytest.param(GREEDY, {"repetition_penalty": 5.0, "max_length": 3, "no_repeat_ngram_size": 1}, id="greedy"),
        pytest.param(GREEDY, {"suppress_tokens": list(range(2, 200))}, id="greedy, tokens suppressed"),
        pytest.param(SAMPLED, {"top_k": 1, "temperature": 0.01, "top_p": 0.01}, id="sampled"),
        pytest.param(SAMPLED, {"min_p": 0.99}, id="sampled, min_p"),
    ],
)
def test_nothing_is_left_to_the_models_own_defaults(student, prompts, monkeypatch, args, settings_of_the_model):
    clean = generate(student, prompts[:3], args)
    own = GenerationConfig(**settings_of_the_model)
    monkeypatch.setattr(student[0], "generation_config", own)
    assert generate(student, prompts[:3], args) == clean
    assert student[0].generation_config is own  # a checkpoint is saved with what it came with


def test_flags_map_to_the_generation_config(student):
    _, tokenizer = student
    flags = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "num_beams": 2,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 6,
    }
    config = generation_config(GenerationArguments(**flags), tokenizer, 99)
    assert {name: getattr(config, name) for name in flags} == flags
    assert (config.max_new_tokens, config.eos_token_id, config.pad_token_id) == (
        *(99, tokenizer.eos_token_id, tokenizer.pad_token_id),
    )
    assert generation_config(GenerationArguments(max_new_tokens=3), tokenizer, 99).max_new_tokens == 3
    plain = generation_config(GREEDY, tokenizer, 99)
    assert (plain.do_sample, plain.num_beams, plain.repetition_penalty) == (False, 1, 1.0)


def test_no_prompts_no_answers(student):
    assert generate(student, []) == []


# --- code/evaluate.py ------------------------------------------------------------------------------------------------

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LENGTHS = ["--max-length", "72", "--max-prompt-length", "64"]


def run_python(*words: str) -> str:
    """What a successful run prints."""
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture
def evaluate(root, monkeypatch, capsys):
    """Runs `code/evaluate.py` in this process. Returns exit code, stdout, stderr."""

    monkeypatch.setattr(os, "_exit", sys.exit)  # a failure ends the process at once
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: None)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
        code = 0
        try:
            runpy.run_path(str(root / "code/evaluate.py"), run_name="__main__")
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def second_rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("second") / "other-set"
    folder.mkdir()
    (folder / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(5, seed=9)))
    return folder


@pytest.fixture(scope="module")
def command(root, tiny, rows, second_rows):
    return [
        *(str(root / "code/evaluate.py"), "--model-path", str(tiny / "student"), *LENGTHS),
        *("--data-dir", str(rows), str(second_rows), "--seeds", "10", "20", "--do-sample", "--eval-batch-size", "2"),
    ]


@pytest.fixture(scope="module")
def one_rank(command, tmp_path_factory):
    """Folder and output of a run with `python`."""
    folder = tmp_path_factory.mktemp("one_rank")
    return folder, run_python(*command, "--save-dir", str(folder), "--base-path", ".")


def read_answers(folder) -> dict[str, list[dict]]:
    """By <set>-<split>/seed<S>."""
    answers = {}
    for path in sorted(folder.glob("*/*/seed*/answers.jsonl")):
        key = f"{path.parts[-4]}/{path.parts[-2]}"
        assert key not in answers, "of two evaluations"
        answers[key] = [json.loads(line) for line in path.read_text().splitlines()]
    return answers


def test_every_row_is_answered_once_and_in_order(one_rank, rows, second_rows):
    folder, _ = one_rank
    answers = read_answers(folder)
    assert set(answers) == {f"{name}-valid/seed{seed}" for name in (rows.name, "other-set") for seed in (10, 20)}
    for name, data in ((rows.name, rows), ("other-set", second_rows)):
        wanted = [json.loads(line) for line in (data / "valid.jsonl").read_text().splitlines()]
        for seed in (10, 20):
            found = answers[f"{name}-valid/seed{seed}"]
            prompts = [alpaca_prompt(row["instruction"], row["input"]) for row in wanted]
            outputs = [row["output"] for row in wanted]
            assert [row["prompt"] for row in found] == prompts
            assert [row["references"] for row in found] == [out if isinstance(out, list) else [out] for out in outputs]
            scores = rouge_l([row["answer"] for row in found], [row["references"] for row in found])
            assert [row["rougeL"] for row in found] == pytest.approx(scores, abs=1e-3)
        assert answers[f"{name}-valid/seed10"] != answers[f"{name}-valid/seed20"]


def test_metrics_summary_and_table_agree(one_rank, rows):
    folder, out = one_rank
    evaluations = {entry["set"]: entry for entry in summary(folder)}
    for name in (rows.name, "other-set"):
        of_seeds, place = [], folder / f"{name}-valid" / evaluations[name]["fingerprint"]
        for seed in (10, 20):
            metrics = json.loads((place / f"seed{seed}" / "metrics.json").read_text())
            found = read_answers(folder)[f"{name}-valid/seed{seed}"]
            assert metrics["rows"] == len(found) and metrics["seed"] == seed and metrics["seconds"] > 0
            assert metrics["rougeL"] == pytest.approx(sum(row["rougeL"] for row in found) / len(found), abs=1e-3)
            of_seeds.append(metrics["rougeL"])
        assert evaluations[name]["rougeL"]["mean"] == pytest.approx(sum(of_seeds) / 2)
        assert evaluations[name]["rougeL"]["seeds"] == dict(zip(("10", "20"), of_seeds))
        (line,) = [line for line in out.splitlines() if line.startswith(name) and line.split()[0] == name]
        assert line.split()[1:3] == [f"{score:.2f}" for score in of_seeds]
    assert "--base-path" in out  # named as a flag without effect


def summary(folder) -> list[dict]:
    return json.loads((folder / "summary.json").read_text())["evaluations"]


@pytest.fixture
def rows_copy(rows, tmp_path):
    return shutil.copytree(rows, tmp_path / "rows")


def test_another_evaluation_has_another_place(evaluate, tiny, rows_copy, second_rows, tmp_path):
    """What decides a score is part of the place; nothing that was there is changed."""
    checkpoint, results = shutil.copytree(tiny / "student", tmp_path / "epoch1"), tmp_path / "eval/epoch1"
    flags = ["--model-path", checkpoint, *LENGTHS, "--data-dir"]
    greedy, sampled = [*flags, rows_copy, "--dev-num", 4], [*flags, rows_copy, "--dev-num", 2, "--do-sample"]
    evaluations = {
        "greedy": greedy,
        "sampled": sampled,
        "temperature": [*sampled, "--temperature", 0.7],
        "batches": [*sampled, "--eval-batch-size", 1],
        "rows": [*greedy, "--dev-num", 3],
        "lengths": [*greedy, "--max-prompt-length", 60],
        "dtype": [*greedy, "--dtype", "bfloat16"],
        "tokenizer": [*greedy, "--rouge-tokenizer", "unicode"],
        "another set": [*flags, second_rows],
    }

    def files():
        return {path: path.read_bytes() for path in results.rglob("*/*") if path.is_file()}

    for number, (name, words) in enumerate(evaluations.items(), start=1):
        before = files()
        code, out, err = evaluate(*words)
        assert code == 0, err
        assert len(summary(results)) == number, name
        assert out.rpartition("\n\n")[2].count("\n") == 3  # the table is of this evaluation
        assert before.items() <= files().items()
    stated = {entry["decoding"]["do_sample"]: entry for entry in reversed(summary(results))}
    assert stated[False]["rows"]["count"] == 4 and stated[True]["decoding"]["temperature"] == 1.0
    assert stated[False]["dtype"] == "float32" and stated[False]["model_path"] == str(checkpoint)

    lines = (rows_copy / "valid.jsonl").read_text().splitlines()
    (rows_copy / "valid.jsonl").write_text("\n".join([json.dumps({"prompt": "Say red.", "output": "red"}), *lines[1:]]))
    evaluate(*greedy)
    assert len(summary(results)) == number + 1, "other rows"
    shutil.copy(tiny / "teacher/model.safetensors", checkpoint / "model.safetensors")
    shutil.copy(tiny / "teacher/config.json", checkpoint / "config.json")
    evaluate(*greedy)
    assert len(summary(results)) == number + 2, "other weights"


def test_the_same_evaluation_is_recognised(evaluate, tiny, rows, tmp_path, monkeypatch):
    flags = ["--model-path", tiny / "student", "--data-dir", rows, "--dev-num", 3, "--save-dir", tmp_path, *LENGTHS]
    sampled = [*flags, "--do-sample", "--seeds"]
    generated = []
    generate = transformers.GenerationMixin.generate
    monkeypatch.setattr(
        transformers.GenerationMixin,
        "generate",
        lambda *args, **kwargs: generated.append(1) or generate(*args, **kwargs),
    )

    def table_of(*words):
        generated.clear()
        code, out, err = evaluate(*words)
        assert code == 0, err
        return out.rpartition("ROUGE-L of")[2], len(generated)

    first, batches = table_of(*sampled, 10, 20)
    answers = read_answers(tmp_path)
    assert batches and table_of(*sampled, 10, 20) == (first, 0)
    assert table_of(*sampled, 20, 30, 10)[1] == batches / 2
    assert answers.items() < read_answers(tmp_path).items()
    assert table_of(*sampled, 10, 20, "--force") == (first, batches)
    assert answers.items() < read_answers(tmp_path).items()
    assert table_of(*flags, "--seed", 5)[1] and table_of(*flags, "--seed", 6)[1] == 0  # greedy: of any seed
    assert len(summary(tmp_path)) == 2


def test_an_empty_reference_counts_0_and_is_named(evaluate, tiny, tmp_path):
    rows = [{"prompt": "Say red.", "output": output} for output in ("red", "", ["", "red"])]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model-path", tiny / "student", "--data-dir", tmp_path, *LENGTHS, "--save-dir", tmp_path / "out"]
    code, out, err = evaluate(*flags)
    assert code == 0, err
    assert f"1 rows have an empty reference and count 0: {tmp_path / 'valid.jsonl'}:2\n" in out
    ((*_, empty, last),) = read_answers(tmp_path / "out").values()
    assert empty["references"] == [""] and empty["rougeL"] == 0 and last["references"] == ["red"]


def test_references_that_rouge_l_does_not_see_are_reported(evaluate, tiny, tmp_path):
    (tmp_path / "valid.jsonl").write_text(json.dumps({"prompt": "Say red.", "output": "北京是首都"}) + "\n")
    flags = ["--model-path", tiny / "student", "--data-dir", tmp_path, *LENGTHS, "--save-dir", tmp_path / "out"]
    assert evaluate(*flags)[1].count("100% of the letters of the references, which are not a-z: --rouge-tokenizer") == 1
    assert "--rouge-tokenizer" not in evaluate(*flags, "--rouge-tokenizer", "unicode")[1]


def test_two_ranks_give_the_same_answers(one_rank, command, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    out = run_python(*launcher, *command, "--save-dir", str(tmp_path))
    assert read_answers(tmp_path) == read_answers(one_rank[0])
    assert out.count("ROUGE-L of") == 1


def test_results_go_beside_the_checkpoint(evaluate, tiny, rows, tmp_path):
    checkpoint = tmp_path / "epoch1_step2"
    shutil.copytree(tiny / "student", checkpoint)
    code, _, err = evaluate("--model-path", checkpoint, "--data-dir", rows, "--dev-num", 2, *LENGTHS)
    assert code == 0, err
    (answers,) = read_answers(tmp_path / "eval" / "epoch1_step2").values()
    assert len(answers) == 2


def test_without_sampling_one_seed_is_enough(evaluate, tiny, rows, tmp_path):
    flags = ["--model-path", tiny / "student", "--data-dir", rows, "--dev-num", 1, "--save-dir", tmp_path, *LENGTHS]
    code, out, _ = evaluate(*flags, "--seeds", 10, 20)
    assert code == 0 and "only seed 10 runs" in out
    assert list(read_answers(tmp_path)) == [f"{rows.name}-valid/seed10"]


def test_folders_of_one_name_do_not_overwrite_each_other(evaluate, tiny, rows, tmp_path):
    for parent in ("a", "b"):
        shutil.copytree(rows, tmp_path / parent / "set")
    flags = ["--model-path", tiny / "student", "--dev-num", 1, "--save-dir", tmp_path / "out", *LENGTHS]
    code, *_ = evaluate(*flags, "--data-dir", tmp_path / "a/set", tmp_path / "b/set")
    assert code == 0 and len(read_answers(tmp_path / "out")) == 2


def test_long_prompts_are_cut_and_reported(evaluate, tiny, rows, tmp_path):
    flags = ["--model-path", tiny / "student", "--data-dir", rows, "--save-dir", tmp_path, "--dev-num", 2]
    code, out, _ = evaluate(*flags, "--max-length", 40, "--max-prompt-length", 32)
    assert code == 0 and f"{rows.name}: 2 of 2 prompts are longer than 32 tokens and were cut" in out


# --- LoRA ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """An adapter on the student that changes its answers; no tokenizer of its own."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny / "student")
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    folder = tmp_path_factory.mktemp("adapter") / "epoch1"
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_merged_whichever_way_it_is_named(tiny, adapter, prompts, greedy):
    base = str(tiny / "student")
    by_itself, given_base = load_checkpoint(str(adapter)), load_checkpoint(base, str(adapter))
    separate = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    wanted = generate((separate, by_itself[1]), prompts)
    assert wanted != greedy
    for model, tokenizer in (by_itself, given_base):
        assert not isinstance(model, PeftModel) and not model.training
        assert tokenizer.get_vocab() == by_itself[1].get_vocab()
        assert generate((model, tokenizer), prompts) == wanted


def test_an_adapters_own_tokenizer_wins(tiny, adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "student")
    tokenizer.add_tokens(["brandnew"])
    tokenizer.save_pretrained(folder)
    assert "brandnew" in load_checkpoint(str(folder))[1].get_vocab()


def test_adapters_are_evaluated_from_the_command_line(evaluate, tiny, rows, adapter, tmp_path):
    shared = ["--data-dir", rows, "--dev-num", 3, *LENGTHS]
    runs = {
        "alone": ["--model-path", adapter],
        "given": ["--model-path", tiny / "student", "--peft-path", adapter, "--peft", "lora"],
        "base": ["--model-path", tiny / "student"],
    }
    answers = {}
    for name, flags in runs.items():
        code, _, err = evaluate(*flags, *shared, "--save-dir", tmp_path / name)
        assert code == 0, err
        answers[name] = read_answers(tmp_path / name)
    assert answers["alone"] == answers["given"] != answers["base"]
    evaluate(*runs["given"], *shared)
    assert (adapter.parent / "eval" / adapter.name / "summary.json").is_file()


# --- mistakes --------------------------------------------------------------------------------------------------------


def edit_adapter(adapter, folder, base):
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    return folder


@pytest.fixture
def broken(tiny, rows, adapter, tmp_path):
    """Places that are wrong in one way each, by name."""
    empty, no_weights, no_eos, bad_rows = (tmp_path / name for name in ("empty", "no_weights", "no_eos", "bad_rows"))
    for folder in (empty, no_weights, bad_rows):
        folder.mkdir()
    shutil.copy(tiny / "student" / "config.json", no_weights)
    shutil.copytree(tiny / "student", no_eos)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (no_eos / name).is_file():
            settings = json.loads((no_eos / name).read_text())
            settings.pop("eos_token", None)
            (no_eos / name).write_text(json.dumps(settings))
    (bad_rows / "valid.jsonl").write_text('{"instruction": "a"}\n')
    return {
        "student": tiny / "student",
        "adapter": adapter,
        "rows": rows,
        "empty": empty,
        "no_weights": no_weights,
        "no_eos": no_eos,
        "bad_rows": bad_rows,
        "missing": tmp_path / "missing",
        "no_base": edit_adapter(adapter, tmp_path / "no_base", None),
        "base_is_gone": edit_adapter(adapter, tmp_path / "base_is_gone", "model_hub/gone"),
    }


MISTAKES = {
    "a folder that is no checkpoint": ("{empty}", "{rows}", "", "--model-path {empty}: no config.json there"),
    "no such checkpoint": ("{missing}", "{rows}", "", "--model-path {missing}: no such folder"),
    "no such name on the hub": ("nobody/nothing", "{rows}", "", "nobody/nothing: "),
    "a checkpoint without weights": ("{no_weights}", "{rows}", "", "{no_weights}: "),
    "a tokenizer without EOS": ("{no_eos}", "{rows}", "", "{no_eos}: its tokenizer has no EOS"),
    "no data": ("{student}", "{missing}", "", "--data-dir {missing}: no valid.jsonl there; see"),
    "no such split": (
        "{student}",
        "{rows}",
        "--split test",
        "--data-dir {rows}: no test.jsonl there (found: dev.jsonl, t",
    ),
    "a bad row": ("{student}", "{bad_rows}", "", "{bad_rows}/valid.jsonl:1: no output"),
    "an unknown flag": ("{student}", "{rows}", "--sede 1", "--sede: unknown flag; did you mean --seed?"),
    "a bad value": ("{student}", "{rows}", "--top-p 2", "--top-p 2.0: "),
    "an adapter that is none": ("{student}", "{rows}", "--peft-path {empty}", "--peft-path {empty}: no adapter_config"),
    "an adapter as base": ("{adapter}", "{rows}", "--peft-path {adapter}", "--model-path {adapter}: a LoRA adapter"),
    "an adapter without base": ("{no_base}", "{rows}", "", "--model-path BASE --peft-path {no_base}"),
    "an adapter whose base is gone": ("{base_is_gone}", "{rows}", "", "--model-path BASE --peft-path {base_is_gone}"),
}


@pytest.mark.parametrize(("model", "data", "flags", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_with_code_2_and_one_line(evaluate, broken, model, data, flags, said, tmp_path):
    words = f"--model-path {model} --data-dir {data} --save-dir {tmp_path}/out {flags}".format(**broken).split()
    code, out, err = evaluate(*words)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert said.format(**broken) in line
    assert "ROUGE-L" not in out and not (tmp_path / "out").exists()
