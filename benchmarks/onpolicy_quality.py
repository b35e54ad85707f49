"""What the student's own answers change on the tiny pair of the quickstart, at equal steps, over several seeds.

One teacher; students that differ in their rows only (ToDi on data, mixed, adaptive, the teacher's answers) and the
published combinations of rows and objective. Each student is scored by ROUGE-L of greedy answers (valid.jsonl), dev
NLL, and the mean reverse KL(q || p) per token on the prefixes of answers that it samples itself to the prompts of
valid.jsonl, and of the references there.

    OMP_NUM_THREADS=1 python benchmarks/onpolicy_quality.py [--seeds 10 20 30] [--epochs 8] [--methods todi todi-gkd]

Students start from random weights, as in the quickstart, whose first samples are noise; with --sft-epochs N from N
epochs of fine-tuning, as in the papers.
The same command continues what was interrupted; finished students are not trained again. Runs are in
outputs/onpolicy_quality. Prints a table and writes benchmarks/results/<date>-onpolicy_quality.json.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "benchmarks")]

from workload import write_result  # noqa: E402

import distillation  # noqa: E402
import evaluate  # noqa: E402
import generate  # noqa: E402
from arguments import GenerationArguments  # noqa: E402
from data_utils.batches import Example, batches_by_length, collate  # noqa: E402
from data_utils.dataset import read_rows  # noqa: E402
from data_utils.prompts import encode_pairs, prompt_template  # noqa: E402
from evaluation.results import format_table  # noqa: E402
from generation.building import build_generator  # noqa: E402
from models.folders import find_checkpoint  # noqa: E402
from models.loading import load_checkpoint  # noqa: E402
from runtime.atomic import write_text  # noqa: E402

OUT = ROOT / "outputs/onpolicy_quality"
ROWS, NEW_TOKENS, SAMPLING_SEED, TOKENS_PER_BATCH = "600", 64, 1, 4096
SEED, TUNED_LR = 10, "0.002"  # of the fine-tuned start, and after it
FLAGS = "--probe-rows", "0", "--no-eval-at-start"
ANSWERS = str(OUT / "answers")
# A dev NLL that always counts as risen: the share of sampled and replayed steps grows by 0.1 per epoch.
RISING = "--loss-eps", "-100"
# name -> variables of scripts/tiny/kd_student.sh, and flags
METHODS: dict[str, tuple[dict[str, str], Sequence[str]]] = {
    "todi": ({"KD_OBJ": "todi"}, ()),
    "todi-gkd": ({"KD_OBJ": "todi", "ON_POLICY": "gkd"}, ()),
    "todi-distillm": ({"KD_OBJ": "todi", "ON_POLICY": "distillm", "EVAL_INTERVAL": "1"}, ()),
    "todi-distillm-rising": ({"KD_OBJ": "todi", "ON_POLICY": "distillm", "EVAL_INTERVAL": "1"}, RISING),
    "todi-seqkd": ({"KD_OBJ": "todi", "DATA_DIR": ANSWERS}, ()),
    "js-gkd": ({"KD_OBJ": "js", "ON_POLICY": "gkd"}, ()),
    "srkl-distillm-rising": ({"KD_OBJ": "srkl", "ON_POLICY": "distillm", "EVAL_INTERVAL": "1"}, RISING),
    "sft-seqkd": ({"KD_OBJ": "cross_entropy", "DATA_DIR": ANSWERS}, ()),
}
ENTRIES = {f"code/{entry.__name__}.py": entry.main for entry in (distillation, evaluate, generate)}
SCORES = {"rougeL": "ROUGE-L", "dev_nll": "dev NLL", "rkl_own": "RKL, own prefixes", "rkl_data": "RKL, references"}


def run_script(script: str, *words: object, **variables: str) -> None:
    """Runs the command of a script in a fork of this process, which has imported everything once."""
    environment = os.environ | {"GPUS": "0", "DRY_RUN": "1"} | variables
    command = ["bash", script, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    printed = shlex.split(done.stdout.splitlines()[-1])
    place = next(i for i, word in enumerate(printed) if word in ENTRIES)
    print(*printed[place:], flush=True)
    in_fork(ENTRIES[printed[place]], printed[place + 1 :])


def in_fork(function: Callable[..., None], *arguments: object) -> None:
    """Raises RuntimeError if it fails."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__module__} ended with {process.exitcode}; the same command continues")


def prepare_teacher() -> Path:
    """Trains the teacher of the quickstart and lets it answer the students' prompts."""
    if not (ROOT / "model_hub/tiny/student-init").is_dir():
        subprocess.run([sys.executable, "scripts/tiny/make_models.py"], cwd=ROOT, check=True)
    teacher = OUT / "teacher"
    if not (teacher / "quality.json").is_file():
        run_script("scripts/tiny/sft_teacher.sh", SAVE_DIR=str(teacher))
        run_script("scripts/tiny/evaluate.sh", teacher)
        write_text(teacher / "quality.json", json.dumps(scores(teacher)))
    run_script("scripts/generate.sh", teacher, DATA_DIR="data/sample", SAVE_DIR=str(OUT / "answers"), TRAIN_NUM=ROWS)
    return teacher


def prepare_student(epochs: int) -> dict[str, str]:
    """The variables of a student that starts from fine-tuning on the same rows; without epochs, from random weights."""
    if not epochs:
        return {}
    run = OUT / f"sft-{epochs}epochs"
    if not (run / "report.html").is_file():
        run_script("scripts/tiny/sft_student.sh", *FLAGS, **variables(run, SEED, epochs))
    return {"CKPT_PATH": str(run), "LR": TUNED_LR}


