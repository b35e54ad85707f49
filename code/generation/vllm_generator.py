"""Generation with vLLM, where it is installed: the fastest on a GPU, in one process.

vLLM reads a folder, so the model in memory, adapter and all, is written to a temporary one, once per model; a model in
training gives it its weights again before each use (`refresh`). Each answer has a seed of its own. Tested against a
stub of vLLM's interface (`LLM`, `SamplingParams`, version 0.11) only.
"""

import copy
import gc
import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arguments import GenerationArguments
from generation.base import decoding, up_to_eos
from runtime.ranks import Ranks

SHARE_OF_FREE_MEMORY, SHARE_BESIDE_TRAINING = 0.9, 0.3

_engines: WeakKeyDictionary = WeakKeyDictionary()  # by model: the engine, its longest prompt with answer, its share


def check_vllm(flag: str = "--generator") -> None:
    """Raises ValueError where vLLM cannot run. flag: what asks for it."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(f"{flag} vllm: vllm is not installed; pip install vllm, or use {flag} dropping")
    if (ranks := Ranks.from_environment().world_size) > 1:
        raise ValueError(
            f"{flag} vllm: it runs in one process, and there are {ranks}; start with python, not torchrun or deepspeed"
        )


@dataclass(frozen=True)
class VllmGenerator:
    """A `Generator`. max_new_tokens: the limit where --max-new-tokens sets none."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    args: GenerationArguments
    max_new_tokens: int

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], rows: Sequence[int] | None = None
    ) -> dict[int, list[list[int]]]:
        check_vllm()
        if not prompts:
            return {seed: [] for seed in seeds}
        from vllm import SamplingParams

        eos, settings = self.tokenizer.eos_token_id, self._sampling()
        engine = engine_of(self.model, max(map(len, prompts)) + settings["max_tokens"])
        requests = [{"prompt_token_ids": list(map(int, ids))} for ids in prompts]
        answers = {}
        for seed in seeds:
            params = [SamplingParams(seed=row_seed(seed, row), **settings) for row in rows or range(len(prompts))]
            outputs = [request.outputs[0] for request in engine.generate(requests, params)]
            answers[seed] = [ended(list(output.token_ids), output.finish_reason, eos) for output in outputs]
        return answers

    def _sampling(self) -> dict[str, object]:
        """The flags as vLLM takes them: temperature 0 is greedy, top_k 0 is everything."""
        flags = decoding(self.args, self.max_new_tokens)
        return {
            "temperature": flags.get("temperature", 0.0),
            "top_p": flags.get("top_p", 1.0),
            "top_k": flags.get("top_k", 0),
            "repetition_penalty": flags["repetition_penalty"],
            "max_tokens": flags["max_new_tokens"],
            "stop_token_ids": [self.tokenizer.eos_token_id],
            "detokenize": False,
        }


def engine_of(model: PreTrainedModel, longest: int, share: float = SHARE_OF_FREE_MEMORY) -> object:
    """The engine with the weights of `model`, made at its first use, and again when an answer needs more room.

    longest: tokens of prompt and answer. share: of the free memory, that it takes.
    """
    from vllm import LLM

    engine, room, share = _engines.get(model, (None, 0, share))
    if longest <= room:
        return engine
    del engine  # before the next one is made: there is no room for two
    _engines.pop(model, None)
    gc.collect()
    memory = {}
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(model.device)
        memory["gpu_memory_utilization"] = share * free / total  # vLLM counts what this process holds, too
    with tempfile.TemporaryDirectory() as folder:
        _merged(model).save_pretrained(folder)
        engine = LLM(
            model=folder,
            dtype=str(model.dtype).removeprefix("torch."),
            max_model_len=longest,
            skip_tokenizer_init=True,
            generation_config="vllm",  # nothing from the model's own defaults
            **memory,
        )
    _engines[model] = (engine, longest, share)
    return engine


def refresh(model: PreTrainedModel | PeftModel, longest: int) -> None:
    """An engine with the weights of a model in training as they are now.

    longest: of all prompts and answers that training samples, so that one engine is enough.
    """
    if model not in _engines:
        engine_of(model, longest, SHARE_BESIDE_TRAINING)
        return
    engine = engine_of(model, longest)
    weights = list(_merged(model).state_dict().items())
    engine.apply_model(lambda loaded: loaded.load_weights(weights))
    engine.reset_prefix_cache()


def _merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, or a copy with its adapter merged: merging in place would round the weights in training."""
    return copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model


def row_seed(seed: int, row: int) -> int:
    return int(np.random.SeedSequence((seed, row)).generate_state(1)[0])


def ended(ids: list[int], finish_reason: str, eos: int) -> list[int]:
    """With the EOS, whether vLLM returns it or not."""
    return up_to_eos([*ids, eos] if finish_reason == "stop" else ids, eos)
