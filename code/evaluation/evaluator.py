"""A checkpoint on one data set after another: results that are complete are read, missing ones are made.

Each seed is written as soon as it is answered and scored: the same command resumes an interrupted evaluation.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import EvaluateArguments, GenerationArguments
from data_utils.prompts import PromptTemplate
from evaluation.defaults import Checkpoint
from evaluation.metrics import Metric
from evaluation.results import Results
from evaluation.scoring import EvaluationSet, score, warnings
from evaluation.sets import DataSet
from evaluation.settings import evaluation_settings, limits
from generation.building import build_generator
from runtime.log import report
from runtime.ranks import from_main_process, is_main_process


@dataclass(frozen=True)
class Evaluator:
    """args: with no value left open (`evaluation.defaults`). metrics: all that each answer is scored by."""

    checkpoint: Checkpoint
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    args: EvaluateArguments
    generation: GenerationArguments
    metrics: Mapping[str, Metric]

    def evaluate(self, data: DataSet) -> tuple[Results, dict[int, dict]]:
        """The results and, on rank 0, which writes them, metrics.json by seed. Collective. Raises WriteError."""
        results = self._results(data)
        complete = from_main_process({} if self.args.force else results.complete())
        seeds = self._seeds(complete)
        missing = [seed for seed in seeds if seed not in complete]
        if len(missing) < len(seeds):
            report(f"{data.name}: seeds that are complete in {results.folder} are not answered again (--force does)")
        references = [text for row in data.rows for text in row.responses]
        for warning in [*data.warnings(), *warnings(self.metrics, {"references": references})]:
            report(f"{data.name}: {warning}")
        if is_main_process():
            for seed in [seed for seed in seeds if seed in complete]:
                self._add_missing_metrics(results, seed, complete[seed])
        if missing:
            self._answer(data, results, missing)
        by_seed = results.complete() if is_main_process() else {}
        return results, {seed: by_seed[seed] for seed in seeds if seed in by_seed}

    def _results(self, data: DataSet) -> Results:
        args, checkpoint = replace(self.args, prompt_template=self.template.identity), self.checkpoint
        settings = evaluation_settings(self.model, checkpoint, data.name, data.rows, args, self.generation)
        notes = {
            "model_path": checkpoint.model_path,
            "peft_path": checkpoint.peft_path,
            "data_dir": args.data_dir,
            "data": data.origin,
        }
        return Results(Path(args.save_dir), f"{data.name}-{args.split}", settings, notes)

    def _seeds(self, complete: Mapping[int, object]) -> list[int]:
        """One is enough without sampling: a complete one if there is any."""
        if self.generation.do_sample:
            return self.args.seed
        seed = next(iter(complete), self.args.seed[0])
        if len(self.args.seed) > 1:
            report(f"without --do-sample every seed gives the same answers: only seed {seed} runs")
        return [seed]

    def _answer(self, data: DataSet, results: Results, seeds: Sequence[int]) -> None:
        args = self.args
        questions = EvaluationSet(data.rows, self.tokenizer, args.max_prompt_length, self.template)
        if cut := questions.cut_prompts:
            all_rows, limit = len(data.rows), args.max_prompt_length
            report(f"{data.name}: {cut} of {all_rows} prompts are longer than {limit} tokens and were cut")
        for seed in seeds:
            generator = build_generator(
                self.model,
                self.tokenizer,
                self.generation,
                **limits(args),
                description=f"{data.name}, seed {seed}",
            )
            started = time.perf_counter()
            answers_of_seeds = questions.answers(generator, [seed])
            seconds = time.perf_counter() - started
            for answers in answers_of_seeds.values():  # on rank 0
                results.write(seed, answers, score(answers, self.metrics), seconds)
                found = warnings(self.metrics, {"answers": [answer.text for answer in answers]})
                for warning in found if seed == seeds[0] else []:
                    report(f"{data.name}: {warning}")

    def _add_missing_metrics(self, results: Results, seed: int, complete: Mapping[str, object]) -> None:
        missing = {name: metric for name, metric in self.metrics.items() if name not in complete}
        if not missing:
            return
        answers = results.read_answers(seed)
        if answers is None:
            report(f"{results.folder}: answers without their lengths have no {', '.join(missing)} (--force adds them)")
            return
        report(f"{results.name}: seed {seed} gets {', '.join(missing)} from its answers on disk")
        results.add(seed, score(answers, missing))
