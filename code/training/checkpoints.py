"""Checkpoints that `from_pretrained` loads: full weights, or the adapter of a LoRA run, with tokenizer and model card.

A folder appears under its final name only when it is complete.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import deepspeed
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_utils.prompts import PromptTemplate, record_template
from models.card import CARD, model_card
from models.folders import run_arguments
from runtime.atomic import new_folder, remove
from runtime.ranks import all_ranks, is_main_process


def save_checkpoint(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    template: PromptTemplate | None = None,
) -> None:
    """Writes the student. Every rank calls it (ZeRO-3 gathers the weights); rank 0 writes. Raises WriteError on all.

    template: recorded in the folder, so that an evaluation asks as training did.
    """
    state = gathered_state_dict(model)
    with all_ranks():
        if is_main_process():
            _write(model, state, tokenizer, folder, template)


def _write(
    model: PreTrainedModel | PeftModel,
    state: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    template: PromptTemplate | None,
) -> None:
    adapter = isinstance(model, PeftModel)
    if adapter:
        name_base(model)
    elif template is not None and template.takes_chats:
        stop_at(model, tokenizer.eos_token_id)
    with new_folder(folder) as part:
        model.save_pretrained(part, state_dict=state, **({"save_embedding_layers": False} if adapter else {}))
        tokenizer.save_pretrained(part)
        if template is not None:
            record_template(template, part)
        run = run_arguments(str(part))
        card = model_card(folder.name, run, base=model.name_or_path, adapter=adapter, template=template)
        (part / CARD).write_text(card, encoding="utf-8")  # in place of the one that PEFT writes


def stop_at(model: PreTrainedModel, eos_id: int) -> None:
    """Other programs generate up to one of the ids in generation_config.json: adds the end of a turn to them."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
    if eos_id not in ends:
        model.generation_config.eos_token_id = [eos_id, *ends]


def name_base(model: PeftModel) -> None:
    """Records in the adapter the model it was trained on, by a path that is valid from any folder."""
    base = model.get_base_model().name_or_path
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(Path(base).absolute()) if Path(base).is_dir() else base


def gathered_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a model, or the trainable ones of a PEFT model, on the CPU of rank 0; empty on other ranks.

    Tied tensors stay tied. Under ZeRO-3 one parameter at a time is gathered on the device.
    """
    adapter_only = isinstance(model, PeftModel)
    state: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if adapter_only and not tensor.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            if is_main_process():
                if id(tensor) not in copies:
                    copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
                state[name] = copies[id(tensor)]
    return state


class BestCheckpoints:
    """Keeps the N best folders of a run; a higher score is better, NaN is the worst. `count` -1 keeps all."""

    def __init__(self, count: int, save_dir: Path = Path()):
        self.count = count
        self.save_dir = save_dir
        self.kept: list[tuple[float, Path]] = []

    def wants(self, score: float) -> bool:
        return self.count == -1 or len(self.kept) < self.count or _comparable(score) > min(self.kept)[0]

    def add(self, score: float, folder: Path) -> None:
        """Adds a complete, flushed folder. Rank 0 deletes those that are no longer among the best."""
        self.kept.append((_comparable(score), folder))
        while self.count != -1 and len(self.kept) > self.count:
            worst = min(self.kept)
            self.kept.remove(worst)
            if is_main_process():
                remove(worst[1])
        if is_main_process():
            # A run that was killed here and evaluates again, on a device whose sums vary, may have left a folder of the
            # same step with another score in its name.
            for other in folder.parent.glob(f"{folder.name.partition('_loss')[0]}_*"):
                if other not in {kept for _, kept in self.kept}:
                    remove(other)

    def state_dict(self) -> list[tuple[float, str]]:
        return [(score, folder.name) for score, folder in self.kept]

    def load_state_dict(self, state: Iterable[tuple[float, str]]) -> None:
        self.kept = [(_comparable(score), self.save_dir / name) for score, name in state]


def _comparable(score: float) -> float:
    """NaN compares false with everything: it would never be replaced."""
    return -math.inf if math.isnan(score) else score
