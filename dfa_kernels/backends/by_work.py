"""Two backends as one: light calls by the one that launches in microseconds, others by the other.

Between small layers the GPU waits for the host, and there a backend wins whose call takes the host
less. `HOST` is what a call of Triton's takes it more than one of CUDA's at the least, `AGAIN` what
a step does that repeats another: each is below every row of bench/results/launch.md less the same
one of launch_cuda.md. Where CUDA's kernels take no longer than that, they are done before Triton's
have begun. Which kernels are the faster beyond it no GPU has measured yet; Triton's use Hopper's
own instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfa_kernels.backends.contract import Layer, LayerUpdate, Point, Update
from dfa_kernels.backends.cuda import rules
from dfa_kernels.backends.tf32 import tf32_allowed
from dfa_kernels.feedback import Feedback

#: Seconds, at the least.
HOST, AGAIN = 180e-6, 25e-6


class Rates(NamedTuple):
    """Of a device, per second."""

    flops: float
    bytes: float


#: Of a multiprocessor, and low: half of an A100's in 16 bits, and what it has in fp32; the bytes of
#: a GPU with GDDR.
HALF, TF32, FULL = 1.5e12, 0.7e12, 0.18e12
BYTES = 8e9


def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """What a device does at the least with operands of ``dtype``."""
    flops = HALF
    if dtype is torch.float32:
        flops = TF32 if tf32_allowed() else FULL
    multiprocessors = rules.device_of(device).multiprocessors
    return Rates(multiprocessors * flops, multiprocessors * BYTES)


class ByWork:
    """``light`` and ``heavy``: names and backends."""

    def __init__(self, light: tuple[str, Any], heavy: tuple[str, Any]) -> None:
        self._names = light[0], heavy[0]
        self._light, self._heavy = light[1], heavy[1]
        self.dtypes = self._light.dtypes & self._heavy.dtypes

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot run on ``device``, in one sentence; None where both can."""
        both = zip(self._names, (self._light, self._heavy), strict=True)
        lacking = [name for name, backend in both if backend.unavailable(device) is not None]
        if not lacking:
            return None
        light, heavy = self._names
        who = "neither can" if len(lacking) == 2 else f"{lacking[0]} cannot"
        return f"it hands small calls to {light} and large ones to {heavy}, and {who} run there"

    def describe(self) -> str:
        """One line for ``dfa-kernels info``."""
        light, heavy = self._names
        whole, again = (f"{seconds * 1e6:.0f} µs" for seconds in (HOST, AGAIN))
        return (
            f"{light} for calls of less than {whole} of a device's work ({again} where a step "
            f"repeats the last), which is what it saves the host; {heavy} for others (counted, not "
            "timed on a GPU)"
        )

    def project(
        self, error: Tensor, feedback: Feedback, scale: float, points: Sequence[Point]
    ) -> list[Tensor]:
        rows, columns = error.shape
        rate = rates(error.device, error.dtype)
        # δh is written; what else is read is small beside it.
        each = 2 * columns / rate.flops + error.itemsize / rate.bytes
        work = sum(rows * point.rows * point.width for point in points) * each
        return self._by(work).project(error, feedback, scale, points)

    def gradients(
        self,
        error: Tensor,
        feedback: Feedback,
        scale: float,
        layers: Sequence[Layer],
        dtype: torch.dtype,
    ) -> list[tuple[Tensor, Tensor]]:
        work = 0.0
        for layer in layers:
            each, once = _cost(layer, dtype.itemsize, error.device)
            work += each * layer.inputs.shape[0] + once
        return self._by(work).gradients(error, feedback, scale, layers, dtype)

    def step_(self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]) -> None:
        self._by(work_of(updates)).step_(feedback, rule, updates)

    def repeated(
        self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]
    ) -> Callable[..., None] | None:
        """By the one that the rows of the error ask for at each run."""
        light, heavy = (
            backend.repeated(feedback, rule, updates) for backend in (self._light, self._heavy)
        )
        if light is None or heavy is None:
            return None
        each_row = at_once = 0.0
        for weight, _, ((_, _, layer),) in updates:
            each, once = _cost(layer, _bytes(weight), weight.parameter.device)
            each_row += each * layer.rows
            at_once += once
        most = (AGAIN - at_once) / max(each_row, 1e-30)

        def run(error: Tensor, *given: Any) -> None:
            (light if error.shape[0] < most else heavy)(error, *given)

        return run

    def _by(self, work: float) -> Any:
        return self._light if work < HOST else self._heavy


def work_of(updates: Sequence[LayerUpdate]) -> float:
    """Seconds of a device's for a step."""
    work = 0.0
    for weight, _, segments in updates:
        once = 0.0
        for segment in segments:
            each, once = _cost(segment.layer, _bytes(weight), weight.parameter.device)
            work += each * segment.layer.inputs.shape[0]
        work += once
    return work


def _bytes(update: Update) -> int:
    """Read and written of each element of a parameter, its states and its copy."""
    parameter, states, _, copy = update
    return 2 * parameter.itemsize * (1 + len(states)) + (0 if copy is None else copy.itemsize)


def _cost(layer: Layer, bytes_each: int, device: torch.device) -> tuple[float, float]:
    """Seconds for each row of a layer's inputs; and for its weight, of so many bytes an element."""
    inputs = layer.inputs
    rate = rates(device, inputs.dtype)
    width, height = inputs.shape[1], layer.saved.shape[1]
    each = 2 * height * width / rate.flops + (height + width) * inputs.itemsize / rate.bytes
    return each, height * width * bytes_each / rate.bytes
