"""The generator that --generator names, how much its cache holds, and what its answers depend on."""

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from arguments import GenerationArguments
from generation.base import Generator
from generation.continuous import ContinuousGenerator
from generation.dropping import DroppingGenerator
from generation.transformers_generator import TransformersGenerator
from generation.vllm_generator import VllmGenerator, check_vllm

BATCHES = 2  # how prompts are batched: raise it when the same prompts would give other batches
ROW_DRAWS = 1  # how a row's seed makes its samples: raise it when the same seed would give others


def build_generator(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: GenerationArguments,
    *,
    max_new_tokens: int,
    tokens_per_batch: int,
    synced: bool = False,
    description: str = "generate",
    forbidden: Sequence[int] = (),
) -> Generator:
    """The generator that --generator names. Beams and ranks in step (`synced`, ZeRO-3) are left to `generate`.

    max_new_tokens: the limit where --max-new-tokens sets none. tokens_per_batch: where --generation-cache-mb sets none.
    forbidden: ids that no answer may have; vLLM cannot do without them.
    """
    tokens = batch_tokens(model, args, tokens_per_batch)
    if args.generator == "vllm":
        return VllmGenerator(model, tokenizer, args, max_new_tokens)
    if args.generator == "continuous":
        return ContinuousGenerator(model, tokenizer, args, max_new_tokens, tokens)
    whole_batches = args.generator == "transformers" or args.num_beams > 1 or synced
    kind = TransformersGenerator if whole_batches else DroppingGenerator
    return kind(model, tokenizer, args, max_new_tokens, tokens, synced, description, forbidden)


def check_generator(args: GenerationArguments, *, training: bool = False, zero_stage: int = 0) -> None:
    """Raises ValueError if the generator that --generator names cannot run here."""
    if args.generator == "vllm":
        if training:
            raise ValueError(
                "--generator vllm: it would load the student again at each dev evaluation; use dropping in training, "
                "and vllm with code/evaluate.py"
            )
        check_vllm()
    if args.generator == "continuous" and zero_stage == 3:
        raise ValueError("--generator continuous: ZeRO-3 generates with all ranks in step; use --generator dropping")


def batch_tokens(model: PreTrainedModel, args: GenerationArguments, otherwise: int) -> int:
    """Tokens of prompts, padding and longest possible answers that a batch has room for."""
    if args.generation_cache_mb is None:
        return otherwise
    if not hasattr(model.config.get_text_config(), "num_attention_heads"):
        raise ValueError(
            f"--generation-cache-mb {args.generation_cache_mb}: {model.config.model_type} keeps no keys and values; "
            "bound its batches with --eval-batch-size"
        )
    return args.generation_cache_mb * 2**20 // cache_bytes_per_token(model)


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """As `key_value_bytes`."""
    return key_value_bytes(model.config.get_text_config(), model.dtype)


def key_value_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Of a token: keys and values of all layers, and of one more: a layer is copied when it grows.

    An upper bound for models whose layers have windows or share their keys.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * (config.num_hidden_layers + 1) * heads * head_dim * dtype.itemsize


def draws(model: PreTrainedModel, args: GenerationArguments, tokens_per_batch: int) -> dict | None:
    """What answers depend on besides weights, prompts, seed and decoding flags; None: on nothing, as in greedy search.

    tokens_per_batch: as for `build_generator`.
    """
    device = {"device": model.device.type}
    if args.generator in ("continuous", "vllm"):  # other kernels
        return {"generator": args.generator, **device}
    if not args.do_sample:
        return None
    if args.generator == "transformers" or args.num_beams > 1:
        # All rows of a batch draw from one generator, so the batches decide what is drawn.
        return {"batches": BATCHES, "tokens_per_batch": batch_tokens(model, args, tokens_per_batch), **device}
    return {"rows": ROW_DRAWS, **device}
