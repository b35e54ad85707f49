"""Cuts a decoder into a smaller one: whole layers, attention heads, FFN neurons. The vocabulary stays.

In: a Transformers causal LM, changed in place. Out: the same model, smaller, with a config that fits it. What to keep
is the caller's choice, or chosen here: evenly spaced layers, layers whose removal raises an NLL least, and the heads
and neurons with the largest activations (as Minitron: Muralidharan et al. 2024, arXiv 2407.14679).

Shapes: R rows, T tokens per row, H attention heads, D size of a head, F neurons of an FFN.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data_utils.batches import Batch
from models.packing import forward

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")


def layer_list(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that holds the decoder's layers, and the attribute. Raises ValueError if it cannot be told."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(found) != 1:
        raise ValueError(f"{_kind(model)}: it has {len(found)} lists of {depth} layers, not one; it cannot be cut")
    return found[0]


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keeps these layers, in this order; per-layer lists of the config are cut with them. Raises ValueError."""
    parent, name = layer_list(model)
    layers, config = getattr(parent, name), model.config.get_text_config()
    depth = len(layers)
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= depth:
        raise ValueError(f"layers {list(kept)}: name some of 0 to {depth - 1}, rising, each once")
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth:
            setattr(config, key, [value[i] for i in kept])
    config.num_hidden_layers = len(kept)
    setattr(parent, name, nn.ModuleList(layers[i] for i in kept))
    for index, layer in enumerate(getattr(parent, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index


def even_layers(depth: int, count: int) -> list[int]:
    """Evenly spaced, the first and the last included (of one: the first)."""
    return [0] if count == 1 else [round(i * (depth - 1) / (count - 1)) for i in range(count)]


def least_effect_layers(
    model: PreTrainedModel, count: int, nll: Callable[[], float], report: Callable[[int, float], None] = lambda *_: None
) -> list[int]:
    """The layers that stay when, again and again, the one is removed whose removal leaves the lowest NLL.

    nll: of the model as it stands. report: is called with each removed layer and the NLL without it.
    """
    parent, name = layer_list(model)
    layers = getattr(parent, name)
    kept = list(range(len(layers)))
    while len(kept) > count:
        without = {}
        for layer in kept:
            with _only(model, [i for i in kept if i != layer]):
                without[layer] = nll()
        removed = min(without, key=without.get)
        kept.remove(removed)
        report(removed, without[removed])
    return kept


@contextmanager
def _only(model: PreTrainedModel, kept: Sequence[int]) -> Iterator[None]:
    """`keep_layers` for the time of a block."""
    parent, name = layer_list(model)
    layers, config = getattr(parent, name), model.config.get_text_config()
    before = {key: value for key, value in config.to_dict().items() if isinstance(value, list)}
    try:
        keep_layers(model, kept)
        yield
    finally:
        setattr(parent, name, layers)
        config.num_hidden_layers = len(layers)
        for key, value in before.items():
            setattr(config, key, value)
        for index, layer in enumerate(layers):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = index


def keep_neurons(model: PreTrainedModel, count: int, batches: Iterable[Batch]) -> None:
    """Per layer, keeps the FFN neurons with the largest activations on the batches. Raises ValueError."""
    ffns = _modules_with(model, FFN, "--ffn-size")
    config = model.config.get_text_config()
    if not 1 <= count < config.intermediate_size:
        raise ValueError(f"--ffn-size {count}: the model has {config.intermediate_size}; pass fewer")
    squares = _activation_squares(model, [ffn.down_proj for ffn in ffns], batches)
    for ffn, squares_F in zip(ffns, squares):
        kept = squares_F.topk(count).indices.sort().values
        for linear in (ffn.gate_proj, ffn.up_proj):
            _keep_outputs(linear, kept)
        _keep_inputs(ffn.down_proj, kept)
        if hasattr(ffn, "intermediate_size"):
            ffn.intermediate_size = count
    config.intermediate_size = count


def keep_heads(model: PreTrainedModel, count: int, batches: Iterable[Batch]) -> None:
    """Per layer, keeps the attention heads with the largest outputs on the batches.

    Heads that share keys and values stay together, so `count` is a multiple of their number. Raises ValueError.
    """
    attentions = _modules_with(model, ATTENTION, "--heads")
    config = model.config.get_text_config()
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    shared, size = heads // groups, attentions[0].o_proj.in_features // heads
    if not shared <= count < heads or count % shared:
        raise ValueError(
            f"--heads {count}: the model has {heads}, {shared} per key; pass fewer, a multiple of {shared}"
        )
    squares = _activation_squares(model, [attention.o_proj for attention in attentions], batches)
    for attention, squares_HD in zip(attentions, squares):
        kept_groups = squares_HD.view(groups, -1).sum(1).topk(count // shared).indices.sort().values
        _keep_outputs(attention.q_proj, _blocks(kept_groups, shared * size))
        _keep_inputs(attention.o_proj, _blocks(kept_groups, shared * size))
        for linear in (attention.k_proj, attention.v_proj):
            _keep_outputs(linear, _blocks(kept_groups, size))
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = count, count // shared, size


def _modules_with(model: PreTrainedModel, names: Sequence[str], flag: str) -> list[nn.Module]:
    """Of each layer, the module with these linear layers."""
    parent, name = layer_list(model)
    found = []
    for layer in getattr(parent, name):
        modules = [module for module in layer.modules() if set(names) <= set(dict(module.named_children()))]
        if len(modules) != 1 or not all(type(getattr(modules[0], name)) is nn.Linear for name in names):
            raise ValueError(f"{flag}: the layers of {_kind(model)} have no {', '.join(names)}; cut layers only")
        found += modules
    return found


@torch.no_grad()
def _activation_squares(model: PreTrainedModel, readers: Sequence[nn.Linear], batches: Iterable[Batch]) -> list[Tensor]:
    """Per reader, the sum of the squares of its inputs over all tokens that are not padding."""
    sums = [torch.zeros(reader.in_features, dtype=torch.float64) for reader in readers]
    mask_RT = None

    def add(i: int) -> Callable:
        def hook(_, inputs: tuple[Tensor, ...]) -> None:
            sums[i] += (inputs[0].double().square() * mask_RT[..., None]).sum((0, 1)).cpu()

        return hook

    with ExitStack() as hooks:
        for i, reader in enumerate(readers):
            hooks.callback(reader.register_forward_pre_hook(add(i)).remove)
        for batch in batches:
            mask_RT = batch.attention_mask_RT
            forward(model, batch, logits_to_keep=1)
    return sums


def _blocks(groups: Tensor, size: int) -> Tensor:
    """Indices of the elements of these groups, `size` each."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def _keep_outputs(linear: nn.Linear, kept: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[kept].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[kept].clone())
    linear.out_features = len(kept)


def _keep_inputs(linear: nn.Linear, kept: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[:, kept].clone())
    linear.in_features = len(kept)


def _kind(model: PreTrainedModel) -> str:
    return f"a model of type {model.config.model_type}"
