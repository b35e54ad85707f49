"""TRL's trainers on the student's own answers, for bench_onpolicy.py: reverse KL, fp32, all rows sampled.

In: prompts. Out: seconds of the whole run, and the records of all steps but the first, which warms up.
"""

import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback


@dataclass(frozen=True)
class Settings:
    """student, teacher: folders. batches: of a step. limit: of new tokens."""

    student: str
    teacher: str
    batch_size: int
    batches: int
    limit: int
    seed: int


class OfTrainer(NamedTuple):
    """A trainer that counts what it samples, its configuration, and what else it takes."""

    kind: type
    config: Callable
    inputs: dict


class Steps(TrainerCallback):
    """Measures every step, and the sampling in it."""

    def __init__(self):
        self.records: list[dict] = []

    def on_step_begin(self, *_, **__):
        self.records.append({"step_time": -time.perf_counter(), "generation_s": 0.0, "generated_tokens": 0})

    def on_step_end(self, *_, **__):
        self.records[-1]["step_time"] += time.perf_counter()

    @contextlib.contextmanager
    def sampling(self) -> Iterator[dict]:
        started = time.perf_counter()
        yield self.records[-1]
        self.records[-1]["generation_s"] += time.perf_counter() - started


def train(name: str, prompts: Sequence[str], settings: Settings) -> dict:
    """One pass over the prompts by the trainer of this name."""
    steps = Steps()
    tokenizer = AutoTokenizer.from_pretrained(settings.student, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    of_trainer = TRAINERS[name](settings, tokenizer, steps)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (settings.student, settings.teacher)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = of_trainer.kind(
            model=student,
            teacher_model=teacher,
            args=of_trainer.config(
                output_dir=folder,
                per_device_train_batch_size=settings.batch_size,
                gradient_accumulation_steps=settings.batches,
                num_train_epochs=1,
                learning_rate=1e-5,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                logging_steps=1000,
                disable_tqdm=True,
                seed=settings.seed,
            ),
            train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            processing_class=tokenizer,
            callbacks=[steps],
            **of_trainer.inputs,
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    del trainer
    gc.collect()
    return {"seconds": seconds, "steps": steps.records[1:]}


def distillation_trainer(settings: Settings, tokenizer: PreTrainedTokenizerBase, steps: Steps) -> OfTrainer:
    from trl import DistillationConfig, DistillationTrainer

    class Counted(DistillationTrainer):
        def _generate_single_turn(self, *inputs, **named):
            with steps.sampling() as record:
                completions = super()._generate_single_turn(*inputs, **named)
                record["generated_tokens"] += sum(map(len, completions))
            return completions

    return OfTrainer(Counted, partial(DistillationConfig, max_completion_length=settings.limit), {})


def gkd_trainer(settings: Settings, tokenizer: PreTrainedTokenizerBase, steps: Steps) -> OfTrainer:
    """At lmbda 1 and temperature 1. The prompts are the same text as elsewhere, not chats."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Counted(GKDTrainer):
        @staticmethod
        def generate_on_policy_outputs(*inputs, **named):
            with steps.sampling() as record:
                outputs = GKDTrainer.generate_on_policy_outputs(*inputs, **named)
                record["generated_tokens"] += (outputs[2] != -100).sum().item()
            return outputs

    def collate(rows: Sequence[dict]) -> dict:
        prompts = tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt")
        ids, mask = prompts["input_ids"], prompts["attention_mask"]
        return {"input_ids": ids, "attention_mask": mask, "labels": ids, "prompts": ids, "prompt_attention_mask": mask}

    config = partial(GKDConfig, lmbda=1.0, beta=1.0, temperature=1.0, max_new_tokens=settings.limit)
    return OfTrainer(Counted, config, {"data_collator": collate})


TRAINERS = {"DistillationTrainer": distillation_trainer, "GKDTrainer": gkd_trainer}
