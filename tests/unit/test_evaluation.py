"""Metrics, scoring, result files, and `code/evaluate.py` from the command line."""

import atexit
import hashlib
import importlib.machinery
import json
import multiprocessing
import os
import runpy
import shutil
import sys
import types

import pytest
import sacrebleu
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from rouge_score import rouge_scorer
from transformers import AutoModelForCausalLM, AutoTokenizer

from arguments import GenerationArguments
from data_utils.dataset import Row
from data_utils.prompts import prompt_template
from evaluation.metrics import Answer, Metric, build_metrics, metric_names, register
from evaluation.metrics.base import SEED_FIELDS
from evaluation.metrics.rouge import rouge_l
from evaluation.results import Results, table, write_summary
from evaluation.scoring import EvaluationSet, Scores, score, warnings
from integration.launch import run, torchrun
from models.loading import load_checkpoint
from tiny import make_rows

# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokenizer", "answer", "reference", "score"),
    [
        ("ascii", "The RED, river!", "the red river", 100),
        ("ascii", "running dogs", "run dog", 100),
        ("ascii", "a b c d", "a c", 100 * 2 / 3),
        ("ascii", "", "blue", 0),
        ("unicode", "北京是首都", "北京是中国的首都", 100 * 10 / 13),
        ("unicode", "ラーメンを食べる。", "ラーメン", 100 * 8 / 12),
        ("unicode", "Москва — столица", "москва столица", 100),
        ("unicode", "हिन्दी भाषा", "हिन्दी", 100 * 2 / 3),
        ("unicode", "ＡＢＣ cafe\u0301", "abc café", 100),
    ],
)
def test_words_of_rouge_l(tokenizer, answer, reference, score):
    assert rouge_l([answer], [["best", reference]], tokenizer) == pytest.approx([score])


def test_rouge_l_is_that_of_rouge_score():
    """Per answer, the best of its references."""
    lines = [row["instruction"] for row in make_rows(120)]
    answers, references = lines[::3], [list(pair) for pair in zip(lines[1::3], lines[2::3])]
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    theirs = [
        100 * max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in of_answer)
        for answer, of_answer in zip(answers, references)
    ]
    assert rouge_l(answers, references) == theirs and len(set(theirs)) > 3


@given(text=st.text(st.characters(codec="ascii"), max_size=80), reference=st.text(st.characters(codec="ascii")))
def test_english_text_scores_alike_with_both_tokenizers(text, reference):
    assert rouge_l([text], [[reference]], "unicode") == rouge_l([text], [[reference]], "ascii")


def test_many_answers_are_scored_by_several_processes_alike(monkeypatch):
    answers = [f"red river {i} stone" for i in range(9)]
    references = [["red stone", f"river {i}"] if i % 2 else ["blue"] for i in range(9)]
    alone = rouge_l(answers, references)
    monkeypatch.setattr("evaluation.metrics.rouge.ANSWERS_PER_PROCESS", 3)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert rouge_l(answers, references) == alone
    assert len(set(alone)) == 2


def test_texts_that_rouge_l_does_not_see_are_reported():
    def found(*texts, tokenizer="ascii"):
        return warnings(build_metrics(GenerationArguments(rouge_tokenizer=tokenizer)), {"references": texts})

    (warning,) = found("北京是首都", "a b")
    assert "71% of the letters of the references, which are not a-z: --rouge-tokenizer unicode" in warning
    assert not found("北京是首都", tokenizer="unicode")
    assert not found("Garçon, où êtes-vous ?") and not found("", "...!")


def answer(text: str, *references: str) -> Answer:
    return Answer("Say red.", text, references, tokens=3, ended=True)


def test_exact_match_ignores_case_and_surrounding_space():
    answers = [answer(" Red river\n", "blue", "red RIVER"), answer("red", "red river"), answer("", "")]
    scores = score(answers, build_metrics(GenerationArguments(), "exact_match"))
    assert scores == Scores({"exact_match": [100, 0, 0]}, {"exact_match": pytest.approx(100 / 3)})


