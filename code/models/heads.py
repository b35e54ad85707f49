"""A causal LM split before its head: states at response positions, and the head that turns them into logits.

In: a Transformers (or PEFT) causal LM. Out: a `SplitModel`. `models/probes.py` compares its logits with those of the
whole model; if they differ, the states are the model's own logits, and the head (`ModelLogits`) only cuts them.

Shapes: R rows of a batch, T tokens of a row, K columns of it, N response positions, C of them in a chunk, D hidden
size, V vocabulary, possibly cut to the ids that student and teacher share, W all ids of the model.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from data_utils.batches import Batch
from models.cpu import add_half_precision_product
from models.packing import forward, unwrap_peft
from models.sharding import whole_shape


class LanguageModelHead:
    """logits = softcap(scale * (hidden @ weight.T + bias)), cut to the first `vocabulary_size` ids.

    Reads the module's parameters at every use: DeepSpeed casts, moves and gathers them in place.
    """

    kind = "logits a chunk at a time"

    def __init__(
        self,
        linear: nn.Linear,
        vocabulary_size: int | None = None,
        scale: float = 1.0,
        softcap: float | None = None,
    ):
        self.linear = linear
        self.vocabulary_size = vocabulary_size or self.whole_size
        self.scale = scale
        self.softcap = softcap

    @property
    def whole_size(self) -> int:
        """All ids of the model; `vocabulary_size` of them are kept."""
        return whole_shape(self.linear.weight)[0]

    def uncut(self) -> "LanguageModelHead":
        """The same head with all its ids."""
        return LanguageModelHead(self.linear, self.whole_size, self.scale, self.softcap)

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

    def weight_gradient(self, so_far_WD: Tensor | None, grad_raw_CV: Tensor, hidden_CD: Tensor) -> Tensor:
        dtype = torch.promote_types(grad_raw_CV.dtype, torch.float32)
        if so_far_WD is None:
            if grad_raw_CV.dtype == dtype and self.vocabulary_size == self.whole_size:
                return grad_raw_CV.T @ hidden_CD
            so_far_WD = torch.zeros_like(self.linear.weight, dtype=dtype)
        kept_VD = so_far_WD[: self.vocabulary_size]
        if grad_raw_CV.dtype == dtype:
            kept_VD.addmm_(grad_raw_CV.T, hidden_CD)
        elif grad_raw_CV.is_cpu:
            add_half_precision_product(kept_VD, grad_raw_CV.T, hidden_CD)
        else:  # half precision in, fp32 out, in place: the sum over positions can leave the range of fp16
            torch.addmm(kept_VD, grad_raw_CV.T, hidden_CD, out_dtype=dtype, out=kept_VD)
        return so_far_WD

    def _weight(self) -> Tensor:
        return self.linear.weight[: self.vocabulary_size]


class ModelLogits:
    """The head of a model whose own logits are used: its input is already logits; it cuts them to `vocabulary_size`."""

    kind = "whole logits"

    def __init__(self, whole_size: int, vocabulary_size: int | None = None):
        self.whole_size = whole_size
        self.vocabulary_size = vocabulary_size or whole_size

    def uncut(self) -> "ModelLogits":
        """The same head with all its ids."""
        return ModelLogits(self.whole_size)

    def parameters(self) -> tuple[None, None]:
        return None, None

    def project(self, logits_CW: Tensor, out_CV: Tensor | None = None) -> Tensor:
        logits_CV = logits_CW[:, : self.vocabulary_size]
        return logits_CV if out_CV is None else out_CV.copy_(logits_CV)

    def finish(self, logits_CV: Tensor) -> Tensor:
        return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))

    def project_backward(self, grad_logits_CV: Tensor) -> Tensor:
        return F.pad(grad_logits_CV, (0, self.whole_size - self.vocabulary_size))

    def weight_gradient(self, *_) -> Tensor:
        raise AssertionError("a model's own logits have no head weight")


class SplitModel:
    """A causal LM as a function from a batch to states, and the head that turns states into logits.

    Not a module: whoever trains the model holds it.
    """

    def __init__(self, model: PreTrainedModel, head: LanguageModelHead | ModelLogits):
        self.model = model
        self.head = head
        self.causal_lm = unwrap_peft(model)

    def states(self, batch: Batch) -> Tensor:
        """What the head takes, at `batch.response_positions`: hidden_ND, or logits_NW if the head is `ModelLogits`."""
        if isinstance(self.head, ModelLogits):
            columns_K, positions_N = _needed_columns(batch)
            logits_RKW = forward(self.model, batch, logits_to_keep=columns_K).logits
            return logits_RKW.flatten(0, 1)[positions_N, : self.head.whole_size]
        hidden_RTD = forward(self.causal_lm.base_model, batch).last_hidden_state
        return hidden_RTD.flatten(0, 1)[batch.response_positions]


def find_head(model: nn.Module) -> LanguageModelHead | None:
    """The head, as far as module and config tell; None if it is more than a linear layer."""
    causal_lm = unwrap_peft(model)
    linear = causal_lm.get_output_embeddings()
    if type(linear) is not nn.Linear:  # wrapped (LoRA, quantised): its weight alone does not give the logits
        return None
    config = causal_lm.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return LanguageModelHead(linear, scale=scale, softcap=getattr(config, "final_logit_softcapping", None))


def _needed_columns(batch: Batch) -> tuple[Tensor, Tensor]:
    """The columns that have a response position in any row, and the index of each position in [R, K] flattened."""
    length = batch.input_ids_RT.shape[1]
    row_N, column_N = batch.response_positions // length, batch.response_positions % length
    columns_K, index_N = column_N.unique(return_inverse=True)
    if not len(columns_K):  # no response position: an empty `logits_to_keep` would mean all columns
        columns_K = torch.zeros(1, dtype=torch.long, device=column_N.device)
    return columns_K, row_N * len(columns_K) + index_N
