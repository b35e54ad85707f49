"""AdamW with weight decay on matrices only, and the learning-rate schedules."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from arguments import TrainArguments
from data_utils.epoch_plan import warmup_steps
from models.sharding import whole_shape


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips, and skips a step with a non-finite gradient; reports both where DeepSpeed looks.

    DeepSpeed's own optimisers do the same; at ZeRO-0 in fp32 it steps this one directly. The cost is also the same: one
    norm of the gradients, read once by the host.
    """

    max_norm = 0.0  # 0: no clipping
    overflow = False
    _global_grad_norm = 0.0

    def step(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).item()
        self.overflow, self._global_grad_norm = not math.isfinite(norm), norm
        if self.overflow:
            return None
        if 0 < self.max_norm < norm:
            torch._foreach_mul_(gradients, self.max_norm / (norm + 1e-6))
        return super().step(closure)


def build_optimizer(model: nn.Module, args: TrainArguments, guarded: bool = False) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases and norms (vectors) are not decayed.

    guarded: clips and skips by itself, for the case that DeepSpeed steps it directly.
    """
    kind = GuardedAdamW if guarded else torch.optim.AdamW
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if len(whole_shape(p)) >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in trainable if len(whole_shape(p)) < 2], "weight_decay": 0.0},
    ]
    # Fused: one pass over the parameters where the default makes a dozen; also on a CPU.
    optimizer = kind([group for group in groups if group["params"]], lr=args.lr, fused=True)
    if guarded:
        optimizer.max_norm = args.clip_grad
    return optimizer


def build_scheduler(optimizer: torch.optim.Optimizer, args: TrainArguments, total_steps: int) -> LambdaLR:
    """Advances once per optimiser step."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, args, total_steps))


def learning_rate_factor(step: int, args: TrainArguments, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (from 0) as a fraction of --lr.

    Linear warm-up; then constant, linear or cosine decay to --lr-min at the end, or noam: 1 / sqrt(step).
    """
    warmup = warmup_steps(args, total_steps)
    if args.lr_decay_style == "noam":
        peak = max(1, warmup)
        return min((step + 1) / peak, math.sqrt(peak / (step + 1)))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    floor = args.lr_min / args.lr
    if args.lr_decay_style == "linear":
        return floor + (1 - floor) * (1 - progress)
    if args.lr_decay_style == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0
