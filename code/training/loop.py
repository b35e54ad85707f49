"""The training loop: steps, logs, dev evaluation, checkpoints.

In: an engine around a `Distiller`, a teacher (or none), data. Out: checkpoints and logs under --save-dir.

The loss of an optimiser step is its sum over all ranks and micro-steps divided by its response tokens, which every
rank knows from the plan of the epoch; so how the step is cut into micro-batches and ranks does not change the gradient.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from deepspeed import DeepSpeedEngine
from torch import distributed as dist
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase

from arguments import DataArguments, GenerationArguments, TrainArguments
from criterions import StepTokens
from data_utils.batches import Batch, ExampleTable, Layout, batches_by_length, collate
from data_utils.dataset import Row
from data_utils.epoch_plan import EpochPlan, Step, total_steps
from data_utils.prompts import prompt_template
from distiller import Distiller
from evaluation.metrics import MAIN_METRIC, build_metrics
from evaluation.scoring import EvaluationSet
from generation.transformers_generator import TransformersGenerator
from runtime.log import duration, logger
from teacher.states import Teacher, dropped_mass
from training.checkpoints import BestCheckpoints, save_checkpoint
from training.guard import StepGuard, poisoned
from training.metrics import Metrics, append_record
from training.prefetch import prefetched
from training.resume import Resume, RunState
from training.stopping import StopSignals

DROPPED_MASS_ROWS = 256  # dev rows on which it is measured
NOTABLE_MASS = 0.01


@dataclass(frozen=True)
class Data:
    """What is trained on and what is measured on; `dev_rows` has the text of `dev` for generation."""

    train: ExampleTable
    dev: ExampleTable | None
    dev_rows: Sequence[Row]
    layout: Layout


@dataclass(frozen=True)
class Trainer:
    """Trains `engine.module`, a Distiller, to the last step."""

    engine: DeepSpeedEngine
    teacher: Teacher | None
    tokenizer: PreTrainedTokenizerBase
    data: Data
    plan: EpochPlan
    data_args: DataArguments
    args: TrainArguments
    generation: GenerationArguments
    metrics: Metrics
    resume: Resume

    @property
    def distiller(self) -> Distiller:
        return self.engine.module

    @property
    def total_steps(self) -> int:
        return total_steps(self.plan, self.args)

    @property
    def _eval_tokens(self) -> int:
        return self.args.eval_batch_size * self.data_args.max_length

    def run(self) -> bool:
        """All epochs; after each, dev evaluation and a checkpoint as the intervals say.

        False: a signal came first, and the state is saved. Raises WriteError, Diverged.
        """
        self.distiller.criterion.prepare(self.total_steps)
        best = BestCheckpoints(self.args.keep_best_n_checkpoints)
        state = RunState(self.resume, self.engine, self.distiller.criterion, self.metrics, best)
        state.restore()
        at, main = state.position, dist.get_rank() == 0
        if at.step == 0:
            self._log_dropped_mass()
        hidden = None if main else True  # None: without a terminal
        bar = tqdm(total=self.total_steps, initial=at.step, desc="train", unit="step", disable=hidden, leave=False)
        with (
            bar as progress,
            logging_redirect_tqdm([logger] if main else []),
            StopSignals(self.engine.device) as signals,
        ):
            while not at.finished:
                if (not at.epoch_ends and self._train_epoch(state, progress, signals)) or signals.now():
                    logger.info("stopped by a signal after step %d; the same command continues it", at.step)
                    return False
                self._finish_epoch(state)
        for score, folder in sorted(best.kept, reverse=True):
            logger.info("kept %s (%s)", folder, self._meaning(score))
        return True

    def _train_epoch(self, state: RunState, progress: tqdm, signals: StopSignals) -> bool:
        """Takes the steps that the epoch still has, and saves the state. Returns whether a signal ended it."""
        at, args = state.position, self.args
        guard = StepGuard(self.engine, self.data.train, Path(args.save_dir), args.max_bad_steps, at.bad_steps)
        self.engine.train()
        self.metrics.start_clock()
        stop = False
        planned = self.plan.steps(at.epoch, at.step_in_epoch)[: self.total_steps - at.step]
        with closing(self._micro_batches(planned)) as batches:
            for left, step in zip(reversed(range(len(planned))), planned):
                lr = self.engine.get_lr()[0]
                extras = self._train_step(step, batches, at.step + 1, guard)
                at.next_step()
                at.bad_steps = guard.bad_steps
                progress.update()
                if at.step % args.log_interval == 0 or at.step == self.total_steps:
                    self._log(at.step, at.epoch, lr, extras)
                stop = signals.after_step()
                if left and (stop or (args.resume_interval and at.step % args.resume_interval == 0)):
                    self.metrics.stop_clock()
                    state.save()
                    self.metrics.start_clock()
                if stop and left:
                    return True
        self.metrics.stop_clock()
        at.epoch_ends = True
        state.save()
        return stop

    def _train_step(self, planned: Step, batches: Iterator[Batch], number: int, guard: StepGuard) -> dict[str, float]:
        """One optimiser step on the next of `batches`. Returns what the criterion logs of it."""
        world_size = dist.get_world_size()
        criterion = self.distiller.criterion
        step_tokens = StepTokens(tuple(sum(of_ranks) for of_ranks in planned.tokens), self.engine.device)
        criterion.start_step(step_tokens)
        for micro_step in range(len(planned.examples)):
            batch = next(batches)
            self.engine.set_gradient_accumulation_boundary(micro_step == len(planned.examples) - 1)
            teacher = self.teacher.states(batch) if self.teacher else None
            sums = self.engine(batch=batch, teacher=teacher)
            # The engine averages over ranks; the loss is a sum over all of them, divided once.
            self.engine.backward(poisoned(sums.loss) * (world_size / step_tokens.total_tokens), scale_wrt_gas=False)
            self.engine.step()
            self.metrics.add(sums, batch)
        applied = guard.inspect(number, planned, self.metrics.losses())
        self.metrics.end_step(applied, self.engine.get_global_grad_norm())
        before = criterion.state_dict()
        extras = criterion.end_step()
        if not applied:
            criterion.load_state_dict(before)
        return extras

    def _micro_batches(self, steps: Sequence[Step]) -> Iterator[Batch]:
        """This rank's, of all micro-steps, made while the steps before them run."""
        rank = dist.get_rank()
        micro_steps = (pair for step in steps for pair in zip(step.examples, step.tokens))
        return prefetched(
            lambda pair: self._batch(self.data.train, pair[0][rank], pair[1]), micro_steps, self.engine.device
        )

    def _batch(self, data: ExampleTable, indices: Sequence[int], positions_per_rank: tuple[int, ...]) -> Batch:
        examples = [data[i] for i in indices]
        pad_id, length = self.tokenizer.pad_token_id, self.data_args.max_length
        batch = collate(examples, pad_id, length, self.data.layout, positions_per_rank)
        return batch.to(self.engine.device)

    def _log(self, step: int, epoch: int, lr: float, extras: dict[str, float]) -> None:
        record = self.metrics.log(step, epoch, lr, extras)
        if record is None:
            return
        steps = self.total_steps
        epochs = -(-steps // len(self.plan))
        parts = f" nll_loss {record['nll_loss']:.4f} kd_loss {record['kd_loss']:.4f}" if self.teacher else ""
        more = "".join(f" {name} {value:.4g}" for name, value in extras.items())
        eta = f" eta {duration((steps - step) * record['step_time'])}" if step < steps else ""
        logger.info(
            f"epoch {epoch}/{epochs} step {step}/{steps} loss {record['loss']:.4f}{parts} lr {record['lr']:.3g} "
            f"grad_norm {record['grad_norm']:.3g} {record['tokens_per_s']:.0f} tokens/s{more}{eta}"
        )

    def _finish_epoch(self, state: RunState) -> None:
        """What is due after the epoch's last step. A run that is killed in here does all of it again."""
        at, last = state.position, state.position.step == self.total_steps
        save = last or at.epoch % self.args.save_interval == 0
        if save or at.epoch % self.args.eval_interval == 0:
            self._evaluate_and_save(at.epoch, at.step, state.best, save)
        at.next_epoch()
        at.finished = last
        state.update()

    def _evaluate_and_save(self, epoch: int, step: int, best: BestCheckpoints, save: bool) -> None:
        self.engine.eval()
        scores = self._evaluate(epoch, step)
        name = f"epoch{epoch}_step{step}" + "".join(f"_{k}{v:.4f}" for k, v in scores.items())
        # See `_meaning`. Without dev data the latest checkpoint counts as the best.
        score = scores.get("rougel", -scores["loss"] if "loss" in scores else float(step))
        if save and best.wants(score):
            folder = Path(self.args.save_dir) / name
            save_checkpoint(self.distiller.student, self.tokenizer, folder)
            best.add(score, folder)
            logger.info("saved %s", folder)

    def _meaning(self, score: float) -> str:
        """What the score of a checkpoint says."""
        if self.data.dev is None:
            return "no dev data: the latest count as the best"
        return f"dev ROUGE-L {score:.4f}" if self.args.eval_gen else f"dev loss {-score:.4f}"

    def _evaluate(self, epoch: int, step: int) -> dict[str, float]:
        """Dev NLL in nats a token (`loss`) and, with --eval-gen, dev ROUGE-L (`rougel`)."""
        if self.data.dev is None:
            return {}
        scores = {"loss": self._dev_loss(self.data.dev)}
        if self.args.eval_gen:
            scores["rougel"] = self._dev_rouge(self.data.dev_rows)
        logger.info("dev epoch %d %s", epoch, " ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        if dist.get_rank() == 0:
            append_record(Path(self.args.save_dir) / "dev_metrics.jsonl", {"step": step, "epoch": epoch, **scores})
        return scores

    def _dev_loss(self, dev: ExampleTable) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        with torch.no_grad(), closing(self._dev_batches(dev, len(dev))) as batches:
            for batch in batches:
                total += self.engine(batch=batch).ce
        dist.all_reduce(total)
        return total.item() / int(dev.responses.sum())

    def _dev_batches(self, dev: ExampleTable, rows: int) -> Iterator[Batch]:
        """This rank's, of the first rows; equally many on every rank, as whatever is sharded under ZeRO-3 needs."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        of_all_ranks = batches_by_length(dev.lengths[:rows], self._eval_tokens, world_size)
        mine = (indices[rank::world_size] for indices in of_all_ranks)
        return prefetched(lambda indices: self._batch(dev, indices, (0,)), mine, self.engine.device)

    def _log_dropped_mass(self) -> None:
        """What the teacher gives to ids that the student does not share, where there are any: the objective sees none
        of it, and the rest as if it were all."""
        dev, teacher = self.data.dev, self.teacher
        if dev is None or teacher is None or teacher.head.whole_size == teacher.head.vocabulary_size:
            return
        total = torch.zeros(2, dtype=torch.float64, device=self.engine.device)
        with closing(self._dev_batches(dev, DROPPED_MASS_ROWS)) as batches:
            for batch in batches:
                total[0] += dropped_mass(teacher, batch, self.distiller.chunk_bytes)
                total[1] += len(batch.labels_N)
        dist.all_reduce(total)
        mass = (total[0] / total[1]).item()
        logger.info(
            "the teacher gives %.3g of its probability on dev to the %d ids that are dropped%s",
            *(mass, teacher.head.whole_size - teacher.head.vocabulary_size),
            "; a teacher with the student's tokens would lose none" if mass > NOTABLE_MASS else "",
        )

    def _dev_rouge(self, rows: Sequence[Row]) -> float:
        seed, args = self.args.seed, self.data_args
        generator = TransformersGenerator(
            self.distiller.student,
            self.tokenizer,
            self.generation,
            max_new_tokens=args.max_length - args.max_prompt_length,
            tokens_per_batch=self._eval_tokens,
            synced=self.engine.zero_optimization_stage() == 3,
            description="dev answers",
        )
        dev_set = EvaluationSet(
            rows, self.tokenizer, args.max_prompt_length, prompt_template(args.prompt_template).ending
        )
        return dev_set.scores(generator, [seed], build_metrics(self.generation, MAIN_METRIC))[seed][MAIN_METRIC]
