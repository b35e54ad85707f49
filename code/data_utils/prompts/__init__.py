"""Prompts: templates by name, one file each, and the token ids of a prompt and its response.

Every file in this folder is imported, so a file is all that a new template needs.
"""

import importlib
import pkgutil

from data_utils.prompts.base import PromptTemplate, prompt_template, register
from data_utils.prompts.encoding import cut_prompts, encode_pairs, encode_prompts

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["PromptTemplate", "cut_prompts", "encode_pairs", "encode_prompts", "prompt_template", "register"]
