"""Let a language model compare the answers of two evaluated runs, pair by pair, each in both orders.

    JUDGE_URL=http://localhost:8000/v1 JUDGE_MODEL=NAME python code/judge.py outputs/sft outputs/todi --max-calls 2000

In: two runs that `code/evaluate.py` evaluated under the same settings, and an OpenAI-compatible endpoint; its key, if
it needs one, in JUDGE_API_KEY. Out: wins, ties and losses with an interval, and how often the order of the answers
decided (docs/evaluation.md); judgement.json, and replies.jsonl, from which the same command resumes. Exit codes: 2: the
input is wrong, or the endpoint refuses the request; 74: a reply could not be written; 75: stopped by a limit, or by an
endpoint that does not answer: what is judged so far is reported, and the same command goes on.
"""

from arguments import JudgeArguments, parse_judge_arguments
from flags import answer_early

if __name__ == "__main__":  # before the imports that take seconds
    answer_early(parse_judge_arguments)

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.judging.asking import Limits, ask_all
from evaluation.judging.endpoint import Endpoint, Unreachable
from evaluation.judging.outcome import Judged
from evaluation.judging.questions import Question, build_questions
from evaluation.judging.replies import Replies
from evaluation.judging.summary import report
from evaluation.stored import common_evaluations, named_runs
from models.folders import tables_folder
from runtime.exit_codes import STOPPED, USER_ERROR_CODES, exit_on, naming_save_dir
from runtime.locks import Held, lock


def main(argv: list[str]) -> None:
    with exit_on({**USER_ERROR_CODES, Unreachable: STOPPED}):
        args = parse_judge_arguments(argv)
        endpoint = Endpoint.from_environment(os.environ, args.judge_options)
        runs, _ = named_runs(args.run_or_ckpt)
        chosen, notes = common_evaluations(runs, args.results)
        questions = build_questions(chosen, args.seed, args.eval_num)
        folder = tables_folder(args.save_dir, list(runs))
        print("".join(f"{note}\n" for note in notes), end="")
        with naming_save_dir(folder, "make room, or pass another folder"), locked(folder):
            complete = judge(questions, endpoint, args, folder, list(runs))
    if not complete:
        sys.exit(STOPPED)


def locked(folder: Path):
    """Two judges at once would ask, and pay for, the same questions. Raises ValueError, WriteError."""
    try:
        return lock(folder / ".judge.lock")[0]
    except Held as holder:
        raise ValueError(f"--save-dir {folder}: another process judges there ({holder}); wait for it") from None


def judge(
    questions: Sequence[Question], endpoint: Endpoint, args: JudgeArguments, folder: Path, runs: Sequence[str]
) -> bool:
    """Asks, then reports on all that is judged, also if asking fails. False if a limit left questions open."""
    by_key = {question.key(endpoint.model, endpoint.options): question for question in questions}
    to_ask = {key: question for key, question in by_key.items() if len(set(question.texts)) > 1}
    replies = Replies(folder / "replies.jsonl", to_ask, endpoint.model)
    known = sum(not replies.is_open(key) for key in to_ask)
    print(
        f"{endpoint.model} at {endpoint.url}: {len(by_key)} questions, {len(by_key) - len(to_ask)} of them with "
        f"identical answers, {known} answered already",
        flush=True,
    )
    complete = False
    try:
        complete = ask_all(to_ask, replies, endpoint, Limits(args.max_calls, args.max_total_tokens), args.parallel)
    finally:
        judged = [
            Judged(question, replies.verdict(key) if key in to_ask else "tie", key in to_ask)
            for key, question in by_key.items()
            if key not in to_ask or not replies.is_open(key)
        ]
        report(judged, endpoint, replies, folder, runs)
    if not complete:
        left = sum(replies.is_open(key) for key in to_ask)
        print(f"stopped by --max-calls or --max-total-tokens: {left} questions are open; raise the limit to go on")
    return complete


if __name__ == "__main__":
    main(sys.argv[1:])
