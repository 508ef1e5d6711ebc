"""What a backend is given, and what it returns: the three functions over the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from dfa_kernels.feedback import Feedback

#: `Layer.stream` of the layer at the error point: its δ is the error itself, not a projection.
HEAD = -1


class Point(NamedTuple):
    """An opaque point: wants δh = e·B·scale.

    ``width``: its features D; ``stream``: of B; ``rows``: k, its rows for each error row (the
    projection is repeated over them and divided by √k); ``dtype``: of δh.
    """

    width: int
    stream: int
    rows: int
    dtype: torch.dtype


class Layer(NamedTuple):
    """What a fused linear layer saw in one forward pass.

    ``inputs``: x (N·k, K); ``saved``: what f′ is read from (N·k, D), the outputs h, or the
    preactivations a for gelu and silu; ``activation``: a name of ``dfa_kernels.activation``;
    ``stream``: of B, or ``HEAD``; ``rows``: k.
    """

    inputs: Tensor
    saved: Tensor
    activation: str
    stream: int
    rows: int


class Segment(NamedTuple):
    """One term of a gradient's sum: a layer's record, the error (N, E) that belongs to it, and
    the scale of that error's projection. Accumulation and several forward passes make several."""

    error: Tensor
    scale: float
    layer: Layer


class Rule(NamedTuple):
    """An optimizer's step on one parameter: ``states`` are updated in place beside it, and
    ``hyper`` names the columns of the table that comes with them."""

    states: tuple[str, ...]
    hyper: tuple[str, ...]


#: torch.optim's semantics. ``first``: 1 where the momentum buffer starts from this gradient.
RULES = {
    "sgd": Rule(
        ("momentum_buffer",),
        ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "first"),
    ),
    "adamw": Rule(
        ("exp_avg", "exp_avg_sq"),
        ("lr", "beta1", "beta2", "eps", "weight_decay", "maximize", "step"),
    ),
}


class Update(NamedTuple):
    """A parameter that is stepped in place: its optimizer state and its row of the rule's table.

    ``hyper``: numbers; or, in every update of a call, a row in memory: contiguous, float64, on the
    parameter's device, and read when the step runs there, not before. A CUDA graph that holds the
    step reads what is in it at each replay.
    ``copy``: where the stepped parameter is written once more, rounded to the nearest of the copy's
    dtype; ``parameter`` is then the fp32 master of a model's bf16 or fp16 weight.
    """

    parameter: Tensor
    states: tuple[Tensor, ...]
    hyper: Sequence[float] | Tensor
    copy: Tensor | None = None


class LayerUpdate(NamedTuple):
    """A weight (D, K), its bias (D,) if it has one, and the segments that their gradients sum."""

    weight: Update
    bias: Update | None
    segments: list[Segment]


def written(updates: Sequence[LayerUpdate]) -> list[Tensor]:
    """What a step writes to: parameters, states and copies."""
    made: list[Tensor] = []
    for weight, bias, _ in updates:
        for parameter, states, _, copy in (weight,) if bias is None else (weight, bias):
            made += (parameter, *states)
            if copy is not None:
                made.append(copy)
    return made


def distinct_rows(updates: Sequence[LayerUpdate]) -> tuple[list[Any], list[int]]:
    """The rows of hyperparameters that these updates have, one object once, in the order in which
    they come; and the place among them of each parameter's: weight, bias, weight, …"""
    places: dict[int, int] = {}
    rows: list[Any] = []
    row_of = []
    for weight, bias, _ in updates:
        for update in (weight,) if bias is None else (weight, bias):
            place = places.setdefault(id(update.hyper), len(rows))
            if place == len(rows):
                rows.append(update.hyper)
            row_of.append(place)
    return rows, row_of


class Repeated(NamedTuple):
    """A step of which all but its tensors and numbers is known: ``updates`` of one segment each,
    which hold no tensors; ``row_of``: as of `distinct_rows`."""

    updates: list[LayerUpdate]
    row_of: list[int]

    @classmethod
    def of(cls, updates: Sequence[LayerUpdate]) -> Repeated:
        kept = []
        none: Any = None
        for weight, bias, ((_, scale, layer),) in updates:
            segment = Segment(none, scale, layer._replace(inputs=none, saved=none))
            kept.append(LayerUpdate(weight, bias, [segment]))
        return cls(kept, distinct_rows(updates)[1])

    def whole(
        self, error: Tensor, inputs: Sequence[Tensor], saved: Sequence[Tensor], rows: Sequence[Any]
    ) -> list[LayerUpdate]:
        """The updates with these."""
        made, row_of = [], iter(self.row_of)
        for (weight, bias, (segment,)), x, h in zip(self.updates, inputs, saved, strict=True):
            _, scale, (_, _, activation, stream, k) = segment
            weight = _by(weight, rows[next(row_of)])
            bias = None if bias is None else _by(bias, rows[next(row_of)])
            segment = Segment(error, scale, Layer(x, h, activation, stream, k))
            made.append(LayerUpdate(weight, bias, [segment]))
        return made


def _by(update: Update, row: Any) -> Update:
    parameter, states, hyper, copy = update
    return update if hyper is row else Update(parameter, states, row, copy)


@runtime_checkable
class Backend(Protocol):
    """Whoever registers one offers ``project`` at least; what it lacks comes from the reference.

    ``project(error, feedback, scale, points) -> [δh (N·k, D), …]``
    ``gradients(error, feedback, scale, layers, dtype) -> [(dW, db), …]``
    ``step_(feedback, rule, updates) -> None``

    ``repeated(feedback, rule, updates) -> run``, where it has one:
    ``run(error, inputs, saved, rows)`` does what `step_` does with these updates, to the bit, where
    the one segment of each has that error and the layer's own of the other tensors, and ``rows``,
    numbers, stand for `distinct_rows`. Of those that it was prepared with, the tensors differ in
    nothing but N and what is in them, the rows in the first and last columns alone. None where the
    backend would gain nothing. No tensor of a segment may be kept.

    What a step has written to counts as written, as after most of torch's operations in place (see
    `torch.autograd.graph.increment_version`): a graph that has kept it refuses its backward pass.

    ``error`` is (N, E), of unit stride along E or not; ``scale`` multiplies e·B. Nothing that is
    returned may alias an argument, or another tensor that is returned. One that does not take every
    real floating dtype lists those of errors and parameters that it takes in ``dtypes``: with
    others an automatic choice passes it over.
    """

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot run on ``device``, in one sentence; None where it can."""

    def describe(self) -> str:
        """One line for ``dfa-kernels info``."""

    def project(
        self, error: Tensor, feedback: Feedback, scale: float, points: Sequence[Point]
    ) -> list[Tensor]: ...
