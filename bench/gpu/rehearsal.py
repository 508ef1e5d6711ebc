"""A run without a GPU: the kernels in Triton's interpreter, as `tests/interpreted` sets it up."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path

import torch

INTERPRETED = Path(__file__).parents[2] / "tests" / "interpreted"


def ask_for_interpreter() -> None:
    """In this process and those that it starts; Triton reads it when a kernel is defined."""
    os.environ["TRITON_INTERPRET"] = "1"


def prepare() -> None:
    """Make the interpreter of this process right in bf16, and quicker."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    sys.path.insert(0, str(INTERPRETED))
    importlib.import_module("bfloat16").repair()
    importlib.import_module("interpreter").quicken()
