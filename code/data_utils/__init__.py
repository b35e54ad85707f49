"""Instruction data: rows, prompts, tokenised data sets, batches, the plan of an epoch."""
