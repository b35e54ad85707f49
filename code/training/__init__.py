"""Engine, optimiser, loop, dev evaluation, metrics, checkpoints, resuming."""
