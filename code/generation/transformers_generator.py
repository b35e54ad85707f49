"""Answers to prompts: batches in length order, padded on the left, shared among the ranks.

In: token ids of prompts. Out: one answer a prompt and seed, on every rank, in the order of the prompts. A batch draws
from a generator seeded by (seed, batch), so that the answers of a seed depend neither on the number of ranks nor on the
other seeds. It ends when its last answer has ended.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor
from torch import distributed as dist
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from arguments import GenerationArguments
from data_utils.batches import batches_by_length


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    args: GenerationArguments,
    max_new_tokens: int,
    tokens_per_batch: int,
    seeds: Sequence[int],
    synced: bool = False,
    description: str = "generate",
) -> dict[int, list[str]]:
    """By seed, one answer a prompt.

    tokens_per_batch: of prompts and longest answers with padding. synced: ranks generate in step with each other, as
    ZeRO-3 needs; a rank that has no batch left then repeats one.
    """
    distributed = dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    config = generation_config(args, tokenizer, max_new_tokens)
    # The longest first: what is too long for the memory fails early.
    batches = batches_by_length([len(ids) + config.max_new_tokens for ids in prompts], tokens_per_batch)
    work = [(number, seed) for number in range(len(batches)) for seed in seeds]

    mine: dict[tuple[int, int], str] = {}
    hidden = True if rank else None  # None: without a terminal
    for turn in tqdm(range(-(-len(work) // world_size)), desc=description, disable=hidden, leave=False):
        place = turn * world_size + rank
        if place >= len(work) and not synced:
            break
        number, seed = work[min(place, len(work) - 1)]
        indices = batches[number]
        input_ids, attention_mask = pad_left([prompts[i] for i in indices], tokenizer.pad_token_id, model.device)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed * 1_000_003 + number)
            with own_settings(model, config):
                generated = model.generate(
                    input_ids=input_ids, attention_mask=attention_mask, generation_config=config, synced_gpus=synced
                )
        answers = tokenizer.batch_decode(generated[:, input_ids.shape[1] :], skip_special_tokens=True)
        mine.update(((seed, i), answer.strip()) for i, answer in zip(indices, answers))

    if distributed:
        of_ranks: list[dict[tuple[int, int], str]] = [{} for _ in range(world_size)]
        dist.all_gather_object(of_ranks, mine)
        # A repeated batch gave the same answers again.
        mine = {key: answer for answers in of_ranks for key, answer in answers.items()}
    return {seed: [mine[seed, i] for i in range(len(prompts))] for seed in seeds}


@contextmanager
def own_settings(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """`config` in place of the model's own generation config, from which `generate` would fill what `config` leaves."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    kept, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = kept


def decoding(args: GenerationArguments, max_new_tokens: int) -> dict[str, object]:
    """The settings that decide an answer; those that have no effect are left out."""
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k} if args.do_sample else {}
    return {
        "do_sample": args.do_sample,
        "num_beams": args.num_beams,
        "repetition_penalty": args.repetition_penalty or 1.0,
        "no_repeat_ngram_size": args.no_repeat_ngram_size,
        "max_new_tokens": args.max_new_tokens or max_new_tokens,
        **sampling,
    }


def generation_config(
    args: GenerationArguments, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> GenerationConfig:
    """Transformers' form of the flags; nothing is left to the model's own defaults."""
    return GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **decoding(args, max_new_tokens),
    )


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask [prompts, longest]."""
    width = max(map(len, prompts))
    input_ids = [[pad_id] * (width - len(ids)) + list(ids) for ids in prompts]
    attention_mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    return torch.tensor(input_ids, device=device), torch.tensor(attention_mask, device=device)
