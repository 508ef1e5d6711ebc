"""How well the feedback's gradients agree with backpropagation's (Launay et al. 2020).

At each point, row by row, the cosine between what DFA hands back, δh = e·B·scale, and the true
gradient dL/dh through the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfa_kernels import ops
from dfa_kernels.autograd import PointPlan
from dfa_kernels.backends.contract import Point
from dfa_kernels.module import DFA
from dfa_kernels.recording import RecordedPoint, Recording, active, check_real


class Cosine(NamedTuple):
    """Over the rows of a point: mean and (population) standard deviation of the cosine."""

    mean: float
    std: float


def alignment(
    model: DFA, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any
) -> dict[str, Cosine]:
    """The alignment of every point that the forward pass reaches, in that order, by its name; {}
    where it reaches none.

    Args:
        model: its ``method`` does not matter.
        loss_fn: called as ``loss_fn(model(x), y)``; returns a scalar.
        x, y: what the model and the loss take; a point has k rows for each row of the error.

    Rows whose true or projected gradient is zero have no direction and are left out; a point
    without any other row gets NaN. The model, its buffers (batch statistics, say), every
    ``.grad`` and the random state are left as they were.

    Raises:
        TypeError: ``model`` is not a `DFA` module.
    """
    if not isinstance(model, DFA):
        raise TypeError(f"alignment needs a DFA module, got a {type(model).__name__}")
    observation = Observation(model)
    with _untouched(model.module), torch.enable_grad():
        before, active.recording = active.recording, observation
        try:
            output = model.module(x)
        finally:
            active.recording = before
        if model.error_name is None:
            output = observation.close(output)
        observation.finish()
        points = observation.points
        if not points:
            return {}
        watched = [p.output for p in points] + [observation.error]
        *true, error = torch.autograd.grad(loss_fn(output, y), watched, allow_unused=True)
    plans, rows, width = observation.plans()
    scale = model.feedback.scale_for(max(p.width for p in plans))
    wanted = [Point(p.width, p.stream, p.rows, torch.float32) for p in plans]
    feedback = model.placed_feedback()
    with torch.no_grad():
        projected = ops.project(error.reshape(rows, width).float(), feedback, scale, wanted)
        return {
            plan.name: _cosine(gradient, delta)
            for plan, gradient, delta in zip(plans, true, projected, strict=True)
        }


class Observation(Recording):
    """A forward pass that cuts nothing: for measuring beside backpropagation."""

    error: Tensor

    def fuses(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        return False

    def point(self, name: str, module: nn.Module, output: Tensor) -> Tensor:
        if self._admits(name):
            check_real(output, f"point {name!r}")
            if not output.requires_grad:
                output.requires_grad_()
            self.points.append(RecordedPoint(name, output, output))
        return output

    def close(self, output: Tensor) -> Tensor:
        self.closed = True
        if self.points and self.points[-1].output is output:
            self.points.pop()
        self.error = output
        return output

    def plans(self) -> tuple[list[PointPlan], int, int]:
        """Every point, and N and E of the error."""
        batch, width = self._error_shape(self.error, "the error point")
        plans = [self._point_plan(p, batch) for p in self.points]
        return plans, math.prod(batch), width


def _cosine(true: Tensor | None, projected: Tensor) -> Cosine:
    if true is None:
        return Cosine(float("nan"), float("nan"))
    a, b = true.reshape(projected.shape).double(), projected.double()
    a, b = a / a.abs().amax().clamp_min(1e-300), b / b.abs().amax().clamp_min(1e-300)
    directed = (a.norm(dim=1) > 0) & (b.norm(dim=1) > 0)
    if not directed.any():
        return Cosine(float("nan"), float("nan"))
    cosine = F.cosine_similarity(a[directed], b[directed], dim=1, eps=0)
    return Cosine(cosine.mean().item(), cosine.std(correction=0).item())


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Whatever a forward pass changes in ``module`` or the random state, put back."""
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    kept = [
        (own, name, buffer, None if buffer is None else buffer.clone())
        for own in module.modules()
        for name, buffer in own._buffers.items()
    ]
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        try:
            yield
        finally:
            with torch.no_grad():
                for own, name, buffer, value in kept:
                    own._buffers[name] = buffer
                    if buffer is None or value is None or torch.equal(buffer, value):
                        continue  # a graph may have read it
                    buffer.copy_(value)
