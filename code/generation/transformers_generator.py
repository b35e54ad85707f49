"""Generation with `generate` of Transformers: batches in order of length, padded on the left, shared among the ranks.

Each batch draws from a generator seeded by (seed, batch number), so the answers of a seed depend neither on the number
of ranks nor on the other seeds. A batch ends when its last answer ends.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from arguments import GenerationArguments
from data_utils.batches import batches_by_length
from generation.base import generation_config, of_all_ranks, up_to_eos
from runtime.ranks import is_main_process, rank, world_size


@dataclass(frozen=True)
class TransformersGenerator:
    """A `Generator`.

    max_new_tokens: the limit where --max-new-tokens sets none.
    tokens_per_batch: prompts, their padding and the longest possible answers together.
    synced: the ranks generate in step, as ZeRO-3 requires; a rank without a batch of its own repeats the last one.
    description: title of the progress bar.
    forbidden: ids that no answer may have.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    args: GenerationArguments
    max_new_tokens: int
    tokens_per_batch: int
    synced: bool = False
    description: str = "generate"
    forbidden: Sequence[int] = ()

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], rows: Sequence[int] | None = None
    ) -> dict[int, list[list[int]]]:
        rows = range(len(prompts)) if rows is None else rows
        longest_answer = self.generation_config().max_new_tokens
        # The longest first: what does not fit into memory fails early.
        batches = batches_by_length([len(ids) + longest_answer for ids in prompts], self.tokens_per_batch)
        work = [(number, seed) for number in range(len(batches)) for seed in seeds]
        answers: dict[tuple[int, int], list[int]] = {}
        hidden = None if is_main_process() else True  # None: hidden without a terminal
        rounds = range(0, len(work), world_size())
        for first in tqdm(rounds, desc=self.description, disable=hidden, leave=False):
            place = first + rank()
            if place >= len(work) and not self.synced:
                break
            number, seed = work[min(place, len(work) - 1)]
            batch = batches[number]
            decoding_method = self._decoding_method([rows[i] for i in batch], seed)
            generated = self._generate_batch([prompts[i] for i in batch], seed * 1_000_003 + number, decoding_method)
            answers.update(((seed, i), ids) for i, ids in zip(batch, generated))
        answers = of_all_ranks(answers)
        return {seed: [answers[seed, i] for i in range(len(prompts))] for seed in seeds}

    def generation_config(self) -> GenerationConfig:
        config = generation_config(self.tokenizer, self.args, self.max_new_tokens)
        config.suppress_tokens = list(self.forbidden) or None
        return config

    def _decoding_method(self, rows: Sequence[int], seed: int) -> Callable | None:
        """What `generate` calls instead of its own loop; None: its own. rows: numbers of a batch's prompts."""
        return None

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], seed: int, decoding_method: Callable | None
    ) -> list[list[int]]:
        model, config = self.model, self.generation_config()
        input_ids, attention_mask = pad_left(prompts, config.pad_token_id, model.device)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            with in_place_of_own_settings(model, config):
                generated = model.generate(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    generation_config=config,
                    synced_gpus=self.synced,
                    custom_generate=decoding_method,
                )
        return [up_to_eos(ids, config.eos_token_id) for ids in generated[:, input_ids.shape[1] :].tolist()]


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask [prompts, longest prompt]."""
    width = max(map(len, prompts))
    input_ids = [[pad_id] * (width - len(ids)) + list(ids) for ids in prompts]
    attention_mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(input_ids, device=device), torch.tensor(attention_mask, device=device)


@contextmanager
def in_place_of_own_settings(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Replaces the model's own generation config, from which `generate` fills whatever `config` leaves open."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    kept, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = kept
