"""What generates answers: the interface, and the settings that every implementation obeys.

Token ids come in and token ids go out, so that answers can be scored, written as text or trained on.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import distributed as dist
from transformers import GenerationConfig, PreTrainedTokenizerBase

from arguments import GenerationArguments
from runtime.ranks import world_size


class Generator(Protocol):
    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], rows: Sequence[int] | None = None
    ) -> dict[int, list[list[int]]]:
        """Per seed, the answer to each prompt, up to and including EOS; without EOS where it reached the limit.

        rows: numbers of the prompts, by which generators that draw per row know them; default: their places.
        Collective: every rank calls it with the same prompts and seeds, and gets all answers.
        """
        ...


def decoding(args: GenerationArguments, max_new_tokens: int) -> dict[str, object]:
    """The settings that decide an answer; those without effect are left out.

    max_new_tokens: the limit where --max-new-tokens sets none.
    """
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
    tokenizer: PreTrainedTokenizerBase, args: GenerationArguments, max_new_tokens: int
) -> GenerationConfig:
    """The flags as Transformers takes them; nothing is left to the model's own defaults."""
    return GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **decoding(args, max_new_tokens)
    )


def up_to_eos(ids: list[int], eos_id: int) -> list[int]:
    """Without the padding that follows EOS; PAD itself says nothing, as it may be the same id."""
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids


def of_all_ranks(answers: dict) -> dict:
    """The union over the ranks; a key that several ranks have must have one value. Collective."""
    if not dist.is_initialized():
        return answers
    parts: list[dict] = [{} for _ in range(world_size())]
    dist.all_gather_object(parts, answers)
    return {key: ids for part in parts for key, ids in part.items()}
