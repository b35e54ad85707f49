"""Engine, loop, optimiser, checkpoints, metrics."""
