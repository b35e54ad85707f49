"""A checkpoint on one data set after another: results that are complete are read, missing ones are made."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import EvaluateArguments, GenerationArguments
from data_utils.dataset import Row
from data_utils.prompts import prompt_template
from evaluation.metrics import MAIN_METRIC, Answer, build_metrics
from evaluation.results import Results
from evaluation.scoring import EvaluationSet, score, warnings
from evaluation.settings import evaluation_settings
from generation.building import build_generator
from runtime.ranks import from_main_process, is_main_process


@dataclass(frozen=True)
class Evaluator:
    """args: with no value left open (`evaluation.defaults`)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    args: EvaluateArguments
    generation: GenerationArguments

    def evaluate(self, name: str, rows: Sequence[Row]) -> dict[int, float]:
        """ROUGE-L of each seed, on rank 0, which writes the results. Collective. Raises WriteError."""
        results = self._results(name, rows)
        complete = from_main_process({} if self.args.force else results.complete())
        seeds = self._seeds(complete)
        missing = [seed for seed in seeds if seed not in complete]
        if len(missing) < len(seeds):
            report(f"{name}: seeds that are complete in {results.folder} are not answered again (--force does)")
        if empty := [row.place for row in rows if not any(row.responses)]:
            report(f"{name}: {len(empty)} rows have an empty reference and count 0: {', '.join(empty[:5])}")
        started = time.perf_counter()
        answers_of_seeds = self._answers(name, rows, missing) if missing else {}
        seconds = (time.perf_counter() - started) / max(len(missing), 1)
        if not is_main_process():
            return {}
        metrics = build_metrics(self.generation)
        texts = {
            "references": [response for row in rows for response in row.responses],
            "answers": [answer.text for answers in answers_of_seeds.values() for answer in answers],
        }
        for warning in warnings(metrics, texts):
            report(f"{name}: {warning}")
        for seed, answers in answers_of_seeds.items():
            scores = score(answers, metrics)
            results.write(seed, answers, scores, seconds)
            complete[seed] = scores.overall[MAIN_METRIC]
        return {seed: complete[seed] for seed in seeds}

    def _results(self, name: str, rows: Sequence[Row]) -> Results:
        args = self.args
        settings = evaluation_settings(self.model, name, rows, args, self.generation)
        notes = {"model_path": args.model_path, "peft_path": args.peft_path, "data_dir": args.data_dir}
        return Results(Path(args.save_dir), f"{name}-{args.split}", settings, notes)

    def _seeds(self, complete: dict[int, float]) -> list[int]:
        """One is enough without sampling: a complete one if there is any."""
        if self.generation.do_sample:
            return self.args.seed
        seed = next(iter(complete), self.args.seed[0])
        if len(self.args.seed) > 1:
            report(f"without --do-sample every seed gives the same answers: only seed {seed} runs")
        return [seed]

    def _answers(self, name: str, rows: Sequence[Row], seeds: Sequence[int]) -> dict[int, list[Answer]]:
        args = self.args
        ending = prompt_template(args.prompt_template).ending
        questions = EvaluationSet(rows, self.tokenizer, args.max_prompt_length, ending)
        if cut := questions.cut_prompts:
            report(f"{name}: {cut} of {len(rows)} prompts are longer than {args.max_prompt_length} tokens and were cut")
        generator = build_generator(
            self.model,
            self.tokenizer,
            self.generation,
            max_new_tokens=args.max_length - args.max_prompt_length,
            tokens_per_batch=args.eval_batch_size * args.max_length,
            description=name,
        )
        return questions.answers(generator, seeds)


def report(message: str) -> None:
    """Prints on rank 0."""
    if is_main_process():
        print(message, flush=True)
