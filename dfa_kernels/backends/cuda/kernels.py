"""The grouped backend with the kernels of csrc/."""

from __future__ import annotations

from typing import Any

from dfa_kernels.backends.cuda import project, rules, update
from dfa_kernels.backends.cuda.launch import Launcher
from dfa_kernels.backends.grouped import backend


class Kernels(backend.Kernels):
    """The three functions of `contract.Backend`; ``core``: the compiled module."""

    def __init__(self, core: Any) -> None:
        super().__init__(project, update, rules, Launcher(core))
