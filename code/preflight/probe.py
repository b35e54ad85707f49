"""Packing and head of a model's class, tried on a tiny random model: its configuration with few layers and ids.

Training probes the real models again when they are loaded; this says beforehand what it will find.
"""

import copy

import torch
from deepspeed.accelerator import get_accelerator
from transformers import AutoModelForCausalLM, PretrainedConfig

from arguments import TrainConfig
from models.heads import LanguageModelHead
from models.probes import batch_layout, split
from preflight.report import Report
from preflight.skeleton import ModelFacts

LAYERS, VOCABULARY, INNER = 2, 256, 256
SPREAD = 1.0  # standard deviation of a layer's output for inputs of size 1: attention must matter for a mask to show


def probe(flag: str, model: ModelFacts, config: TrainConfig, report: Report) -> None:
    """Facts; a warning where training will fall back to something slower."""
    attention = config.model.attn_implementation
    if attention and attention.startswith("flash"):
        report.fact("probes", f"{flag}: not tried, {attention} runs on GPUs only; training tries them at its start")
        return
    try:
        torch.manual_seed(0)
        tiny = AutoModelForCausalLM.from_config(
            shrunk(model.config),
            attn_implementation=attention,
            dtype=torch.float32,
            trust_remote_code=config.model.trust_remote_code,
        ).eval()
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        report.warn(f"{flag}: no tiny model of its class could be made ({reason}); training probes the real one")
        return
    packs = batch_layout([tiny.to(get_accelerator().device_name())]) != "padded"
    head = split(tiny).head.kind
    report.fact(
        "probes",
        f"{flag}: {'can be packed' if packs else 'cannot be packed'}, {head} (tiny random {type(tiny).__name__}, "
        f"{LAYERS} layers)",
    )
    if not packs and config.data.packing:
        report.warn(
            f"{flag}: its class does not see where a packed example ends, so batches will be padded: right, but slower"
        )
    if head != LanguageModelHead.kind:
        report.warn(
            f"{flag}: its head is more than a linear layer, so whole logits are made: right, but it takes memory"
        )


def shrunk(config: PretrainedConfig) -> PretrainedConfig:
    """The same class and options with few layers, few ids and a narrow MLP."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = min(LAYERS, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    text.vocab_size = min(VOCABULARY, text.vocab_size)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, 0)
    for name in ("intermediate_size", "n_inner", "ffn_dim"):
        if getattr(text, name, None):
            setattr(text, name, min(INNER, getattr(text, name)))
    for name in ("initializer_range", "init_std"):
        if hasattr(text, name):
            setattr(text, name, SPREAD / text.hidden_size**0.5)
    return config
