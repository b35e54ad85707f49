"""Partitions models over the ranks under ZeRO-3, from the moment they are loaded.

While a model loads, each rank keeps only its share (`partitioned_loading`). Afterwards each module gathers its own
parameters for its forward, on all ranks in step: those of a frozen teacher as long as its engine lives (`shard`), those
of a student while it is probed (`gathering`), before the engine that trains it takes over.

Shapes: V vocabulary, D hidden size.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import deepspeed
import torch
from deepspeed.runtime.zero import parameter_offload
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from runtime.deepspeed_settings import DeepSpeedSettings

KEPT = ("offload_param", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size")


def sharding_settings(settings: DeepSpeedSettings, dtype: torch.dtype) -> dict | None:
    """DeepSpeed's settings for loading models and for frozen ones, in a run with `settings`; None below ZeRO-3."""
    if settings.stage != 3:
        return None
    zero = settings.zero
    return {
        "zero_optimization": {"stage": 3, **{name: zero[name] for name in KEPT if name in zero}},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": 2**31,
    }


@contextmanager
def partitioned_loading(settings: dict | None) -> Iterator[None]:
    """Transformers partitions the models that it loads inside the block, unless `settings` is None."""
    # Transformers finds this object by a weak reference, so it must live until the block ends.
    config = HfDeepSpeedConfig(settings) if settings else None
    yield
    del config


def whole(parameters: Iterable[nn.Parameter | None]) -> deepspeed.zero.GatheredParameters:
    """Inside the block, the parameters are whole on every rank, for reading; those not partitioned always are."""
    return deepspeed.zero.GatheredParameters([p for p in parameters if hasattr(p, "ds_id")])


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter, partitioned or not."""
    return getattr(parameter, "ds_shape", parameter.shape)


@contextmanager
def gathering(model: nn.Module) -> Iterator[None]:
    """Inside the block, each module of a partitioned model gathers its parameters for its forward."""
    open_calls: list[ExitStack] = []

    def gather(module: nn.Module, _) -> None:
        open_calls.append(ExitStack())
        open_calls[-1].enter_context(whole(module.parameters(recurse=False)))

    def release(*_) -> None:
        open_calls.pop().close()

    with ExitStack() as stack:
        for module in model.modules():
            if any(hasattr(parameter, "ds_id") for parameter in module.parameters(recurse=False)):
                stack.callback(module.register_forward_pre_hook(gather).remove)
                stack.callback(module.register_forward_hook(release, always_call=True).remove)
        yield


def shard(model: nn.Module, settings: dict) -> deepspeed.DeepSpeedEngine:
    """Partitions parameters that are still whole, and makes the modules gather; the model can be called directly."""
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    return engine


def prefetch_for(body: nn.Module, engine: deepspeed.DeepSpeedEngine) -> None:
    """Lets DeepSpeed prefetch parameters when `body` is called: it counts only forwards of the engine's module."""
    body.register_forward_pre_hook(lambda *_: engine.optimizer.get_param_coordinator().reset_step())


def free(engine: deepspeed.DeepSpeedEngine) -> None:
    """Destroys the engine; the model's memory is freed with the last reference to the model."""
    model = engine.module
    engine.destroy()
    # DeepSpeed keeps a list of all its models, and never removes one.
    if model in parameter_offload.FWD_MODULE_STACK:
        parameter_offload.FWD_MODULE_STACK.remove(model)


def whole_linear(linear: nn.Linear) -> nn.Linear:
    """The layer itself or, if it is partitioned, a frozen copy with whole parameters that outlives the model."""
    if not hasattr(linear.weight, "ds_id"):
        return linear
    parameters = [p for p in (linear.weight, linear.bias) if p is not None]
    with whole(parameters):
        return frozen_linear(*(p.detach().clone() for p in parameters))


def frozen_linear(weight_VD: torch.Tensor, bias_V: torch.Tensor | None = None) -> nn.Linear:
    """A linear layer with these parameters, which do not train."""
    linear = nn.Linear(1, 1, bias=False, device="meta")  # allocates and initialises nothing
    linear.out_features, linear.in_features = weight_VD.shape
    linear.weight = nn.Parameter(weight_VD, requires_grad=False)
    linear.bias = None if bias_V is None else nn.Parameter(bias_V, requires_grad=False)
    return linear
