"""Dev scores of a run: the NLL of the responses and, with --eval-gen, the ROUGE-L of generated answers.

In: the engine in evaluation mode and the dev rows. Out: scores, the same on every rank; a record in dev_metrics.jsonl.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor
from torch import distributed as dist

from arguments import DataArguments, GenerationArguments, TrainArguments
from data_utils.batches import Batch
from evaluation.metrics import MAIN_METRIC, build_metrics
from evaluation.scoring import EvaluationSet
from generation.building import build_generator
from runtime.log import logger
from teacher.states import Teacher, dropped_mass, negative_log_likelihood
from training.rank_batches import RankBatches
from training.writers import MetricWriter

DROPPED_MASS_ROWS = 256  # dev rows on which it is measured
NOTABLE_MASS = 0.01


@dataclass(frozen=True)
class DevEvaluation:
    """questions: the dev rows as text, for --eval-gen."""

    engine: DeepSpeedEngine
    questions: EvaluationSet
    batches: RankBatches
    args: TrainArguments
    data_args: DataArguments
    generation: GenerationArguments
    writers: Sequence[MetricWriter]

    def scores(self, epoch: int, step: int) -> dict[str, float]:
        """Logs and returns the NLL in nats per token (`loss`) and, with --eval-gen, ROUGE-L (`rougel`)."""
        self.engine.eval()
        scores = {"loss": self._student_loss()}
        if self.args.eval_gen:
            scores["rougel"] = self._rouge_l()
        self._report(epoch, step, scores)
        return scores

    def start(self, teacher: Teacher | None) -> dict[str, float]:
        """Logs and returns the NLL before the first step, of the student and, as `teacher_loss`, of the teacher."""
        self.engine.eval()
        scores = {"loss": self._student_loss()}
        if teacher is not None:
            chunk_bytes = self.engine.module.chunk_bytes
            scores["teacher_loss"] = self._mean(lambda batch: negative_log_likelihood(teacher, batch, chunk_bytes))
        self._report(0, 0, scores)
        if teacher is not None and not scores["teacher_loss"] < scores["loss"]:
            logger.warning(
                "the teacher's dev NLL %.4f is no lower than the student's %.4f before the first step: check "
                "--teacher-model-path, --teacher-peft-path and --prompt-template, or fine-tune the teacher first",
                *(scores["teacher_loss"], scores["loss"]),
            )
        return scores

    def log_dropped_mass(self, teacher: Teacher) -> None:
        """The probability that the teacher gives to ids that the student lacks, if there are any.

        The objective ignores these ids and renormalises the rest.
        """
        dropped = teacher.head.whole_size - teacher.head.vocabulary_size
        if not dropped:
            return
        total = torch.zeros(2, dtype=torch.float64, device=self.engine.device)
        with closing(self.batches.of_dev(DROPPED_MASS_ROWS, self.tokens_per_batch)) as batches:
            for batch in batches:
                total[0] += dropped_mass(teacher, batch, self.engine.module.chunk_bytes)
                total[1] += len(batch.labels_N)
        dist.all_reduce(total)
        mass = (total[0] / total[1]).item()
        logger.info(
            "the teacher gives %.3g of its probability on dev to the %d ids that are dropped%s",
            *(mass, dropped),
            "; a teacher with the student's tokens would lose none" if mass > NOTABLE_MASS else "",
        )

    @property
    def tokens_per_batch(self) -> int:
        return self.args.eval_batch_size * self.data_args.max_length

    def _report(self, epoch: int, step: int, scores: Mapping[str, float]) -> None:
        logger.info("dev epoch %d %s", epoch, " ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        for writer in self.writers:
            writer.write({"step": step, "epoch": epoch, **scores})

    def _student_loss(self) -> float:
        return self._mean(lambda batch: self.engine(batch=batch).ce)

    def _mean(self, nll: Callable[[Batch], Tensor]) -> float:
        """Per response token of dev. nll: sum over a batch."""
        dev = self.batches.dev
        total = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        with torch.no_grad(), closing(self.batches.of_dev(len(dev), self.tokens_per_batch)) as batches:
            for batch in batches:
                total += nll(batch)
        dist.all_reduce(total)
        return total.item() / int(dev.responses.sum())

    def _rouge_l(self) -> float:
        seed, lengths = self.args.seed, self.data_args
        generator = build_generator(
            self.engine.module.student,
            self.questions.tokenizer,
            self.generation,
            max_new_tokens=lengths.max_length - lengths.max_prompt_length,
            tokens_per_batch=self.tokens_per_batch,
            synced=self.engine.zero_optimization_stage() == 3,
            description="dev answers",
        )
        metrics = build_metrics(self.generation, MAIN_METRIC)
        return self.questions.scores(generator, [seed], metrics)[seed][MAIN_METRIC]


def checkpoint_score(scores: Mapping[str, float], step: int) -> float:
    """Ranks a checkpoint by its dev scores; higher is better. Without dev data the latest counts as the best."""
    if "rougel" in scores:
        return scores["rougel"]
    if "loss" in scores:
        return -scores["loss"]
    return float(step)


def score_meaning(score: float, dev: DevEvaluation | None) -> str:
    """What `checkpoint_score` measured, in words."""
    if dev is None:
        return "no dev data: the latest count as the best"
    return f"dev ROUGE-L {score:.4f}" if dev.args.eval_gen else f"dev loss {-score:.4f}"
