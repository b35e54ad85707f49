"""Every family of scripts/ as tiny random models: SFT, ToDi and AdaKD, LoRA and all weights, save, load, evaluate.

What is loaded again, and the dev NLL before the first step, are compared with plain Transformers and PEFT, one example
at a time. FAMILIES=all runs every family on one rank and on two.
"""

import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_utils.prompts import prompt_template
from families import FAMILIES, KINDS, make_family, tokenizer_of
from integration.launch import run_jobs
from integration.worker import TOKENS
from models.heads import LanguageModelHead
from models.probes import split
from official_flags import TODI_KD, TODI_SFT

ALL = os.environ.get("FAMILIES") == "all"
ON_TWO_RANKS = list(FAMILIES) if ALL else ["qwen2.5", "gemma3"]
ON_ONE_RANK = [name for name in FAMILIES if ALL or name not in ON_TWO_RANKS]
TEACHER, TODI, ADAKD = "sft", "todi", "adakd"


def training_jobs(name: str, family: Path, rows: Path) -> list[tuple[str, list[str]]]:
    """Names and flags of three runs: an adapter of the teacher, then both kinds of student."""
    common = [
        *("--data-dir", str(rows), "--max-length", "192", "--max-prompt-length", "160", "--batch-size", "4"),
        *("--num-epochs", "1", "--total-iters", "3", "--log-interval", "1", "--lr", "0.003", "--probe-rows", "0"),
        *("--data-process-workers", "1"),
    ]
    lora = ["--peft", "lora", "--peft-lora-r", "4", "--peft-lora-dropout", "0"]
    if targets := FAMILIES[name].lora_targets:
        lora += ["--peft-lora-target-modules", targets]
    student = ["--model-path", str(family / "student"), "--teacher-model-path", str(family / "teacher")]
    student += ["--teacher-peft-path", str(family / TEACHER)]
    kd = ["--kd-rate", "0.5", "--kd-objective"]
    return [
        (TEACHER, [*common, *lora, "--model-path", str(family / "teacher"), "--save-dir", str(family / TEACHER)]),
        (TODI, [*common, *student, *kd, "todi", "--save-dir", str(family / TODI)]),
        (ADAKD, [*common, *student, *kd, "adakd+todi", *lora, "--save-dir", str(family / ADAKD)]),
    ]


def evaluation_jobs(family: Path, rows: Path) -> dict[str, list[str]]:
    flags = ["--data-dir", str(rows), "--eval-num", "3", "--max-new-tokens", "5"]
    return {run: ["--model-path", str(family / run), *flags] for run in (TODI, ADAKD)}


def checkpoint(run: Path) -> Path:
    (found,) = run.glob("epoch*")
    return found


def loaded(family: Path, run: str, base: str) -> torch.nn.Module:
    """What plain Transformers and PEFT make of the checkpoint of a run."""
    path = checkpoint(family / run)
    if run == TODI:
        return AutoModelForCausalLM.from_pretrained(path).eval()
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(family / base), path).eval()


def plain_nll(model: torch.nn.Module, kind: str, rows: Path, vocabulary: int | None = None) -> float:
    """Of the dev responses with EOS, in nats per token, by the family's own policy of BOS and EOS.

    vocabulary: ids among which the model chooses; of a teacher, those that the student has, too.
    """
    tokenizer, total, count = tokenizer_of(kind), 0.0, 0

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for line in (rows / "dev.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = prompt_template("alpaca").render(row["instruction"], row["input"])
        response = row["output"] if isinstance(row["output"], str) else row["output"][0]
        before = [tokenizer.bos_token_id] * KINDS[kind].adds_bos + ids_of(prompt)
        ids = [tokenizer.bos_token_id] * KINDS[kind].adds_bos + ids_of(prompt + response) + [tokenizer.eos_token_id]
        assert ids[: len(before)] == before and len(ids) < 192
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0, :, :vocabulary].log_softmax(-1)
        of_response = range(len(before), len(ids))
        total -= sum(log_p[t - 1, ids[t]].item() for t in of_response)
        count += len(of_response)
    return total / count


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(name: str, folder: Path, rows: Path) -> None:
    """What the runs and evaluations of a family left behind."""
    family, out, kind = folder / name, folder / "out", FAMILIES[name].kind
    tuned_teacher = loaded(family, TEACHER, "teacher")
    for run, base in ((TEACHER, "teacher"), (TODI, "student"), (ADAKD, "student")):
        with torch.no_grad():
            trained = torch.load(out / f"{name}-{run}.pt", weights_only=True)["logits"]
            torch.testing.assert_close(loaded(family, run, base)(TOKENS).logits, trained, rtol=1e-4, atol=1e-4)
        start, end = records(family / run / "dev_metrics.jsonl")
        untrained = AutoModelForCausalLM.from_pretrained(family / base).eval()
        assert start["loss"] == pytest.approx(plain_nll(untrained, kind, rows), rel=1e-4)
        assert end["loss"] == pytest.approx(plain_nll(loaded(family, run, base), kind, rows), rel=1e-4)
        assert end["loss"] != start["loss"]
        if run != TEACHER:
            shared = untrained.get_output_embeddings().out_features
            assert start["teacher_loss"] == pytest.approx(plain_nll(tuned_teacher, kind, rows, shared), rel=1e-4)
        steps = records(family / run / "metrics.jsonl")
        assert len(steps) == 3 and all(math.isfinite(step["loss"]) for step in steps)
        assert all((step["kd_loss"] > 0) == (run != TEACHER) for step in steps)
        assert not re.search("padded|whole logits", (family / run / "train.log").read_text())
    student, original = loaded(family, TODI, "student"), AutoModelForCausalLM.from_pretrained(family / "student")
    head, embedding = student.get_output_embeddings().weight, student.get_input_embeddings().weight
    assert (head is embedding) == original.config.tie_word_embeddings
    assert head.shape == original.get_output_embeddings().weight.shape
    assert type(split(student).head) is LanguageModelHead
    saved, source = (AutoTokenizer.from_pretrained(path) for path in (checkpoint(family / TODI), family / "student"))
    for token in ("bos_token", "eos_token"):
        assert getattr(saved, token) == getattr(source, token)
    assert saved("a b")["input_ids"] == source("a b")["input_ids"]
    for run in (TODI, ADAKD):
        ends = json.loads((out / f"{name}-evaluate-{run}.json").read_text())
        assert {end["code"] for end in ends} == {0}, ends
        (answers,) = (family / run / "eval").glob("*/*/*/seed10/answers.jsonl")
        assert len(records(answers)) == 3
        assert not any(
            token in record["answer"] for record in records(answers) for token in KINDS[kind].special.split()
        )


