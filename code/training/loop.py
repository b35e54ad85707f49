"""The training loop: steps, epochs, and when to log, evaluate and save.

In: an engine around a `Distiller`, a teacher (or none), data. Out: checkpoints and logs under --save-dir.

The loss of an optimiser step is its sum over all ranks and micro-steps divided by its response tokens, which every
rank knows from the plan of the epoch; so how the step is cut into micro-batches and ranks does not change the gradient.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepspeed import DeepSpeedEngine
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase

from arguments import TrainArguments
from criterions import StepTokens
from data_utils.batches import Batch
from data_utils.epoch_plan import EpochPlan, total_steps
from data_utils.prompts import PromptTemplate
from distiller import Distiller
from runtime.log import duration, logger
from runtime.ranks import is_main_process, world_size
from teacher.states import Teacher
from training.checkpoints import BestCheckpoints, save_checkpoint
from training.dev import DevEvaluation, checkpoint_score, score_meaning
from training.diagnosis import Diagnosis
from training.guard import StepGuard, poisoned
from training.metrics import Metrics
from training.probe import Probe
from training.rank_batches import RankBatches
from training.sources import LoadedStep, RowSource
from training.state import Position, RunState
from training.stopping import StopSignals
from training.writers import MetricWriter

SHOWN = 300  # characters of a sampled row in the log


@dataclass(frozen=True)
class Trainer:
    """Trains `engine.module`, a Distiller, to the last step.

    dev, probe, diagnosis: None where the flags or the data leave them out. source, position, best: owners of `state`,
    which saves them.
    """

    engine: DeepSpeedEngine
    teacher: Teacher | None
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    batches: RankBatches
    plan: EpochPlan
    source: RowSource
    args: TrainArguments
    guard: StepGuard
    dev: DevEvaluation | None
    probe: Probe | None
    diagnosis: Diagnosis | None
    metrics: Metrics
    writers: Sequence[MetricWriter]
    position: Position
    best: BestCheckpoints
    state: RunState

    @property
    def distiller(self) -> Distiller:
        return self.engine.module

    @property
    def total_steps(self) -> int:
        return total_steps(self.plan, self.args)

    def run(self) -> bool:
        """All epochs; after each, dev evaluation and a checkpoint as the intervals say.

        False: a signal came first, and the state is saved. Raises WriteError, Diverged.
        """
        self.distiller.criterion.prepare(self.total_steps)
        self.state.restore()
        at = self.position
        if at.step == 0:
            self._look_before_the_first_step()
        with self._progress_bar() as progress, StopSignals(self.engine.device) as signals:
            while not at.finished:
                if not at.epoch_ends:
                    self._train_epoch(progress, signals)
                if signals.now():
                    logger.info("stopped by a signal after step %d; the same command continues it", at.step)
                    return False
                self._finish_epoch()
        if self.metrics.kinds is not None:
            logger.info(self.metrics.kinds.summary())
        for score, folder in sorted(self.best.kept, reverse=True):
            logger.info("kept %s (%s)", folder, score_meaning(score, self.dev))
        return True

    def _look_before_the_first_step(self) -> None:
        if self.dev is not None and self.teacher is not None:
            self.dev.log_dropped_mass(self.teacher)
        if self.dev is not None and (self.args.eval_at_start or self.source.needs_dev_loss):
            self.source.observe(self.dev.start(self.teacher)["loss"])
        if self.probe is not None:
            self.probe.write(epoch=0, step=0)

    @contextmanager
    def _progress_bar(self) -> Iterator[tqdm]:
        main = is_main_process()
        hidden = None if main else True  # None: without a terminal
        bar = tqdm(
            total=self.total_steps, initial=self.position.step, desc="train", unit="step", disable=hidden, leave=False
        )
        with bar, logging_redirect_tqdm([logger] if main else []):
            yield bar

    def _train_epoch(self, progress: tqdm, signals: StopSignals) -> None:
        """Takes the steps that the epoch still has, up to a signal, and saves the state."""
        at, args = self.position, self.args
        self.engine.train()
        planned = self.plan.steps(at.epoch, at.step_in_epoch)[: self.total_steps - at.step]
        last_step = at.step + len(planned)
        kinds = self.source.kinds(planned, at.step + 1)
        with closing(self.batches.of_steps([step for step, kind in zip(planned, kinds) if kind == "data"])) as data:
            for step, kind in zip(planned, kinds):
                logged = (at.step + 1) % args.log_interval == 0 or at.step + 1 == self.total_steps
                diagnosed = self.diagnosis is not None and (at.step + 1) % args.diagnose_every == 0
                observers = [self.metrics.observe] * logged + ([self.diagnosis.observe] if diagnosed else [])
                with self.metrics.timed():
                    lr = self.engine.get_lr()[0]
                    loaded = self.source.draw(step, at.step + 1, kind)
                    batches = data if kind == "data" else self.batches.of_loaded(loaded)
                    with self.distiller.observed_by(*observers):
                        extras = self._train_step(loaded, batches)
                    at.next_step()
                    progress.update()
                    if logged:
                        self._log(lr, extras)
                    if diagnosed:
                        self.diagnosis.write(at.epoch, at.step)
                    stop = signals.after_step()
                if at.step == last_step:
                    break
                if stop or (args.resume_interval and at.step % args.resume_interval == 0):
                    self.state.save()
                if stop:
                    return
        at.epoch_ends = True
        self.state.save()

    def _train_step(self, loaded: LoadedStep, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step on the next of `batches`. Returns what the criterion logs of it."""
        criterion, micro_steps = self.distiller.criterion, len(loaded.step.examples)
        step_tokens = StepTokens(tuple(sum(per_rank) for per_rank in loaded.step.tokens), self.engine.device)
        criterion.start_step(step_tokens)
        for micro_step in range(micro_steps):
            batch = next(batches)
            self.engine.set_gradient_accumulation_boundary(micro_step == micro_steps - 1)
            teacher = self.teacher.states(batch) if self.teacher else None
            sums = self.engine(batch=batch, teacher=teacher)
            # The engine averages over ranks; the loss is a sum over all of them, divided once.
            self.engine.backward(poisoned(sums.loss) * (world_size() / step_tokens.total_tokens), scale_wrt_gas=False)
            self.engine.step()
            self.metrics.add(sums, batch)
        applied = self.guard.check(loaded, self.metrics.losses())
        self.metrics.end_step(applied, self.engine.get_global_grad_norm(), loaded)
        before = criterion.state_dict()
        extras = criterion.end_step()
        if not applied:
            criterion.load_state_dict(before)
        return extras

    def _log(self, lr: float, extras: dict[str, float]) -> None:
        step, epoch, steps = self.position.step, self.position.epoch, self.total_steps
        extras = extras | self.source.log(step)
        record = self.metrics.record(step, epoch, lr, extras)
        if record is None:
            return
        for writer in self.writers:
            writer.write(record)
        epochs = -(-steps // len(self.plan))
        parts = f" nll_loss {record['nll_loss']:.4f} kd_loss {record['kd_loss']:.4f}" if self.teacher else ""
        more = "".join(f" {name} {value:.4g}" for name, value in extras.items())
        more += f" sampling {record['generation_s']:.3g} s" if "generation_s" in record else ""
        eta = f" eta {duration((steps - step) * record['step_time'])}" if step < steps else ""
        logger.info(
            f"epoch {epoch}/{epochs} step {step}/{steps} loss {record['loss']:.4f}{parts} lr {record['lr']:.3g} "
            f"grad_norm {record['grad_norm']:.3g} {record['tokens_per_s']:.0f} tokens/s{more}{eta}"
        )

    def _finish_epoch(self) -> None:
        """What is due after the epoch's last step. A run that is killed in here does all of it again."""
        at, last = self.position, self.position.step == self.total_steps
        if self.probe is not None:
            self.probe.write(at.epoch, at.step)
        save = last or _is_due(at.epoch, self.args.save_interval)
        if save or _is_due(at.epoch, self.args.eval_interval):
            scores = self.dev.scores(at.epoch, at.step) if self.dev is not None else {}
            if scores:
                self.source.observe(scores["loss"])
            self._show_sample()
            if save:
                self._save_if_best(scores)
        at.next_epoch()
        at.finished = last
        self.state.update()

    def _show_sample(self) -> None:
        row = self.source.latest
        if row is not None:
            prompt, answer = (self.tokenizer.decode(list(ids)) for ids in (row.prompt_ids, row.response_ids))
            logger.info("the student answered %r with %r", prompt[-SHOWN:], answer[:SHOWN])

    def _save_if_best(self, scores: dict[str, float]) -> None:
        score = checkpoint_score(scores, self.position.step)
        if self.best.wants(score):
            name = f"epoch{self.position.epoch}_step{self.position.step}"
            folder = Path(self.args.save_dir) / (name + "".join(f"_{k}{v:.4f}" for k, v in scores.items()))
            save_checkpoint(self.distiller.student, self.tokenizer, folder, self.template)
            self.best.add(score, folder)
            logger.info("saved %s", folder)


def _is_due(epoch: int, interval: int) -> bool:
    """interval: in epochs; -1: each."""
    return interval == -1 or epoch % interval == 0
