"""Merges an adapter, and compares logits before and after: of the merge, and of the folder that was written.

In: a checkpoint. Out: the model in fp32, then in its final dtype. Logits are compared in fp32, on random token ids;
ValueError where they differ by more than TOLERANCE times the largest logit.
"""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from models.loading import load_checkpoint_model, load_trained

TOLERANCE = 1e-5
PROBES, LENGTH = 2, 64  # rows of random ids, and their length
TEXTS = (
    "Below is an instruction.\n\n### Response:\n",
    "It's 12,345.67 o'clock -- don't\tpanic!",
    "größer 漢字 🙂 été  two  spaces ",
)


def merged_model(base: str, peft: str | None, revision: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """The checkpoint in fp32, its adapter merged. Raises ValueError if the logits are not those of the trained model.

    base, peft, revision: from `check_checkpoint`.
    """
    trained = load_trained(base, peft, revision, torch.float32, trust_remote_code)
    expected = probe_logits(trained)
    del trained  # one model at a time
    model = load_checkpoint_model(
        base, peft, dtype=torch.float32, trust_remote_code=trust_remote_code, revision=revision
    )
    off = _check(probe_logits(model), expected, "merging the adapter changes the logits")
    if peft is not None:
        print(f"merged in fp32: logits off by {off:.1e}")
    return model


def round_weights(model: PreTrainedModel, dtype: str, config: PretrainedConfig) -> None:
    """Casts the parameters to `dtype`; auto: that of config. Buffers stay in fp32. Prints what rounding changes."""
    final = getattr(torch, dtype) if dtype != "auto" else config.get_text_config().dtype or torch.float32
    if final != torch.float32:
        before = probe_logits(model)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(final).float()
        p, q = before.log_softmax(-1), probe_logits(model).log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).mean().item()
        print(f"rounded to {str(final).removeprefix('torch.')}: mean KL to the model in fp32 {kl:.1e} nats")
        for parameter in model.parameters():
            parameter.data = parameter.data.to(final)
    model.config.dtype = final


def check_written(model: PreTrainedModel, folder: Path, trust_remote_code: bool) -> None:
    """Raises ValueError if the folder's model, loaded without PEFT, has other logits than `model`."""
    final = model.dtype
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    again = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code
    )
    off = _check(probe_logits(again.eval()), probe_logits(model), "the folder loads as another model")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(final)
    print(f"written and loaded again: logits off by {off:.1e}")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises ValueError if the folder's tokenizer makes other ids."""
    again = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        text += "".join(tokenizer.all_special_tokens)
        if again(text).input_ids != tokenizer(text).input_ids:
            raise ValueError(f"--save-dir: the tokenizer would load as another: {json.dumps(text)} gets other ids")


@torch.no_grad()
def probe_logits(model: PreTrainedModel) -> Tensor:
    """logits_PTV of random ids, equal for every model of a vocabulary."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids_PT = torch.randint(vocabulary, (PROBES, LENGTH), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids_PT, use_cache=False).logits.float()


def _check(found: Tensor, expected: Tensor, what: str) -> float:
    """The largest difference. Raises ValueError."""
    off, most = (found - expected).abs().max().item(), expected.abs().max().item()
    if not off <= TOLERANCE * max(1.0, most):
        raise ValueError(f"--model-path: {what}: by {off:.1e} of at most {most:.1f}; nothing was written")
    return off