def test_a_metric_aggregates_its_own_scores(monkeypatch):
    monkeypatch.setattr("evaluation.metrics.base._REGISTRY", {})

    @register("longest")
    class Longest(Metric):
        def scores(self, answers):
            return [answer.tokens for answer in answers]

        def aggregate(self, answers, scores):
            return max(scores)

    scores = score([answer("a"), answer("b")], build_metrics(GenerationArguments()))
    assert scores == Scores({"longest": [3, 3]}, {"longest": 3})
    with pytest.raises(ValueError, match="metric 'longest' is already registered by Longest"):
        register("longest")(Longest)
    with pytest.raises(ValueError, match="metric 'tokens': the results have another field of this name"):
        register("tokens")(Longest)


def test_bleu_and_chrf_are_those_of_sacrebleu():
    answers = [answer("the red river runs", "the red river runs fast", "a red river"), answer("a stone", "the stone")]
    answers += [answer("", "blue"), answer("blue hill", "")]
    texts, first = [a.text for a in answers], [a.references[0] for a in answers]
    second = ["a red river", None, None, None]
    found = score(answers, build_metrics(GenerationArguments(), "bleu", "chrf"))
    assert found.overall["bleu"] == sacrebleu.corpus_bleu(texts, [first, second]).score > 0
    assert found.overall["chrf"] == sacrebleu.corpus_chrf(texts, [first, second]).score > 0
    for i, one in enumerate(answers):
        assert found.each["bleu"][i] == sacrebleu.sentence_bleu(one.text, one.references).score
        assert found.each["chrf"][i] == sacrebleu.sentence_chrf(one.text, one.references).score


def test_metrics_without_references():
    answers = [
        Answer("Say red.", "red red red blue", ("",), tokens=5, ended=True),
        Answer("Say red.", "red red", ("",), tokens=3, ended=False, cut=True),
    ]
    names = "distinct_2", "tokens_per_answer", "ended_share", "cut_share"
    found = score(answers, build_metrics(GenerationArguments(), *names))
    assert found.each == {
        "distinct_2": [pytest.approx(200 / 3), 100],  # red red twice, red blue once
        "tokens_per_answer": [5, 3],
        "ended_share": [100, 0],
        "cut_share": [0, 100],
    }
    assert found.overall == {"distinct_2": 50, "tokens_per_answer": 4, "ended_share": 50, "cut_share": 50}


