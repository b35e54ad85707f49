"""Denies precisions to DeepSpeed's CPU accelerator, so that any machine shows what one without them does.

    TEST_WITHOUT=fp16,bf16 python -m pytest tests/integration/test_zero.py

tests/conftest.py puts this folder on PYTHONPATH where TEST_WITHOUT is set: Python then imports this file at the start
of every process that a test starts.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

MODULE = "deepspeed.accelerator.cpu_accelerator"
WITHOUT = [name for name in os.environ.get("TEST_WITHOUT", "").split(",") if name]


class Denying:
    """Finds the accelerator's module as ever, and changes its class when it has been imported."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module) -> None:
            execute(module)
            for precision in WITHOUT:
                setattr(module.CPU_Accelerator, f"is_{precision}_supported", lambda accelerator: False)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Denying)
