"""The grouped backend with Triton's kernels."""

from __future__ import annotations

from dfa_kernels.backends.grouped import backend
from dfa_kernels.backends.triton import project, rules, update
from dfa_kernels.backends.triton.launch import Launcher


class Kernels(backend.Kernels):
    """The three functions of `contract.Backend`."""

    def __init__(self) -> None:
        super().__init__(project, update, rules, Launcher())
