"""The DeepSpeed engine around the distiller (student and criterion)."""

import deepspeed
import torch

from arguments import TrainArguments
from distiller import Distiller
from runtime.deepspeed_settings import DeepSpeedSettings
from training.optimizer import build_optimizer, build_scheduler


def build_engine(
    distiller: Distiller, settings: DeepSpeedSettings, args: TrainArguments, total_steps: int
) -> deepspeed.DeepSpeedEngine:
    """The engine with optimiser and schedule; the student's parameters are cast, moved and partitioned in place."""
    guarded = settings.stage == 0 and settings.dtype == torch.float32
    optimizer = build_optimizer(distiller, args, guarded)
    engine, *_ = deepspeed.initialize(
        model=distiller,
        optimizer=optimizer,
        lr_scheduler=build_scheduler(optimizer, args, total_steps),
        config=settings.raw | ({"gradient_clipping": 0.0} if guarded else {}),  # then the optimiser clips
    )
    if engine.zero_optimization_stage() == 3:
        # The chunked loss reads the head's parameters outside the head's own forward.
        for parameter in distiller.split_student.head.parameters():
            if parameter is not None:
                deepspeed.zero.register_external_parameter(distiller, parameter)
    return engine
