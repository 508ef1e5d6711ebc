"""The reference backend: pure PyTorch, the definition of what is right. Any device, any dtype.

    project     δh = e·B·scale / √k
    gradients   δ  = (e·B·scale / √k) ⊙ f′,   dW = δᵀ·x,   db = Σₙ δ
    step_       the same, straight into the weights and the optimizer's state

k: a point's rows for each row of the error.
It keeps the materialised B it used last (`_Matrices`), which the kernels never store.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.backends import steps
from dfa_kernels.backends.contract import (
    HEAD,
    Layer,
    LayerUpdate,
    Point,
    Segment,
    Update,
    distinct_rows,
)
from dfa_kernels.feedback import DISTRIBUTIONS, Feedback

_BACKWARDS = {f.name: f.backward for f in ACTIVATIONS}


# A B of more bytes than `_COMPACT` is kept in the distribution's smallest exact dtype, ±1 in one
# byte, and widened `_SLAB` bytes at a time inside the product: memory for a little time.
_COMPACT, _SLAB = 32 << 20, 1 << 20


class _Matrices:
    """The B matrices in use, least recently used dropped beyond ``limit`` bytes.

    A narrower request is a view of a wider matrix: an entry does not depend on the width.
    """

    def __init__(self, limit: int = 4 << 30) -> None:
        self.limit = limit
        self._kept: OrderedDict[tuple, Tensor] = OrderedDict()

    def get(
        self,
        feedback: Feedback,
        rows: int,
        width: int,
        stream: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """B (rows, width), in ``dtype`` or in one that holds it exactly."""
        if feedback.values is not None:  # already materialised, by its owner
            return feedback.matrix(rows, width, dtype=dtype, device=device)
        if rows * width * dtype.itemsize > _COMPACT:
            dtype = DISTRIBUTIONS[feedback.distribution].storage or dtype
        key = (feedback.distribution, feedback.seed, stream, rows, dtype, device)
        matrix = self._kept.get(key)
        if matrix is None or matrix.shape[1] < width:
            matrix = feedback.matrix(rows, width, stream, dtype=dtype, device=device)
            self._kept[key] = matrix
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and self.bytes() > self.limit:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return matrix if matrix.shape[1] == width else matrix[:, :width]

    def bytes(self) -> int:
        return sum(m.numel() * m.element_size() for m in self._kept.values())

    def clear(self) -> None:
        self._kept.clear()


class _Projections:
    """e·B·scale for every segment of one call: one product for each error and stream, as wide as
    the widest layer that reads it.

    An error's key is its place among the call's, not its id: under torch.compile an id is a guard,
    and each step with its new error would be compiled anew.
    """

    def __init__(
        self, feedback: Feedback, matrices: _Matrices, segments: Iterable[Segment] = ()
    ) -> None:
        self._feedback, self._matrices = feedback, matrices
        self._first: Tensor | None = None
        self._others: list[Tensor] = []
        self._widths: dict[tuple[int, float, int], int] = {}
        self._made: dict[tuple[int, float, int, torch.dtype], Tensor] = {}
        for error, scale, (_, saved, _, stream, _) in segments:
            if stream != HEAD:
                self.expect(error, scale, stream, saved.shape[1])

    def expect(self, error: Tensor, scale: float, stream: int, width: int) -> None:
        """Announce a reader, before the first is served."""
        key = (0 if error is self._first else self._place(error), scale, stream)
        if width > self._widths.get(key, -1):
            self._widths[key] = width

    def _place(self, error: Tensor) -> int:
        if self._first is None:
            self._first = error
            return 0
        for place, known in enumerate(self._others, 1):
            if known is error:
                return place
        self._others.append(error)
        return len(self._others)

    def __call__(
        self, error: Tensor, scale: float, stream: int, width: int, rows: int, dtype: torch.dtype
    ) -> Tensor:
        """δh (N·k, D), in the wider of the error's dtype and ``dtype``."""
        if error.dtype != dtype:
            dtype = torch.promote_types(error.dtype, dtype)
        key = (0 if error is self._first else self._place(error), scale, stream, dtype)
        made = self._made.get(key)
        if made is None:
            wide = error if error.dtype == dtype else error.to(dtype)
            matrix = self._matrices.get(
                self._feedback,
                error.shape[1],
                self._widths[key[:3]],
                stream,
                dtype=dtype,
                device=error.device,
            )
            made = self._made[key] = _scaled_product(wide, matrix, scale)
        projection = made if made.shape[1] == width else made[:, :width]
        if rows > 1:
            projection = (projection / math.sqrt(rows)).repeat_interleave(rows, dim=0)
        return projection


