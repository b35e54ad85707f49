"""Metrics by name. One file each; every file in this folder is imported, so a file is all that a new one needs."""

import importlib
import pkgutil

from evaluation.metrics.base import ANSWER_FIELDS, MAIN_METRIC, Answer, Metric, build_metrics, metric_names, register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ANSWER_FIELDS", "MAIN_METRIC", "Answer", "Metric", "build_metrics", "metric_names", "register"]
