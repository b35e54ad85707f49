"""Samples the student's own answers to training prompts, between two optimiser steps.

In: the prompts of a step, known by the indices of their rows. Out: their answers, the same on every rank. An answer is
drawn from a generator seeded by (seed, step, row), so it depends neither on the number of ranks nor, up to rounding, on
the other rows. The student samples without dropout; its mode, parameters, gradients, attention and the random numbers
of training stay as they were.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import GenerationArguments, OnPolicyArguments
from data_utils.batches import Example
from generation.base import Generator
from generation.building import build_generator
from generation.vllm_generator import refresh
from generation.whole_copy import WholeCopy
from models.heads import SplitModel

SAMPLES = 3  # keeps these draws apart from others of the same seed and step (training/sources.py)


@dataclass(frozen=True)
class Sampled:
    """The rows of a step in the order of its prompts, how many of them were cut, and what they cost on this rank."""

    rows: list[Example]
    cut: int
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(row.response_ids) for row in self.rows)


class StudentSampler:
    """args: with no value left open (`preflight.defaults`).

    longest_prompt: no prompt has more tokens. max_length: of prompt and answer; what exceeds it is sampled and cut off.
    partitioned: under ZeRO-3 a whole copy of the student samples.
    """

    def __init__(
        self,
        student: SplitModel,
        tokenizer: PreTrainedTokenizerBase,
        args: OnPolicyArguments,
        seed: int,
        longest_prompt: int,
        max_length: int,
        device: torch.device,
        partitioned: bool = False,
    ):
        self._student, self._tokenizer, self._args = student, tokenizer, args
        self._seed, self._longest_prompt, self._max_length = seed, longest_prompt, max_length
        self._copy = WholeCopy(student.model, device) if partitioned else None

    def sample(self, prompts: dict[int, Sequence[int]], step: int) -> Sampled:
        """The student's answers as rows; an answer that reached a limit has no EOS. Collective.

        prompts: by the index of their row, in the same order on every rank.
        """
        started = time.perf_counter()
        (seed,) = map(int, np.random.SeedSequence((self._seed, SAMPLES, step)).generate_state(1))
        with self._evaluating() as model:
            answers = self._generator(model).generate(list(prompts.values()), [seed], list(prompts))[seed]
        rows = [
            Example(prompt, answer[: self._max_length - len(prompt)])
            for prompt, answer in zip(prompts.values(), answers)
        ]
        cut = sum(row.response_ids[-1] != self._tokenizer.eos_token_id for row in rows)
        return Sampled(rows, cut, time.perf_counter() - started)

    @contextmanager
    def _evaluating(self) -> Iterator[PreTrainedModel | PeftModel]:
        """The model that samples, in evaluation mode."""
        if self._copy is not None:
            yield self._copy.refreshed()
            return
        model = self._student.model
        training = model.training
        model.eval()
        try:
            yield model
        finally:
            model.train(training)

    def _generator(self, model: PreTrainedModel | PeftModel) -> Generator:
        args, head = self._args, self._student.head
        if args.gen_engine == "vllm":
            refresh(model, self._longest_prompt + args.gen_max_new_tokens)
        decoding = GenerationArguments(
            do_sample=True,
            temperature=args.gen_temperature,
            top_p=args.gen_top_p,
            top_k=args.gen_top_k,
            generator=args.gen_engine,
        )
        return build_generator(
            model,
            self._tokenizer,
            decoding,
            max_new_tokens=args.gen_max_new_tokens,
            tokens_per_batch=args.gen_tokens_per_batch,
            description="student answers",
            forbidden=range(head.vocabulary_size, head.whole_size),  # the teacher lacks them
        )
