"""A causal LM cut before its head: hidden states at response positions, and what turns them into logits.

In: a Transformers (or PEFT) causal LM. Out: a `SplitModel`; its head is probed against `model(...).logits`, and one
that this file cannot reproduce falls back to the model's own logits.

Shapes: R rows of a batch, T tokens of a row, N response positions, C of them in a chunk, D hidden size, V vocabulary.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data_utils.batches import Batch
from models.cpu import add_half_precision_product
from models.packing import run
from models.sharding import whole_shape


class LanguageModelHead:
    """logits = softcap(scale * (hidden @ weight.T + bias)), cut to the first `vocabulary_size` ids.

    Reads the module's parameters at every use: DeepSpeed casts, moves and gathers them in place.
    """

    kind = "logits a chunk at a time"

    def __init__(self, linear: nn.Linear, vocabulary_size: int, scale: float = 1.0, softcap: float | None = None):
        self.linear = linear
        self.vocabulary_size = vocabulary_size
        self.scale = scale
        self.softcap = softcap

    @property
    def whole_size(self) -> int:
        """Ids that the model knows; `vocabulary_size` of them are kept."""
        return whole_shape(self.linear.weight)[0]

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        return self.linear.weight, self.linear.bias

    def project(self, hidden_CD: Tensor, out_CV: Tensor | None = None) -> Tensor:
        bias = self.linear.bias
        if bias is None:
            return torch.mm(hidden_CD, self._weight().T, out=out_CV)
        return torch.addmm(bias[: self.vocabulary_size], hidden_CD, self._weight().T, out=out_CV)

    def finish(self, raw_CV: Tensor) -> Tensor:
        logits_CV = raw_CV.to(torch.promote_types(raw_CV.dtype, torch.float32))
        if self.scale != 1:
            logits_CV = logits_CV * self.scale
        if self.softcap is not None:
            logits_CV = self.softcap * torch.tanh(logits_CV / self.softcap)
        return logits_CV

    def project_backward(self, grad_raw_CV: Tensor) -> Tensor:
        return grad_raw_CV @ self._weight()

    def weight_gradient(self, so_far_VD: Tensor | None, grad_raw_CV: Tensor, hidden_CD: Tensor) -> Tensor:
        dtype = torch.promote_types(grad_raw_CV.dtype, torch.float32)
        if so_far_VD is None:
            if grad_raw_CV.dtype == dtype and self.vocabulary_size == self.whole_size:
                return grad_raw_CV.T @ hidden_CD
            so_far_VD = torch.zeros_like(self.linear.weight, dtype=dtype)
        shared_VD = so_far_VD[: self.vocabulary_size]
        if grad_raw_CV.dtype == dtype:
            shared_VD.addmm_(grad_raw_CV.T, hidden_CD)
        elif grad_raw_CV.is_cpu:
            add_half_precision_product(shared_VD, grad_raw_CV.T, hidden_CD)
        else:  # half precision in, fp32 out, in place: the sum over positions can leave the range of fp16
            torch.addmm(shared_VD, grad_raw_CV.T, hidden_CD, out_dtype=dtype, out=shared_VD)
        return so_far_VD

    def _weight(self) -> Tensor:
        return self.linear.weight[: self.vocabulary_size]


class ModelLogits:
    """The head of a model whose own logits are used: what it is given are logits already."""

    kind = "whole logits"

    def __init__(self, vocabulary_size: int):
        self.whole_size = self.vocabulary_size = vocabulary_size

    def parameters(self) -> tuple[None, None]:
        return None, None

    def project(self, logits_CV: Tensor, out_CV: Tensor | None = None) -> Tensor:
        return logits_CV if out_CV is None else out_CV.copy_(logits_CV)

    def finish(self, logits_CV: Tensor) -> Tensor:
        return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))

    def project_backward(self, grad_logits_CV: Tensor) -> Tensor:
        return grad_logits_CV

    def weight_gradient(self, *_) -> Tensor:
        raise AssertionError("a model's own logits come with no head weight")


class SplitModel:
    """A causal LM as a function from a batch to hidden states at response positions, and its head.

    Not a module: whoever trains the model holds it.
    """

    def __init__(self, model: PreTrainedModel, head: LanguageModelHead | ModelLogits):
        self.model = model
        self.head = head
        self.causal_lm = unwrap_peft(model)

    def hidden_states(self, batch: Batch) -> Tensor:
        """hidden_ND at `batch.response_positions` (logits_NV where the head is `ModelLogits`)."""
        if isinstance(self.head, ModelLogits):
            columns_K, positions_N = _needed_columns(batch)
            logits_RKV = run(self.model, batch, logits_to_keep=columns_K).logits
            return logits_RKV.flatten(0, 1)[positions_N, : self.head.vocabulary_size]
        hidden_RTD = run(self.causal_lm.base_model, batch).last_hidden_state
        return hidden_RTD.flatten(0, 1)[batch.response_positions]


def unwrap_peft(model: nn.Module) -> PreTrainedModel:
    """The Transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def find_head(model: nn.Module) -> LanguageModelHead | None:
    """The head as this file understands it, or None where it cannot be a plain linear layer."""
    causal_lm = unwrap_peft(model)
    linear = causal_lm.get_output_embeddings()
    if type(linear) is not nn.Linear:  # a wrapped head (LoRA on it, quantised) is more than its weight
        return None
    config = causal_lm.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return LanguageModelHead(linear, whole_shape(linear.weight)[0], scale, softcap)


def _needed_columns(batch: Batch) -> tuple[Tensor, Tensor]:
    """The columns of the batch with a response position in any row, and the positions among those columns."""
    length = batch.input_ids_RT.shape[1]
    row_N, column_N = batch.response_positions // length, batch.response_positions % length
    columns_K, index_N = column_N.unique(return_inverse=True)
    if not len(columns_K):  # no response: an empty `logits_to_keep` would mean all columns
        columns_K = torch.zeros(1, dtype=torch.long, device=column_N.device)
    return columns_K, row_N * len(columns_K) + index_N
