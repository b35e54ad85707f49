"""A whole copy of a student that ZeRO-3 partitions, for sampling: no layer is gathered for every token.

In: the partitioned model, in training. Out: the same model with whole parameters in the training dtype, an adapter
beside its base, not merged (in half precision, merging and unmerging in place would change the weights).
"""

import copy

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from models.sharding import whole


class WholeCopy:
    """Made at the first refresh."""

    def __init__(self, model: PreTrainedModel | PeftModel, device: torch.device):
        self._model, self._device = model, device
        self._copy: PreTrainedModel | PeftModel | None = None

    @torch.no_grad()
    def refreshed(self) -> PreTrainedModel | PeftModel:
        """The copy, with the parameters as they are now. Collective: gathers one parameter after the other."""
        if self._copy is None:
            self._copy = _empty_copy(self._model, self._device)
            self._fill(trained_only=False)
        else:
            self._fill(trained_only=True)
        return self._copy

    def _fill(self, trained_only: bool) -> None:
        of_copy = dict(self._copy.named_parameters())
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad or not trained_only:
                with whole([parameter]):
                    of_copy[name].copy_(parameter)


def _empty_copy(model: PreTrainedModel | PeftModel, device: torch.device) -> PreTrainedModel | PeftModel:
    """The same modules and buffers, in evaluation mode; the parameters are not set yet."""
    adapted = isinstance(model, PeftModel)
    base = model.get_base_model() if adapted else model
    config = copy.deepcopy(base.config)
    # An adapter is initialised at random: a run that is resumed makes the copy once more than one that is not.
    with device, no_init_weights(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        made = type(base)._from_config(config, dtype=model.dtype)
        if adapted:
            made = get_peft_model(made, copy.deepcopy(model.active_peft_config), autocast_adapter_dtype=False)
    (made.get_base_model() if adapted else made).tie_weights()
    for name, buffer in model.named_buffers():  # in their own dtypes, which the engine may have changed
        module, _, own_name = name.rpartition(".")
        made.get_submodule(module)._buffers[own_name] = buffer.detach().clone()
    return made.to(device).requires_grad_(False).eval()
