"""Writes a GGUF file for llama.cpp: Llama with a byte-level BPE tokenizer. What cannot be said exactly is refused.

In: an exported folder (safetensors, tokenizer.json). Out: one file in the folder's dtype, norms in fp32. The package
gguf is needed. llama.cpp knows a tokenizer's regular expressions by a name, so only tokenizers are taken whose
pre-tokenizer is one of PRE_TOKENIZERS; for all else there is llama.cpp's own convert_hf_to_gguf.py.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
# What each name of llama.cpp does, as tokenizer.json spells it, without the fields that do not change a token.
PRE_TOKENIZERS: dict[str, list[dict]] = {
    "gpt-2": [BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False},
        BYTE_LEVEL | {"use_regex": False},
    ],
}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType


def check_gguf(flag: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name of the tokenizer's pre-tokenizer. Raises ValueError if the model cannot be written."""
    remedy = "; drop the flag, and convert with llama.cpp: python convert_hf_to_gguf.py SAVE_DIR"
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ValueError(f"{flag}: the package gguf is not installed; pip install gguf, or drop the flag") from None
    if config.model_type != "llama":
        raise ValueError(f"{flag}: an architecture of type {config.model_type}; only llama can be written here{remedy}")
    if config.attention_bias or config.mlp_bias or config.rope_parameters["rope_type"] != "default":
        raise ValueError(f"{flag}: biases or scaled rotary embeddings cannot be written here{remedy}")
    parts = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {"type": None}}
    model, steps = parts["model"], parts.get("pre_tokenizer") or {}
    steps = [_deciding(step) for step in steps.get("pretokenizers", [steps])]
    name = next((name for name, known in PRE_TOKENIZERS.items() if known == steps), None)
    plain = model["type"] == "BPE" and not model.get("byte_fallback") and parts.get("normalizer") is None
    if not plain or name is None or bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        raise ValueError(f"{flag}: the tokenizer is not one of {', '.join(PRE_TOKENIZERS)}{remedy}")
    return name


def write_gguf(
    model: PreTrainedModel, folder: Path, path: Path, pre_tokenizer: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """model: as exported. folder: has its tokenizer. pre_tokenizer: from `check_gguf`."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    _add_settings(writer, config, model.dtype)
    _add_tokenizer(writer, folder, config.vocab_size, pre_tokenizer)
    writer.add_add_bos_token(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue  # llama.cpp then takes the embedding
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise ValueError(f"--gguf: {name} has no place in the file; convert with llama.cpp's convert_hf_to_gguf.py")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        kind = _kind(tensor.dtype if tensor.dim() > 1 else torch.float32)
        values = (rotated_pairs(tensor, heads) if heads else tensor).float().contiguous().numpy()
        writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rotated_pairs(weight_OI: Tensor, heads: int) -> Tensor:
    """Query or key rows in llama.cpp's order: what is rotated together is adjacent, not half a head apart."""
    outputs, inputs = weight_OI.shape
    return weight_OI.view(heads, 2, outputs // heads // 2, inputs).transpose(1, 2).reshape(outputs, inputs)


def _deciding(step: dict) -> dict:
    return {name: value for name, value in step.items() if name != "trim_offsets"}


def _kind(dtype: torch.dtype) -> Any:
    import gguf

    kinds = gguf.GGMLQuantizationType
    return {torch.float32: kinds.F32, torch.float16: kinds.F16, torch.bfloat16: kinds.BF16}[dtype]


def _add_settings(writer: Any, config: PretrainedConfig, dtype: torch.dtype) -> None:
    import gguf

    files = gguf.LlamaFileType
    kinds = {torch.float32: files.ALL_F32, torch.float16: files.MOSTLY_F16, torch.bfloat16: files.MOSTLY_BF16}
    writer.add_file_type(kinds[dtype])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, folder: Path, rows: int, pre_tokenizer: str) -> None:
    """Tokens, merges and special ids. Rows of the embedding without a token get a name that no text has."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(rows)])
    writer.add_token_types([kinds.get(index, UNUSED) for index in range(rows)])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ids = {token: index for index, token in tokens.items()}
    for name, add in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("pad_token", writer.add_pad_token_id),
        ("unk_token", writer.add_unk_token_id),
    ):
        token = settings.get(name)
        token = token["content"] if isinstance(token, dict) else token
        if token in ids:
            add(ids[token])
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))