def variables(run: Path, seed: int, epochs: int) -> dict[str, str]:
    """Of a run whose last epoch counts."""
    last = dict.fromkeys(("EPOCH", "SAVE_INTERVAL", "EVAL_INTERVAL"), str(epochs))
    return last | {"SAVE_DIR": str(run), "SEED": str(seed), "TRAIN_NUM": ROWS}


def student(method: str, seed: int, args: argparse.Namespace, start: dict[str, str], teacher: Path) -> dict[str, float]:
    """Trains and scores a student, unless it is there."""
    run = OUT / f"{args.epochs}epochs{f'-after-{args.sft_epochs}' if start else ''}/{method}-seed{seed}"
    if not (run / "quality.json").is_file():
        of_run = variables(run, seed, args.epochs) | {"TEACHER_MODEL_PATH": str(teacher)}
        of_method, flags = METHODS[method]
        run_script("scripts/tiny/kd_student.sh", *FLAGS, *flags, **of_run | start | of_method)
        run_script("scripts/tiny/evaluate.sh", run, DATA_DIRS="data/sample")
        in_fork(write_quality, run, teacher)
    return json.loads((run / "quality.json").read_text())


def write_quality(run: Path, teacher: Path) -> None:
    found = scores(run) | reverse_kl(run, teacher) | {"steps": steps(run)}
    write_text(run / "quality.json", json.dumps(found, indent=2) + "\n")


def scores(run: Path) -> dict[str, float]:
    (checkpoint,) = run.glob("epoch*_step*")
    evaluations = json.loads((run / "eval" / checkpoint.name / "summary.json").read_text())["evaluations"]
    last = [json.loads(line) for line in (run / "dev_metrics.jsonl").read_text().splitlines()][-1]
    return {"rougeL": evaluations[-1]["rougeL"]["mean"], "dev_nll": last["loss"]}


def steps(run: Path) -> dict[str, int]:
    """By kind of rows; of a run that never samples, none are counted."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kinds = {f"{kind}_steps": sum(r.get(f"{kind}_steps", 0) for r in records) for kind in ("data", "student", "replay")}
    return kinds | {"steps": records[-1]["step"]}


def reverse_kl(run: Path, teacher: Path) -> dict[str, float]:
    """On prefixes of the student's own samples, and of the references; also the mean length of the samples."""
    (q, tokenizer), (p, _) = (load_checkpoint(find_checkpoint("run", str(path))) for path in (run, teacher))
    rows = read_rows(ROOT / "data/sample/valid.jsonl", prompt_template("alpaca"))
    prompts, references = encode_pairs(tokenizer, [row.prompt for row in rows], [row.responses[0] for row in rows])
    generator = build_generator(
        q,
        tokenizer,
        GenerationArguments(do_sample=True),
        max_new_tokens=NEW_TOKENS,
        tokens_per_batch=TOKENS_PER_BATCH,
    )
    answers = generator.generate(prompts, [SAMPLING_SEED])[SAMPLING_SEED]
    return {
        "rkl_own": mean_reverse_kl(q, p, [Example(*ids) for ids in zip(prompts, answers)]),
        "rkl_data": mean_reverse_kl(q, p, [Example(*ids) for ids in zip(prompts, references)]),
        "sampled_tokens": sum(map(len, answers)) / len(answers),
    }


@torch.no_grad()
def mean_reverse_kl(q: PreTrainedModel, p: PreTrainedModel, examples: Sequence[Example]) -> float:
    """Per response token, in nats."""
    total = tokens = 0
    for indices in batches_by_length([len(example) for example in examples], TOKENS_PER_BATCH):
        batch = collate([examples[i] for i in indices], 0, TOKENS_PER_BATCH, "padded")
        log_q_NV, log_p_NV = (
            model(input_ids=batch.input_ids_RT, attention_mask=batch.attention_mask_RT)
            .logits.flatten(0, 1)[batch.response_positions]
            .float()
            .log_softmax(-1)
            for model in (q, p)
        )
        total += (log_q_NV.exp() * (log_q_NV - log_p_NV)).sum().item()
        tokens += len(batch.labels_N)
    return total / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 20, 30])
    parser.add_argument("--epochs", type=int, default=8, help="passes over 600 rows, of every student")
    parser.add_argument("--sft-epochs", type=int, default=0, help="of fine-tuning before, on the same rows")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args()
    teacher, start = prepare_teacher(), prepare_student(args.sft_epochs)
    found: dict[str, dict[int, dict]] = {method: {} for method in args.methods}
    for seed in args.seeds:
        for method in args.methods:
            found[method][seed] = student(method, seed, args, start, teacher)
    of_teacher = json.loads((teacher / "quality.json").read_text())
    table = [["teacher", *(f"{of_teacher[name]:.3f}" if name in of_teacher else "" for name in SCORES)]]
    for method, of_seeds in found.items():
        values = {name: [of_seed[name] for of_seed in of_seeds.values()] for name in SCORES}
        spread = {name: statistics.stdev(of) if len(of) > 1 else 0.0 for name, of in values.items()}
        table.append([method, *(f"{statistics.fmean(values[name]):.3f} ± {spread[name]:.3f}" for name in SCORES)])
    print("\n" + format_table(["student", *SCORES.values()], table))
    write_result(f"onpolicy_quality{'-after-sft' if start else ''}", vars(args), teacher=of_teacher, students=found)


if __name__ == "__main__":
    main()
