"""The Triton backend: `project` and `update`, one launch each for the whole network.

    dfa_kernels/backends/triton/
        kernels.py   dfa_kernels/backends/grouped (checks, layouts, which launches) with these:
        project.py          the kernel, its table, its launcher
        update_kernel.py    the other kernel and its table      update.py   its launcher
        philox.py  activation.py  optimizer.py                  what they do in registers
        constants.py        what they are compiled for
        rules.py     tiles, and whether δ is stored     tuning.py  candidates.py  other tiles, tried
        table.py  launch.py                             how a launch is put together
        repeated.py  steps that repeat each other, without a plan

Triton is imported at the first use, and compiles at the first step of each kind.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dfa_kernels.backends.contract import Layer, LayerUpdate, Point
from dfa_kernels.backends.current import absent
from dfa_kernels.feedback import Feedback

if TYPE_CHECKING:
    from dfa_kernels.backends.triton.kernels import Kernels


class Triton:
    """NVIDIA GPUs of compute capability 8.0 and later, and AMD's by ROCm."""

    #: What it takes: other dtypes go to the reference where nobody named a backend.
    dtypes = frozenset({torch.float32, torch.bfloat16, torch.float16})

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot run on ``device``, in one sentence; None where it can."""
        return _unavailable(device, interpreted())

    def describe(self) -> str:
        """One line for ``dfa-kernels info``."""
        from dfa_kernels.backends.triton import rules, tuning

        return f"B in registers, 0 bytes kept; {rules.describe()}; {tuning.describe()}"

    def project(
        self, error: Tensor, feedback: Feedback, scale: float, points: Sequence[Point]
    ) -> list[Tensor]:
        return self._kernels.project(error, feedback, scale, points)

    def gradients(
        self,
        error: Tensor,
        feedback: Feedback,
        scale: float,
        layers: Sequence[Layer],
        dtype: torch.dtype,
    ) -> list[tuple[Tensor, Tensor]]:
        return self._kernels.gradients(error, feedback, scale, layers, dtype)

    def step_(self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]) -> None:
        self._kernels.step_(feedback, rule, updates)

    def repeated(
        self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]
    ) -> Callable[..., None] | None:
        return self._kernels.repeated(feedback, rule, updates)

    @functools.cached_property
    def _kernels(self) -> Kernels:
        from dfa_kernels.backends.triton.kernels import Kernels

        return Kernels()


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@functools.lru_cache
def _unavailable(device: torch.device, interpreting: bool) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if interpreting:
        if device.type == "cpu":
            return None
        return f"TRITON_INTERPRET=1 runs on CPU tensors, not on {device.type}"
    if device.type != "cuda":
        return f"it runs on CUDA and ROCm devices, not on {device.type}"
    if (reason := absent(device)) is not None or torch.version.hip:
        return reason
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs compute capability 8.0, and {device} has {major}.{minor}"
    return None
