"""Tiny random models of the families in scripts/, with tokenizers of their kinds: `make_family(name, folder)`.

What tells the families apart is kept, at other sizes: tied and untied heads, grouped-query attention, heads padded
beyond the tokenizer and to different sizes, sliding windows (shorter than the rows here), softcapped logits, and which
of BOS, EOS and PAD a tokenizer has, shares and adds.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Olmo2Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tiny import tokenizer_texts


class Kind(NamedTuple):
    """A tokenizer: byte-level BPE, or BPE over marked spaces with bytes as a fallback, as SentencePiece makes it."""

    special: str
    eos: str
    bos: str | None
    pad: str | None
    adds_bos: bool = False
    byte_level: bool = True


KINDS = {
    "gpt2": Kind("<|endoftext|>", "<|endoftext|>", "<|endoftext|>", None),
    "llama2": Kind("<unk> <s> </s>", "</s>", "<s>", None, adds_bos=True, byte_level=False),
    "llama3": Kind("<|begin_of_text|> <|end_of_text|>", "<|end_of_text|>", "<|begin_of_text|>", None, adds_bos=True),
    "qwen": Kind("<|endoftext|> <|im_start|> <|im_end|>", "<|endoftext|>", None, "<|endoftext|>"),
    "olmo2": Kind("<|endoftext|> <|pad|>", "<|endoftext|>", "<|endoftext|>", "<|pad|>"),
    "gemma": Kind("<pad> <eos> <bos> <unk>", "<eos>", "<bos>", "<pad>", adds_bos=True, byte_level=False),
    "smollm2": Kind("<|endoftext|> <|im_start|> <|im_end|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"),
}


class Family(NamedTuple):
    """student, teacher: what differs from SIZES (GPT2_SIZES). padding: rows of the heads beyond the tokenizer."""

    kind: str
    config: type[PretrainedConfig]
    student: Mapping = MappingProxyType({})
    teacher: Mapping = MappingProxyType({})
    padding: tuple[int, int] = (0, 0)
    lora_targets: str | None = None


TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 16}
CAPS = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}
LLAMA3_ROPE = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}
FAMILIES = {
    "gpt2": Family("gpt2", GPT2Config),
    "tinyllama": Family(
        "llama2", LlamaConfig, UNTIED | {"num_key_value_heads": 1}, UNTIED | {"num_key_value_heads": 4}
    ),
    "qwen2.5": Family("qwen", Qwen2Config, TIED, UNTIED, padding=(24, 152)),
    "qwen2": Family("qwen", Qwen2Config, TIED | {"num_key_value_heads": 1}, UNTIED, padding=(24, 152)),
    "qwen3": Family("qwen", Qwen3Config, TIED | {"head_dim": 16}, UNTIED | {"head_dim": 16}, padding=(24, 24)),
    "openllama2": Family(
        "llama2", LlamaConfig, UNTIED | {"num_key_value_heads": 4}, UNTIED | {"num_key_value_heads": 4}
    ),
    "olmo2": Family("olmo2", Olmo2Config, UNTIED, UNTIED, padding=(72, 72), lora_targets="q_proj,v_proj"),
    "gemma3": Family("gemma", Gemma3TextConfig, WINDOWS | {"num_key_value_heads": 1}, WINDOWS),
    "gemma2": Family("gemma", Gemma2Config, WINDOWS | CAPS, WINDOWS | CAPS),  # no family of scripts/: for the softcap
    "llama3.2": Family("llama3", LlamaConfig, TIED | LLAMA3_ROPE, TIED | LLAMA3_ROPE),
    "smollm2": Family("smollm2", LlamaConfig, TIED | {"num_key_value_heads": 1}, TIED),
}
SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
}
GPT2_SIZES = {"n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.15} | dict.fromkeys(
    ("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0
)
HIDDEN = {"student": 32, "teacher": 48}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    kind = KINDS[name]
    tokenizer = Tokenizer(models.BPE(byte_fallback=not kind.byte_level, unk_token=None if kind.byte_level else "<unk>"))
    if kind.byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        bytes_ = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(parts)
        bytes_ = []
    special = kind.special.split()
    fallback = [] if kind.byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *fallback], initial_alphabet=bytes_, show_progress=False
    )
    tokenizer.train_from_iterator(tokenizer_texts(), trainer)
    if kind.adds_bos:
        bos = kind.bos, tokenizer.token_to_id(kind.bos)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{kind.bos} $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=kind.eos, bos_token=kind.bos, pad_token=kind.pad
    )


def make_family(name: str, folder: Path) -> None:
    """`folder`/teacher and `folder`/student."""
    family, tokenizer = FAMILIES[name], tokenizer_of(FAMILIES[name].kind)
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")}
    for seed, (role, padding) in enumerate(zip(("student", "teacher"), family.padding)):
        hidden, vocabulary = HIDDEN[role], len(tokenizer) + padding
        if family.config is GPT2Config:
            sizes = GPT2_SIZES | {"n_embd": hidden}
        else:
            sizes = SIZES | {"hidden_size": hidden, "intermediate_size": 2 * hidden}
        config = family.config(**sizes | dict(getattr(family, role)) | ids | {"vocab_size": vocabulary})
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
