"""Naive twins of what `code/` does: slow, dense, straight from the equations. Tests and benchmarks import them."""
