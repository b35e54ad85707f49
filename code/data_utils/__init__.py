"""Rows, prompts, data sets, batches."""
