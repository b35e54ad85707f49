"""Generation with continuous batching of Transformers: a waiting prompt takes the place of a finished one.

Greedy search only: requests have no seeds of their own, so samples would change with what else is running. The prompts
are dealt to the ranks in order of length. On a GPU without flash attention, and on a CPU, `sdpa` computes with a mask
over the whole cache; see docs/generation.md for when this pays.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import ContinuousBatchingConfig, PreTrainedModel, PreTrainedTokenizerBase

from arguments import GenerationArguments
from generation.base import generation_config, of_all_ranks, up_to_eos
from runtime.ranks import rank, world_size

PAGE = 64  # tokens; an answer holds whole pages
TOKENS_PER_PASS = 512  # of prompts and answers together; the mask has this many rows


@dataclass(frozen=True)
class ContinuousGenerator:
    """A `Generator`.

    max_new_tokens: the limit where --max-new-tokens sets none.
    tokens_per_batch: tokens in the cache.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    args: GenerationArguments
    max_new_tokens: int
    tokens_per_batch: int

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], rows: Sequence[int] | None = None
    ) -> dict[int, list[list[int]]]:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))[rank() :: world_size()]
        answers = of_all_ranks(dict(zip(order, self._answers([list(prompts[i]) for i in order]))))
        return {seed: [answers[i] for i in range(len(prompts))] for seed in seeds}

    def _answers(self, prompts: list[list[int]]) -> list[list[int]]:
        """Raises RuntimeError if an answer is missing: `generate_batch` only logs its errors."""
        if not prompts:
            return []
        config = generation_config(self.tokenizer, self.args, self.max_new_tokens)
        longest = max(map(len, prompts)) + config.max_new_tokens
        pages = max(self.tokens_per_batch // PAGE, -(-longest // PAGE) + 1)
        # Without num_blocks the cache takes all memory that is free.
        settings = ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=pages, max_batch_tokens=TOKENS_PER_PASS, auto_switch_to_flash=False
        )
        with ready_for_paging(self.model) as model:
            found = model.generate_batch(prompts, generation_config=config, continuous_batching_config=settings)
        errors = [answer.error for answer in found.values() if answer.error is not None]
        if errors or len(found) < len(prompts):
            raise RuntimeError(
                f"--generator continuous: {len(prompts) - len(found) + len(errors)} of {len(prompts)} prompts have no "
                f"answer{': ' if errors else ''}{errors[0] if errors else ''}; use --generator dropping"
            )
        return [up_to_eos(answer.generated_tokens, config.eos_token_id) for answer in found.values()]


@contextmanager
def ready_for_paging(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model with an attention that can page; afterwards attention, mode and random state are what they were.

    Raises ValueError for a model that computes attention in its own way: it would ignore the pages and answer nonsense.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    if not (model._supports_sdpa and model._can_set_attn_implementation()):
        raise ValueError(
            f"--generator continuous: the attention of {model.config.model_type} cannot read a paged cache; use "
            "--generator dropping"
        )
    attention, training = model.config._attn_implementation, model.training
    pages = attention == "sdpa" or attention.startswith("flash")
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        if not pages:
            model.set_attn_implementation("sdpa")
        with torch.random.fork_rng(devices=devices):
            yield model
    finally:
        if not pages:
            model.set_attn_implementation(attention)
        model.train(training)
