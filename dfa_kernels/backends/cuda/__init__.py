"""The CUDA backend: csrc/, compiled when the package is installed, launched in microseconds.

    dfa_kernels/backends/cuda/
        extension.py   the compiled module, or why there is none
        kernels.py     dfa_kernels/backends/grouped (checks, layouts, which launches) with these:
        project.py  update.py     what each launch is told, as a list of numbers
        rules.py       whether δ is stored      launch.py   the stream and the scratch

Neither the extension nor CUDA is needed to import any of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dfa_kernels.backends.contract import Layer, LayerUpdate, Point
from dfa_kernels.backends.cuda import extension, rules
from dfa_kernels.backends.cuda.kernels import Kernels
from dfa_kernels.backends.current import absent
from dfa_kernels.feedback import Feedback


class CUDA:
    """NVIDIA GPUs of compute capability 8.0 and later."""

    #: What it takes: other dtypes go to the reference where nobody named a backend.
    dtypes = frozenset({torch.float32, torch.bfloat16, torch.float16})

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot run on ``device``, in one sentence; None where it can."""
        missing = extension.missing()
        if missing is not None:
            return missing
        if device.type != "cuda":
            return f"it runs on CUDA devices, not on {device.type}"
        if torch.version.hip:
            return "it runs on NVIDIA GPUs, and this torch is built for ROCm"
        if (reason := absent(device)) is not None:
            return reason
        capability = torch.cuda.get_device_capability(device)
        return extension.unsuited(capability, str(device)) or extension.outdated(capability)

    def describe(self) -> str:
        """One line for ``dfa-kernels info``."""
        return f"B in registers, 0 bytes kept; {extension.describe()}; {rules.describe()}"

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
        return Kernels(self._core())

    def _core(self) -> Any:
        return extension.load()
