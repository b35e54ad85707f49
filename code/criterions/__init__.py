"""Objectives by name. Every file in this folder is imported, so a new objective is one file."""

import importlib
import pkgutil

from criterions.base import Criterion, StepTokens, build_criterion, objective_names, register, unused_arguments

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Criterion", "StepTokens", "build_criterion", "objective_names", "register", "unused_arguments"]
