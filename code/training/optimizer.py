"""AdamW with weight decay on matrices only, and the learning-rate schedules."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from arguments import TrainArguments
from models.sharding import whole_shape


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that leaves a step out if a gradient is not finite, and says so in `overflow`, where DeepSpeed looks.

    DeepSpeed's own optimisers do that; at ZeRO-0 in fp32 it steps this one directly. It costs what it costs them: one
    norm of the gradients and one look at it from the host.
    """

    overflow = False

    def step(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.overflow = not torch.stack(torch._foreach_norm(gradients)).isfinite().all().item()
        return None if self.overflow else super().step(closure)


def build_optimizer(model: nn.Module, args: TrainArguments, guarded: bool = False) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases and norms (vectors) are not decayed."""
    kind = GuardedAdamW if guarded else torch.optim.AdamW
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if len(whole_shape(p)) >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in trainable if len(whole_shape(p)) < 2], "weight_decay": 0.0},
    ]
    # Fused: one pass over the parameters where the default makes a dozen, on a CPU too.
    return kind([group for group in groups if group["params"]], lr=args.lr, fused=True)


def build_scheduler(optimizer: torch.optim.Optimizer, args: TrainArguments, total_steps: int) -> LambdaLR:
    """One step a step of the optimiser."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, args, total_steps))


def warmup_steps(args: TrainArguments, total_steps: int) -> int:
    """Steps of the linear warm-up."""
    return args.warmup_iters or int(args.warmup_ratio * total_steps)


def learning_rate_factor(step: int, args: TrainArguments, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (from 0), as a share of --lr.

    Linear warm-up; then constant, linear or cosine down to --lr-min at the end, or noam: 1 / sqrt(step).
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