def train_and_evaluate(names: list[str], ranks: int, rows: Path, folder: Path, extra: list[dict]) -> None:
    """Everything of these families in one launch: runs in `folder`/NAME, what worker.py saw in `folder`/out."""
    jobs = []
    for name in names:
        make_family(name, folder / name)
        of_family = training_jobs(name, folder / name, rows)
        jobs += [{"name": f"{name}-{run}", "argv": flags} for run, flags in of_family]
        for run, flags in evaluation_jobs(folder / name, rows).items():
            jobs.append({"name": f"{name}-evaluate-{run}", "entry": "evaluate", "argv": flags})
    run_jobs(folder / "out", ranks, [*jobs, *extra])


def official_jobs(folder: Path, rows: Path) -> list[dict]:
    """The flags of the official scripts, with other paths and a limit of two steps."""
    jobs = []
    for name, family, words in (("sft", "gpt2", TODI_SFT), ("kd", "tinyllama", TODI_KD)):
        models = folder / family
        paths = {
            "--model-path": models / "student",
            "--teacher-model-path": models / "teacher",
            "--teacher-peft-path": models / TEACHER,
            "--data-dir": rows,
            "--save-dir": folder / f"official-{name}",
        }
        flags = words.split()
        for flag in paths.keys() & set(flags):
            flags[flags.index(flag) + 1] = str(paths[flag])
        jobs.append({"name": f"official-{name}", "argv": [*flags, "--total-iters", "2"]})
    return jobs


@pytest.fixture(scope="module")
def one_rank(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_rank")
    run = folder / "qwen2" / ADAKD
    repeat = {"name": "repeat", "args_json": str(run / "args.json"), "flags": ["--save-dir", str(folder / "repeat")]}
    train_and_evaluate(ON_ONE_RANK, 1, rows, folder, [repeat, *official_jobs(folder, rows)])
    return folder


@pytest.fixture(scope="module")
def two_ranks(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    train_and_evaluate(ON_TWO_RANKS, 2, rows, folder, [])
    return folder


@pytest.mark.parametrize("name", ON_ONE_RANK)
def test_family(name, rows, one_rank):
    check(name, one_rank, rows)


@pytest.mark.parametrize("name", ON_TWO_RANKS)
def test_family_on_two_ranks(name, rows, two_ranks):
    check(name, two_ranks, rows)


def test_args_json_repeats_the_run(one_rank):
    def losses(run):
        steps = records(run / "metrics.jsonl")
        return [{field: value for field, value in step.items() if "loss" in field} for step in steps]

    first, again = one_rank / "qwen2" / ADAKD, one_rank / "repeat"
    assert len(losses(again)) == 3 and losses(again) == losses(first)
    of_first, of_again = (json.loads((run / "args.json").read_text()) for run in (first, again))
    assert [name for name in of_first if of_first[name] != of_again[name]] == ["save_dir", "run"]


@pytest.mark.parametrize("name", ["sft", "kd"])
def test_the_official_scripts_flags_train(name, one_rank):
    run = one_rank / f"official-{name}"
    (end,) = [record for record in records(run / "dev_metrics.jsonl") if record["step"] == 2]
    assert math.isfinite(end["loss"]) and "rougel" in end
    assert json.loads((run / "args.json").read_text())["run"]["command"][-2:] == ["--total-iters", "2"]
    assert (checkpoint(run) / "adapter_config.json").is_file() == (name == "kd")
    log = (run / "train.log").read_text()
    assert "bfloat16" in log and "without effect here: --base-path" in log


def test_every_family_of_the_scripts_is_here(root):
    scripts = {path.parent.name for path in (root / "scripts").glob("*/family.sh")}
    assert scripts - FAMILIES.keys() == {"tiny"}
