"""Generation whose batches shrink: an answer that ends leaves its batch, with its part of the cache.

`generate` of Transformers prepares inputs, cache and logits processors as ever, and calls `RowDropping` instead of its
own loop. A sampled token is the arg-max of softmax(scores) / e with exponential noise e (the Gumbel-max trick), drawn
from a generator per answer seeded by (seed, row). So a sample depends on nothing but the scores of its own row: neither
on the batch, nor on who left it, nor on the number of ranks. Up to rounding: a model in bf16 computes slightly
different scores in batches of another size, which flips near-ties in greedy answers as well as in samples.

Shapes: B rows left in the batch, T tokens of prompt and answer so far, V vocabulary.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from generation.transformers_generator import TransformersGenerator
from runtime.log import logger

STEPS_PER_LOOK = 8  # on a GPU, where looking who has finished waits for the device
ROWS_CAN_LEAVE = {
    DynamicLayer,
    DynamicSlidingWindowLayer,
    DynamicIndexedLayer,
}  # of subclasses, state would stay behind
PER_ROW = ("attention_mask", "position_ids")  # inputs of the model with a row per answer

_told: set[str] = set()


@dataclass(frozen=True)
class DroppingGenerator(TransformersGenerator):
    """A `Generator` for greedy search and sampling, not for beams nor for ranks in step."""

    def _decoding_method(self, rows: Sequence[int], seed: int) -> "RowDropping":
        if not self.args.do_sample:
            return RowDropping(None)
        return RowDropping([row_generator(seed, row, self.model.device) for row in rows])


@dataclass
class RowDropping:
    """A decoding method for `generate(custom_generate=...)`.

    draws: a generator per row, for sampling; None: greedy search.
    """

    draws: list[torch.Generator] | None

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **inputs,
    ) -> Tensor:
        """Prompts and answers [B, longest possible], in the order of the prompts; what follows an EOS is arbitrary."""
        width, ids_BT = generation_config.max_length, input_ids
        sequences = ids_BT.new_full((len(ids_BT), width), generation_config.pad_token_id)
        places_B = torch.arange(len(ids_BT), device=ids_BT.device)  # in `sequences`, of the rows left
        finished_B = torch.zeros_like(places_B, dtype=torch.bool)
        steps_per_look = 1 if ids_BT.device.type == "cpu" else STEPS_PER_LOOK
        logits_BV, inputs = forward(model, ids_BT, inputs, is_first_iteration=True)
        can_leave = rows_can_leave(model, inputs)
        for step in itertools.count(1):
            next_B = self._next_tokens(logits_processor(ids_BT, logits_BV))
            ids_BT = torch.cat([ids_BT, next_B[:, None]], dim=1)
            finished_B |= stopping_criteria(ids_BT, None)
            if step % steps_per_look == 0 or ids_BT.shape[1] == width:
                kept = finished_B.logical_not().nonzero().squeeze(1)
                if len(kept) == 0 or (can_leave and len(kept) < len(ids_BT)):
                    sequences[places_B, : ids_BT.shape[1]] = ids_BT
                    if len(kept) == 0:
                        return sequences
                    ids_BT, places_B, finished_B = ids_BT[kept], places_B[kept], finished_B[kept]
                    self._keep(kept, inputs, logits_processor)
            logits_BV, inputs = forward(model, ids_BT, inputs, next_sequence_length=1 if inputs["use_cache"] else None)

    def _next_tokens(self, scores_BV: Tensor) -> Tensor:
        if self.draws is None:
            return scores_BV.argmax(dim=-1)
        noise_BV = torch.empty_like(scores_BV)
        for noise_V, draw in zip(noise_BV, self.draws):
            noise_V.exponential_(generator=draw)
        return scores_BV.softmax(dim=-1).div_(noise_BV).argmax(dim=-1)

    def _keep(self, kept: Tensor, inputs: dict, processors: LogitsProcessorList) -> None:
        """Leaves only the rows `kept` in whatever has a row per answer."""
        inputs["past_key_values"].batch_select_indices(kept)
        inputs.update({name: inputs[name][kept] for name in PER_ROW if inputs.get(name) is not None})
        for processor in processors:
            if isinstance(processor, RepetitionPenaltyLogitsProcessor):  # ignores the padding on the left of each row
                padding = processor.prompt_ignore_length
                processor.prompt_ignore_length = padding[kept.to(padding.device)] if padding is not None else None
        if self.draws is not None:
            self.draws = [self.draws[i] for i in kept.tolist()]


def row_generator(seed: int, row: int, device: torch.device) -> torch.Generator:
    (state,) = np.random.SeedSequence((seed, row)).generate_state(1)
    return torch.Generator(device).manual_seed(int(state))


def forward(model: PreTrainedModel, ids_BT: Tensor, inputs: dict, **part: object) -> tuple[Tensor, dict]:
    """Logits of the next token in fp32, and the inputs of the next pass. part: what of `ids_BT` the model reads."""
    outputs = model(**model.prepare_inputs_for_generation(ids_BT, **part, **inputs), return_dict=True)
    logits_BV = outputs.logits[:, -1].to(torch.float32, copy=True)  # a copy, as those of a whole prompt are large
    return logits_BV, model._update_model_kwargs_for_generation(outputs, inputs)


def rows_can_leave(model: PreTrainedModel, inputs: dict) -> bool:
    """Whether all that the model keeps per row can be cut; if not, finished rows stay, and the log says so once."""
    cache = inputs.get("past_key_values")
    kinds = {type(layer) for layer in cache.layers} if isinstance(cache, DynamicCache) else {type(cache)}
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    others = {name for name, value in tensors.items() if name not in PER_ROW or value.dim() > 2}
    names = {kind.__name__ if cache is not None else "its states" for kind in kinds - ROWS_CAN_LEAVE}
    obstacles = sorted(names | others)
    if obstacles and model.config.model_type not in _told:
        _told.add(model.config.model_type)
        logger.info(
            "%s: finished answers stay in their batch, as rows cannot leave %s",
            *(model.config.model_type, ", ".join(obstacles)),
        )
    return not obstacles
