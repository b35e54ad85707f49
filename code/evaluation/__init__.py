"""Evaluation: data sets, scores by metrics, results on disk."""