def test_bertscore_is_computed_if_it_is_asked_for(monkeypatch):
    """With a stub of its package."""
    seen = []

    def stub(answers, references, lang):
        seen.append((answers, references, lang))
        return None, None, torch.tensor([0.25])

    package = types.ModuleType("bert_score")
    package.score, package.__spec__ = stub, importlib.machinery.ModuleSpec("bert_score", None)
    monkeypatch.setitem(sys.modules, "bert_score", package)
    assert "bertscore" not in metric_names() and metric_names(["bertscore"])
    found = score([answer("a", "b", "c")], build_metrics(GenerationArguments(), "bertscore"))
    assert found.overall == {"bertscore": 25} and seen == [(["a"], [["b", "c"]], "en")]


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_rows_are_answered_and_scored(tiny):
    """With a generator that knows the answers, up to a limit of 4 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / "student")
    rows = [Row("Say red.", ("red",)), Row("Say " + "red river " * 30, ("blue", "red river stone cloud bread"))]
    seen = {}

    class Oracle:
        def generate(self, prompts, seeds):
            seen.update(prompts=prompts, seeds=seeds)
            ids = [tokenizer(f" {row.responses[-1]}")["input_ids"] + [tokenizer.eos_token_id] for row in rows]
            return {seed: [answer[:4] for answer in ids] for seed in seeds}

    questions = EvaluationSet(rows, tokenizer, max_prompt_length=32, template=prompt_template("none"))
    answers = questions.answers(Oracle(), [1, 2])
    assert list(answers) == seen["seeds"] == [1, 2] and answers[1] == answers[2]
    assert questions.cut_prompts == 1 and [len(ids) for ids in seen["prompts"]] == [len(questions.prompts[0].ids), 32]
    first, second = answers[1]
    assert (first.prompt, first.text, first.references, first.ended) == ("Say red.", "red", ("red",), True)
    assert first.tokens == len(tokenizer(" red")["input_ids"]) + 1
    assert (second.tokens, second.ended) == (4, False)
    scores = questions.scores(Oracle(), [7], build_metrics(GenerationArguments(), "exact_match", "words_per_answer"))
    assert scores == {7: {"exact_match": 50, "words_per_answer": (1 + len(second.text.split())) / 2}}


# --- results ---------------------------------------------------------------------------------------------------------


def test_table_has_a_row_per_data_set_and_a_column_per_seed():
    assert table({"dolly": {20: 23.125, 10: 20.0}, "self-inst": {20: 7.0}}).splitlines() == [
        "data set   seed 10  seed 20   mean   std",
        "---------  -------  -------  -----  ----",
        "dolly        20.00    23.12  21.56  2.21",
        "self-inst              7.00   7.00  0.00",
    ]
    assert table({"dolly": {10: 20.0}}).splitlines() == ["data set  seed 10", "--------  -------", "dolly       20.00"]


def results(root, **settings) -> Results:
    return Results(root, "set-valid", {"set": "set", **settings}, {"model_path": "m"})


def scores(score: float, rows: int = 0) -> Scores:
    return Scores({"rougeL": [score] * rows}, {"rougeL": score})


def test_answers_and_metrics_are_written(tmp_path):
    made = results(tmp_path)
    made.write(10, [answer("ä\n\u2028 \ud800", "a", "b"), answer("b", "c")], scores(1.23456, rows=2), 2.345)
    folder = made.folder / "seed10"
    first, second = (json.loads(line) for line in (folder / "answers.jsonl").read_text().split("\n")[:-1])
    assert first == {"prompt": "Say red.", "answer": "ä\n\u2028 \ud800", "references": ["a", "b"], "rougeL": 1.2346} | {
        "tokens": 3,
        "ended": True,
        "cut": False,
    }
    assert second["references"] == ["c"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == {"rougeL": 1.23456, "rows": 2, "seed": 10, "seconds": 2.35, "made": metrics["made"]}
    assert {path.name for path in folder.iterdir()} == {"answers.jsonl", "metrics.json"}
    assert json.loads((made.folder / "settings.json").read_text()) == {"set": "set", "model_path": "m"}
    assert made.complete() == {10: metrics}


def test_the_summary_lists_all_that_is_on_disk(tmp_path):
    greedy, sampled = results(tmp_path, do_sample=False), results(tmp_path, do_sample=True)
    assert greedy.folder != sampled.folder and results(tmp_path, do_sample=True).folder == sampled.folder
    greedy.write(10, [], scores(1.0), 0)
    sampled.write(20, [], scores(3.0), 0)
    results(tmp_path, unfinished=True).folder.mkdir()
    (tmp_path / "old-set/seed10").mkdir(parents=True)  # without a fingerprint
    sampled.write(21, [], scores(5.0), 0)
    write_summary(tmp_path)
    first, second = json.loads((tmp_path / "summary.json").read_text())["evaluations"]
    assert (first["do_sample"], first["fingerprint"]) == (False, greedy.folder.name)
    assert first["rougeL"] == {"mean": 1.0, "std": 0.0, "seeds": {"10": 1.0}}
    assert second["rougeL"] == {"mean": 4.0, "std": pytest.approx(2**0.5), "seeds": {"20": 3.0, "21": 5.0}}


def write_often(root, number: int) -> None:
    for seed in range(20):
        results(root, number=number).write(seed, [answer("a" * 1000)] * 20, scores(number, rows=20), 0)
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


# --- code/evaluate.py ------------------------------------------------------------------------------------------------

LENGTHS = ["--max-length", "72", "--max-prompt-length", "64"]


@pytest.fixture
def evaluate(root, tiny, monkeypatch, capsys):
    """Runs `code/evaluate.py` in this process, on the student by default. Returns stdout, or of a failure stderr."""

    monkeypatch.setattr(os, "_exit", sys.exit)  # a failure ends the process at once
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: None)

    def run(*flags, code=0):
        words = ["evaluate.py", "--model-path", str(tiny / "student"), *LENGTHS, *map(str, flags)]
        monkeypatch.setattr(sys, "argv", words)
        ended = 0
        try:
            runpy.run_path(str(root / "code/evaluate.py"), run_name="__main__")
        except SystemExit as error:
            ended = error.code
        out, err = capsys.readouterr()
        assert ended == code, err
        return err if code else out

    return run


def write_rows(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def read_answers(folder) -> dict[str, list[dict]]:
    """By <set>-<split>/seed<S>."""
    answers = {}
    for path in sorted(folder.glob("*/*/seed*/answers.jsonl")):
        key = f"{path.parts[-4]}/{path.parts[-2]}"
        assert key not in answers, "of two evaluations"
        answers[key] = [json.loads(line) for line in path.read_text().splitlines()]
    return answers


def read_summary(folder) -> list[dict]:
    return json.loads((folder / "summary.json").read_text())["evaluations"]


@pytest.fixture(scope="module")
def one_rank(tiny, rows, tmp_path_factory):
    """Of a run with `python` on two sets: its command, its data folders, its results and its output."""
    sets = [rows, write_rows(tmp_path_factory.mktemp("second") / "other-set", make_rows(5, seed=9))]
    command = ["code/evaluate.py", "--model-path", str(tiny / "student"), *LENGTHS, "--data-dir", *map(str, sets)]
    command += ["--seeds", "10", "20", "--do-sample", "--eval-batch-size", "2", "--base-path", "."]
    folder = tmp_path_factory.mktemp("one_rank")
    done = run([sys.executable, *command, "--save-dir", str(folder)])
    assert done.returncode == 0, done.stderr
    return command, sets, folder, done.stdout


def test_every_row_is_answered_and_scored(one_rank):
    """answers.jsonl, metrics.json, summary.json and the table, of two sets and two seeds."""
    _, sets, folder, out = one_rank
    answers, evaluations = read_answers(folder), {entry["set"]: entry for entry in read_summary(folder)}
    assert set(answers) == {f"{data.name}-valid/seed{seed}" for data in sets for seed in (10, 20)}
    for data in sets:
        name = data.name
        wanted = [json.loads(line) for line in (data / "valid.jsonl").read_text().splitlines()]
        prompts = [prompt_template("alpaca").render(row["instruction"], row["input"]) for row in wanted]
        scores = evaluations[name]["rougeL"]["seeds"]
        for seed in ("10", "20"):
            found = answers[f"{name}-valid/seed{seed}"]
            assert [row["prompt"] for row in found] == prompts
            right = rouge_l([row["answer"] for row in found], [row["references"] for row in found])
            assert [row["rougeL"] for row in found] == pytest.approx(right, abs=1e-3)
            folder_of_seed = folder / f"{name}-valid" / evaluations[name]["fingerprint"] / f"seed{seed}"
            metrics = json.loads((folder_of_seed / "metrics.json").read_text())
            assert metrics["rougeL"] == scores[seed] and metrics["seconds"] > 0
            for metric in ("rougeL", "exact_match", "words_per_answer"):
                assert metrics[metric] == pytest.approx(sum(row[metric] for row in found) / len(found), abs=1e-3)
        assert answers[f"{name}-valid/seed10"] != answers[f"{name}-valid/seed20"]
        assert [f"{score:.2f}" for score in scores.values()] in [line.split()[1:3] for line in out.splitlines()]
    assert "without effect here: --base-path" in out
    assert "other-set (5 rows); results in" in out


def test_two_ranks_give_the_same_answers(one_rank, tmp_path):
    command, _, folder, _ = one_rank
    done = run(torchrun(2, *command, "--save-dir", str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert read_answers(tmp_path) == read_answers(folder)
    assert done.stdout.count("ROUGE-L of") == 1


def test_another_evaluation_has_another_folder(evaluate, tiny, rows, tmp_path):
    """Whatever decides a score is part of the fingerprint, and no earlier result changes."""
    rows = shutil.copytree(rows, tmp_path / "rows")
    checkpoint, folder = shutil.copytree(tiny / "student", tmp_path / "epoch1"), tmp_path / "eval/epoch1"
    greedy, sampled = ["--data-dir", rows, "--dev-num", 4], ["--data-dir", rows, "--dev-num", 2, "--do-sample"]
    evaluations = {
        "greedy": greedy,
        "sampled": sampled,
        "temperature": [*sampled, "--temperature", 0.7],
        "generator": [*sampled, "--generator", "transformers"],
        "batches": [*sampled, "--generator", "transformers", "--eval-batch-size", 1],
        "rows": [*greedy, "--dev-num", 3],
        "lengths": [*greedy, "--max-prompt-length", 60],
        "dtype": [*greedy, "--dtype", "bfloat16"],
        "tokenizer": [*greedy, "--rouge-tokenizer", "unicode"],
        "another split": ["--data-dir", rows, "--split", "dev"],
        "other rows": greedy,
        "other weights": greedy,
    }

    def files():
        return {path: path.read_bytes() for path in folder.rglob("*/*") if path.is_file()}

    for number, (name, words) in enumerate(evaluations.items(), start=1):
        if name == "other rows":
            write_rows(rows, [{"prompt": "Say red.", "output": "red"}, *make_rows(3)])
        if name == "other weights":
            for file in ("model.safetensors", "config.json"):
                shutil.copy(tiny / "teacher" / file, checkpoint / file)
        before = files()
        out = evaluate("--model-path", checkpoint, *words)
        assert len(read_summary(folder)) == number, name
        assert out.rpartition("\n\n")[2].count("\n") == 3, "the table is of this evaluation"
        assert before.items() <= files().items()
    first, *_ = read_summary(folder)
    assert (first["rows"]["count"], first["dtype"], first["model_path"]) == (4, "float32", str(checkpoint))


def test_the_same_evaluation_is_recognised(evaluate, rows, tmp_path, monkeypatch):
    generated = []
    generate = transformers.GenerationMixin.generate
    counted = lambda *args, **kwargs: generated.append(1) or generate(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(transformers.GenerationMixin, "generate", counted)

    def table_of(*words):
        generated.clear()
        out = evaluate("--data-dir", rows, "--dev-num", 3, "--save-dir", tmp_path, *words)
        return out.rpartition("ROUGE-L of")[2], len(generated)

    first, batches = table_of("--do-sample", "--seeds", 10, 20)
    answers, metrics_before = read_answers(tmp_path), {}
    for path in tmp_path.glob("*/*/*/metrics.json"):  # as written before there were other metrics
        metrics_before[path] = metrics = json.loads(path.read_text())
        path.write_text(json.dumps({name: metrics[name] for name in ("rougeL", *SEED_FIELDS)}))
    assert batches and table_of("--do-sample", "--seeds", 10, 20) == (first, 0)
    for path in tmp_path.glob("*/*/*/metrics.json"):  # from the answers on disk
        assert json.loads(path.read_text()) == metrics_before[path]
    assert table_of("--do-sample", "--seeds", 20, 30, 10)[1] == batches / 2
    assert answers.items() < read_answers(tmp_path).items()
    assert table_of("--do-sample", "--seeds", 10, 20, "--force") == (first, batches)
    assert answers.items() < read_answers(tmp_path).items()
    assert table_of("--seed", 5)[1] and table_of("--seed", 6)[1] == 0, "greedy: of any seed"
    assert len(read_summary(tmp_path)) == 2


def test_answers_without_their_lengths_are_not_scored_again(evaluate, rows, tmp_path):
    flags = ["--data-dir", rows, "--dev-num", 2, "--save-dir", tmp_path]
    evaluate(*flags)
    (answers,), (metrics,) = tmp_path.rglob("answers.jsonl"), tmp_path.rglob("metrics.json")
    answers.write_text(answers.read_text().replace('"ended"', '"over"'))
    metrics.write_text(json.dumps({"rougeL": 1.0, "seed": 10, "made": "x"}))
    assert "answers without their lengths have no bleu, " in evaluate(*flags)
    assert json.loads(metrics.read_text())["rougeL"] == 1.0


def test_a_kill_loses_no_seed_that_is_complete(evaluate, rows, tmp_path, monkeypatch):
    flags = ["--data-dir", rows, "--dev-num", 2, "--do-sample", "--seeds", 10, 20, 30, "--eval-batch-size", 9]
    evaluate(*flags, "--save-dir", tmp_path / "whole")
    calls, generate = [], transformers.GenerationMixin.generate

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return generate(*args, **kwargs)

    monkeypatch.setattr(transformers.GenerationMixin, "generate", dies)
    evaluate(*flags, "--save-dir", tmp_path / "part", code=1)
    (seed,) = (tmp_path / "part").glob("*/*/seed*")
    seed.rename(seed.with_name(".seed10.old.tmp"))  # killed while it was replaced
    evaluate(*flags, "--save-dir", tmp_path / "part")
    assert len(calls) == 4 and read_answers(tmp_path / "part") == read_answers(tmp_path / "whole")


def test_a_kill_loses_no_set_that_is_complete(evaluate, rows, tmp_path, monkeypatch):
    sets = [rows, write_rows(tmp_path / "other-set", make_rows(3, seed=9))]
    flags = ["--data-dir", *sets, "--dev-num", 2, "--save-dir", tmp_path / "out"]
    answered, answers = [], EvaluationSet.answers

    def dies_at_the_second(self, generator, seeds):
        answered.append(self.rows[0].prompt)
        if len(answered) == 2:
            raise RuntimeError("killed")
        return answers(self, generator, seeds)

    monkeypatch.setattr(EvaluationSet, "answers", dies_at_the_second)
    evaluate(*flags, code=1)
    evaluate(*flags)
    assert answered[1:] == [answered[1]] * 2 and len(read_summary(tmp_path / "out")) == 2


def test_several_checkpoints_share_a_table(evaluate, tiny, rows, tmp_path):
    for name in ("sft", "todi"):
        shutil.copytree(tiny / "student", tmp_path / name / "epoch1")
    (tmp_path / "todi/args.json").write_text(json.dumps({"prompt_template": "none"}))
    flags = ["--model-path", tmp_path / "sft", tmp_path / "todi", "--data-dir", rows, "--dev-num", 2]
    out = evaluate(*flags, "--do-sample", "--seeds", 10, 20, "--save-dir", tmp_path / "out")
    last = out.rpartition("\n\n")[2].splitlines()
    assert [line.split()[0] for line in last] == ["checkpoint", "----------", "sft", "todi"]
    told = f"not the same settings on {rows.name}: prompt_template: alpaca, or the row's own prompt for sft, none, or"
    assert told in out and "(--prompt-template)" in out
    assert {path.name for path in (tmp_path / "out").glob("scores.*")} == {"scores.md", "scores.json", "scores.csv"}
    shutil.rmtree(tmp_path / "todi/epoch1")
    evaluate(*flags, code=2)
    assert not (tmp_path / "sft/eval").exists(), "a missing checkpoint is seen first"


def test_the_manifest_is_recorded_and_a_changed_file_is_reported(evaluate, tmp_path):
    data = write_rows(tmp_path / "dolly", make_rows(3))
    digest = hashlib.sha256((data / "valid.jsonl").read_bytes()).hexdigest()
    manifest = {"set": "dolly", "source": {"page": "p", "revision": "r"}, "files": {"valid.jsonl": {"sha256": digest}}}
    (data / "manifest.json").write_text(json.dumps(manifest))
    flags = ["--data-dir", data, "--save-dir", tmp_path / "out"]
    assert "is not the file that" not in evaluate(*flags)
    (entry,) = read_summary(tmp_path / "out")
    assert entry["data"] == {"set": "dolly", "source": "p", "revision": "r", "sha256_matches": True}
    write_rows(data, make_rows(2))
    said = f"dolly: {data}/valid.jsonl is not the file that {data}/manifest.json describes; prepare the data again"
    assert said in evaluate(*flags) and len(read_summary(tmp_path / "out")) == 2
    (data / "manifest.json").write_text("{")
    assert "prepare the data again, or delete the file" in evaluate(*flags, code=2)


def test_an_empty_reference_counts_0_and_is_named(evaluate, tmp_path):
    data = write_rows(tmp_path, [{"prompt": "Say red.", "output": output} for output in ("red", "", ["", "red"])])
    out = evaluate("--data-dir", data, "--save-dir", tmp_path / "out")
    assert f"1 row with an empty reference, counted as 0: {tmp_path / 'valid.jsonl'}:2\n" in out
    ((*_, empty, last),) = read_answers(tmp_path / "out").values()
    assert empty["references"] == [""] and empty["rougeL"] == 0 and last["references"] == ["red"]


def test_what_a_user_should_know_is_reported(evaluate, rows, tmp_path):
    flags = ["--data-dir", rows, "--save-dir", tmp_path, "--dev-num", 2, "--seeds", 10, 20]
    out = evaluate(*flags, "--max-length", 40, "--max-prompt-length", 32)
    assert f"{rows.name}: 2 of 2 prompts are longer than 32 tokens and were cut" in out
    assert "every seed gives the same answers: only seed 10 runs" in out
    assert list(read_answers(tmp_path)) == [f"{rows.name}-valid/seed10"]
    chinese = write_rows(tmp_path / "chinese", [{"prompt": "Say red.", "output": "北京"}])
    out = evaluate("--data-dir", chinese, "--save-dir", tmp_path)
    assert out.count("100% of the letters of the references, which are not a-z: --rouge-tokenizer") == 1


def test_folders_of_one_name_do_not_overwrite_each_other(evaluate, rows, tmp_path):
    sets = [shutil.copytree(rows, tmp_path / parent / "set") for parent in ("a", "b")]
    evaluate("--dev-num", 1, "--save-dir", tmp_path / "out", "--data-dir", *sets)
    assert len(read_answers(tmp_path / "out")) == 2


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


def test_an_adapters_own_tokenizer_wins(tiny, adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny / "student")
    tokenizer.add_tokens(["brandnew"])
    tokenizer.save_pretrained(folder)
    assert "brandnew" in load_checkpoint(str(folder))[1].get_vocab()


def test_adapters_are_evaluated_from_the_command_line(evaluate, rows, adapter, tmp_path):
    runs = {"alone": ["--model-path", adapter], "given": ["--peft-path", adapter, "--peft", "lora"], "base": []}
    answers = {}
    for name, flags in runs.items():
        evaluate(*flags, "--data-dir", rows, "--dev-num", 3, "--save-dir", tmp_path / name)
        answers[name] = read_answers(tmp_path / name)
    assert answers["alone"] == answers["given"] != answers["base"]
    evaluate(*runs["given"], "--data-dir", rows, "--dev-num", 3)
    assert (adapter.parent / "eval" / adapter.name / "summary.json").is_file()


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tiny, rows, adapter, tmp_path):
    def edited(folder, name, file, **changes):
        path = shutil.copytree(folder, tmp_path / name) / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return tmp_path / name

    return {
        "adapter": adapter,
        "rows": rows,
        "no_eos": edited(tiny / "student", "no_eos", "tokenizer_config.json", eos_token=None),
        "no_base": edited(adapter, "no_base", "adapter_config.json", base_model_name_or_path=None),
        "base_is_gone": edited(adapter, "gone", "adapter_config.json", base_model_name_or_path="model_hub/gone"),
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model-path nobody/nothing", "nobody/nothing: "),
        ("--model-path {no_eos}", "{no_eos}: its tokenizer has no EOS"),
        ("--metrics bleurt", "--metrics bleurt: no such metric; there are "),
        ("--model-path {adapter} {rows} --peft-path {adapter}", "pass one model, the base of all --peft-path"),
        ("--max-length 900", "has 512 positions; pass --max-length 512 --max-prompt-length 256, or less"),
        ("--max-new-tokens 900", "--max-new-tokens 900: after a prompt of --max-prompt-length 64 that is 964 tokens"),
        ("--split test", "--data-dir {rows}: no test.jsonl there (found: dev.jsonl, t"),
        ("--model-path {adapter} --peft-path {adapter}", "--model-path {adapter}: a LoRA adapter"),
        ("--model-path {no_base}", "--model-path BASE --peft-path {no_base}"),
        ("--model-path {base_is_gone}", "--model-path BASE --peft-path {base_is_gone}"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_line(evaluate, places, flags, said, tmp_path):
    words = f"--data-dir {{rows}} --save-dir {tmp_path}/out {flags}".format(**places).split()
    (line,) = evaluate(*words, code=2).splitlines()
    assert line.startswith("error: ") and said.format(**places) in line
    assert not (tmp_path / "out").exists()