@functools.cache
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a product with beta = 0 is added to: addmm scales as it multiplies, mm does not."""
    return torch.zeros((), dtype=dtype, device=device)


def _scaled_product(error: Tensor, matrix: Tensor, scale: float) -> Tensor:
    """e·B·scale, B widened to the error's dtype a slab at a time where it is kept in another."""
    nothing = _nothing(error.dtype, error.device)
    if matrix.dtype == error.dtype:
        return torch.addmm(nothing, error, matrix, beta=0, alpha=scale)
    height = max(1, _SLAB // (matrix.shape[1] * error.itemsize))
    made = torch.addmm(
        nothing, error[:, :height], matrix[:height].to(error.dtype), beta=0, alpha=scale
    )
    for k in range(height, matrix.shape[0], height):
        slab = matrix[k : k + height].to(error.dtype)
        made.addmm_(error[:, k : k + height], slab, alpha=scale)
    return made


def _delta(segment: Segment, projections: _Projections) -> Tensor:
    """δ (N·k, D) in the dtype of what the forward pass kept."""
    error, scale, (_, saved, activation, stream, rows) = segment
    if stream == HEAD:
        upstream = error
    else:
        upstream = projections(error, scale, stream, saved.shape[1], rows, saved.dtype)
    if upstream.dtype == saved.dtype:
        return _BACKWARDS[activation](upstream, saved)
    return _BACKWARDS[activation](upstream, saved.to(upstream.dtype)).to(saved.dtype)


class Reference:
    """Pure PyTorch on any device, in any real floating dtype."""

    def __init__(self) -> None:
        self.matrices = _Matrices()

    def unavailable(self, device: torch.device) -> str | None:
        return None

    def describe(self) -> str:
        return f"pure PyTorch; keeps B materialised, now {self.matrices.bytes():,} bytes"

    def project(
        self, error: Tensor, feedback: Feedback, scale: float, points: Sequence[Point]
    ) -> list[Tensor]:
        projections = _Projections(feedback, self.matrices)
        for p in points:
            projections.expect(error, scale, p.stream, p.width)
        made = [
            projections(error, scale, p.stream, p.width, p.rows, p.dtype).to(p.dtype)
            for p in points
        ]
        # two points of one width would share the product's own tensor
        return [m if i == 0 else m.clone() for i, m in enumerate(made)]

    def gradients(
        self,
        error: Tensor,
        feedback: Feedback,
        scale: float,
        layers: Sequence[Layer],
        dtype: torch.dtype,
    ) -> list[tuple[Tensor, Tensor]]:
        segments = [Segment(error, scale, layer) for layer in layers]
        projections = _Projections(feedback, self.matrices, segments)
        made = []
        for segment in segments:
            delta = _delta(segment, projections)
            inputs = segment.layer.inputs
            made.append((steps.product(delta, inputs, dtype), delta.sum(0, dtype=dtype)))
        return made

    def step_(self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]) -> None:
        every = [s for update in updates for s in update.segments]
        projections = _Projections(feedback, self.matrices, every)
        step = steps.Step(rule)
        for weight, bias, segments in updates:
            terms = []
            for segment in segments:
                terms.append((_delta(segment, projections), segment.layer.inputs))
            step.add(weight, bias, terms)
        step.flush()

    def repeated(
        self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]
    ) -> _RepeatedStep | None:
        dtype = updates[0].weight.parameter.dtype
        layers, stepped = [], []
        for weight, bias, segments in updates:
            if rule != "sgd" or bias is None or len(segments) != 1 or segments[0].layer.rows != 1:
                return None
            for update in (weight, bias):
                if update.parameter.dtype is not dtype or update.copy is not None:
                    return None
                if not steps.accumulates(update):
                    return None
                stepped.append(update)
            ((error, scale, (_, saved, activation, stream, _)),) = segments
            if error.dtype is not dtype or saved.dtype is not dtype:
                return None
            layers.append(_Layer(scale, stream, saved.shape[1], _BACKWARDS[activation]))
        return _RepeatedStep(feedback, self.matrices, layers, stepped, *distinct_rows(updates))


class _Layer(NamedTuple):
    """What never changes of a layer whose step is repeated."""

    scale: float
    stream: int
    width: int
    backward: Callable[[Tensor, Tensor], Tensor]


class _RepeatedStep:
    """`Reference.step_` by SGD of layers whose gradients have one term, all of one error: between
    the products of one step nothing is planned."""

    def __init__(
        self,
        feedback: Feedback,
        matrices: _Matrices,
        layers: list[_Layer],
        stepped: list[Update],
        rows: list[Any],
        row_of: list[int],
    ) -> None:
        self._feedback, self._matrices, self._layers = feedback, matrices, layers
        self._stepped, self._row_of = stepped, row_of
        self._plan(rows)
        self._widths: dict[int, int] = {}
        for layer in layers:
            self._widths[layer.stream] = max(layer.width, self._widths.get(layer.stream, 0))

    def _plan(self, rows: list[Any]) -> None:
        """What these rows make of every weight's and bias's step."""
        self._rows = rows
        sums = [
            steps.linear(update.parameter, update.states, rows[place])
            for update, place in zip(self._stepped, self._row_of, strict=True)
        ]
        self._sums = list(zip(sums[0::2], sums[1::2], strict=True))

    def __call__(
        self, error: Tensor, inputs: Sequence[Tensor], saved: Sequence[Tensor], rows: list
    ) -> None:
        if rows is not self._rows:
            self._plan(rows)
        length, outputs = error.shape
        dtype, device = error.dtype, error.device
        made = {HEAD: error}
        ones = steps.ones(length, dtype, device)
        for (scale, stream, width, backward), (weight, bias), x, h in zip(
            self._layers, self._sums, inputs, saved, strict=True
        ):
            upstream = made.get(stream)
            if upstream is None:
                matrix = self._matrices.get(
                    self._feedback, outputs, self._widths[stream], stream, dtype=dtype,
                    device=device,
                )  # fmt: skip
                upstream = made[stream] = _scaled_product(error, matrix, scale)
            if stream != HEAD and width < self._widths[stream]:
                upstream = upstream[:, :width]
            turned = backward(upstream, h).T
            target, beta, alpha, after = bias
            target.addmv_(turned, ones, beta=beta, alpha=alpha)
            for tensor, other, number in after:
                tensor.add_(other, alpha=number)
            target, beta, alpha, after = weight
            target.addmm_(turned, x, beta=beta, alpha=alpha)
            for tensor, other, number in after:
                tensor.add_(other, alpha=number)
