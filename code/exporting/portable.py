"""Rewrites config.json and tokenizer_config.json so that Transformers 4, and what is built on it (vLLM), read them.

In: a folder that Transformers 5 wrote. Out: the same folder; Transformers 5 reads it as before. Transformers 4 would
refuse the tokenizer's class, and take the default base of the rotary embedding without a word: other logits.
"""

import json
from pathlib import Path

# Fields of one process, or of Transformers 5 alone.
OF_LOADING = ("is_local", "local_files_only", "backend", "name_or_path")
# Other names of Transformers 4 for rope_theta and partial_rotary_factor.
OTHER_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct")}
LAYER_KINDS = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}  # as Gemma 3 has them


def make_portable(folder: Path) -> list[str]:
    """Returns what Transformers 4 will still not read, a sentence each."""
    notes = _rewrite(folder / "config.json", _portable_config)
    notes += _rewrite(folder / "tokenizer_config.json", lambda config: _portable_tokenizer(config, folder))
    return notes


def _rewrite(path: Path, change) -> list[str]:
    config = json.loads(path.read_text(encoding="utf-8"))
    notes = change(config)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return notes


def _portable_config(config: dict) -> list[str]:
    """config: of the model, or of a part of it."""
    for name in [name for name in config if name.endswith("name_or_path")]:  # of the folder that it was loaded from
        del config[name]
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    notes = [note for part in config.values() if isinstance(part, dict) for note in _portable_config(part)]
    rope = config.get("rope_parameters")
    if not rope:
        return notes
    if not any(isinstance(value, dict) for value in rope.values()):
        config |= _of_transformers_4(rope, *OTHER_NAMES.get(config.get("model_type"), ("rope_theta",)))
        return notes
    if set(rope) != set(LAYER_KINDS) or rope["sliding_attention"]["rope_type"] != "default":
        return [*notes, f"config.json: Transformers 4 has no place for the rotary embeddings of {', '.join(rope)}"]
    for kind, base in LAYER_KINDS.items():
        config |= {name: value for name, value in _of_transformers_4(rope[kind], base).items() if value is not None}
    return notes


def _of_transformers_4(rope: dict, base: str, share: str = "partial_rotary_factor") -> dict:
    """The fields for one rotary embedding. base, share: names of its base, and of the share that is rotated."""
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    fields = {base: rope["rope_theta"], "rope_scaling": scaling if rope["rope_type"] != "default" else None}
    if rope.get("partial_rotary_factor") is not None:
        fields[share] = rope["partial_rotary_factor"]
    return fields


def _portable_tokenizer(config: dict, folder: Path) -> list[str]:
    for name in OF_LOADING:
        config.pop(name, None)
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # in Transformers 4 a mapping of names, and a list is an error
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if not (folder / "tokenizer.json").is_file():
        return [f"tokenizer_config.json: {config.get('tokenizer_class')} has no tokenizer.json, so its class is kept"]
    # It takes tokenizer.json as it is; a model's own class would rebuild parts of it.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return []
