"""The reference backend: pure PyTorch, the definition of what is right. Any device, any dtype.

    project     δh = e·B·scale
    gradients   δ  = (e·B·scale) ⊙ f′,   dW = δᵀ·x,   db = Σₙ δ
    step_       the same, straight into the weights and the optimizer's state

It keeps the materialised B it used last (`_Matrices`), which the kernels to come never store.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.backends.contract import HEAD, RULES, Layer, LayerUpdate, Point, Segment, Update
from dfa_kernels.feedback import DISTRIBUTIONS, Feedback

_BACKWARDS = {f.name: f.backward for f in ACTIVATIONS}


# A B of more bytes than `_COMPACT` is kept in the distribution's smallest exact dtype, ±1 in one
# byte, and widened `_SLAB` bytes at a time inside the product: memory for a little time.
_COMPACT, _SLAB = 64 << 20, 4 << 20


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
        storage = DISTRIBUTIONS[feedback.distribution].storage
        if storage is not None and rows * width * dtype.itemsize > _COMPACT:
            dtype = storage
        key = (feedback.distribution, feedback.seed, stream, rows, dtype, device)
        matrix = self._kept.get(key)
        if matrix is None or matrix.shape[1] < width:
            matrix = feedback.matrix(rows, width, stream, dtype=dtype, device=device)
            self._kept[key] = matrix
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and self.bytes() > self.limit:
            self._kept.popitem(last=False)
        return matrix[:, :width]

    def bytes(self) -> int:
        return sum(m.numel() * m.element_size() for m in self._kept.values())

    def clear(self) -> None:
        self._kept.clear()


class _Projections:
    """e·B·scale for every segment of one call: one product for each error and stream, as wide as
    the widest layer that reads it."""

    def __init__(self, feedback: Feedback, matrices: _Matrices) -> None:
        self._feedback, self._matrices = feedback, matrices
        self._widths: dict[tuple[int, float, int], int] = {}
        self._made: dict[tuple[int, float, int, torch.dtype], Tensor] = {}
        self._ones: dict[tuple, Tensor] = {}

    def ones(self, delta: Tensor) -> Tensor:
        """As many as ``delta`` has rows, once for all that ask."""
        key = delta.shape[0], delta.dtype, delta.device
        made = self._ones.get(key)
        if made is None:
            made = self._ones[key] = delta.new_ones(delta.shape[0])
        return made

    def expect(self, error: Tensor, scale: float, stream: int, width: int) -> None:
        """Announce a reader, before the first is served."""
        key = (id(error), scale, stream)
        self._widths[key] = max(width, self._widths.get(key, 0))

    def __call__(
        self, error: Tensor, scale: float, stream: int, width: int, rows: int, dtype: torch.dtype
    ) -> Tensor:
        """δh (N·k, D), in the wider of the error's dtype and ``dtype``."""
        if error.dtype != dtype:
            dtype = torch.promote_types(error.dtype, dtype)
        key = (id(error), scale, stream, dtype)
        made = self._made.get(key)
        if made is None:
            wide = error.to(dtype)
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


def _scaled_product(error: Tensor, matrix: Tensor, scale: float) -> Tensor:
    """e·B·scale, B widened to the error's dtype a slab at a time where it is kept in another."""
    nothing = error.new_empty(())
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


def _expect(segments: Iterable[Segment], projections: _Projections) -> None:
    for error, scale, (_, saved, _, stream, _) in segments:
        if stream != HEAD:
            projections.expect(error, scale, stream, saved.shape[1])


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
        projections = _Projections(feedback, self.matrices)
        segments = [Segment(error, scale, layer) for layer in layers]
        _expect(segments, projections)
        made = []
        for segment in segments:
            delta = _delta(segment, projections)
            inputs = segment.layer.inputs
            made.append((_product(delta, inputs, dtype), delta.sum(0, dtype=dtype)))
        return made

    def step_(self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]) -> None:
        projections = _Projections(feedback, self.matrices)
        scratch = _Scratch(_STEPS[rule])
        for update in updates:
            _expect(update.segments, projections)
        for weight, bias, segments in updates:
            terms = [(_delta(s, projections), s.layer.inputs) for s in segments]
            if rule == "sgd" and _is_linear(weight, terms):
                _accumulate(weight, terms)
            else:
                _step_rows(weight, terms, scratch)
            if bias is None:
                continue
            if rule == "sgd" and _is_linear(bias, terms):
                _accumulate(bias, [(delta, projections.ones(delta)) for delta, _ in terms])
            else:
                _step_vector(bias, terms, scratch)
        scratch.flush()


# The optimizers' steps, as torch.optim defines them --------------------------------------------


class _Piece(NamedTuple):
    """A parameter, or a slice of its rows, with its gradient g and its states."""

    p: Tensor
    g: Tensor
    states: tuple[Tensor, ...]


def _sgd_(pieces: list[_Piece], hyper: Sequence[float]) -> None:
    """buf ← μ·buf + (1−τ)·(g + λ·p),  p ← p − γ·buf  (Nesterov: p ← p − γ·(g + λ·p + μ·buf))."""
    lr, momentum, dampening, decay, nesterov, maximize, first = hyper
    for p, g, states in pieces:
        if maximize:
            g = -g
        if decay:
            g = g.add(p, alpha=decay)
        if momentum:
            (buffer,) = states
            if first:
                buffer.copy_(g)
            else:
                buffer.mul_(momentum).add_(g, alpha=1 - dampening)
            g = g.add(buffer, alpha=momentum) if nesterov else buffer
        p.add_(g, alpha=-lr)


def _adamw_(pieces: list[_Piece], hyper: Sequence[float]) -> None:
    """Loshchilov & Hutter 2019, algorithm 2: decoupled decay, bias-corrected moments."""
    lr, beta1, beta2, eps, decay, maximize, step = hyper
    device = pieces[0].p.device
    if device.type in ("cpu", "cuda"):  # torch has it in one pass there
        parameters, gradients, states = zip(*pieces, strict=True)
        means, squares = zip(*states, strict=True)
        count = torch.tensor(step, device=device)
        torch._fused_adamw_(
            parameters, gradients, means, squares, [], [count] * len(pieces), lr=lr, beta1=beta1,
            beta2=beta2, weight_decay=decay, eps=eps, amsgrad=False, maximize=bool(maximize),
        )  # fmt: skip
        return
    for p, g, (mean, square) in pieces:
        if maximize:
            g = -g
        p.mul_(1 - lr * decay)
        mean.lerp_(g, 1 - beta1)
        square.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
        p.addcdiv_(mean, root, value=-lr / (1 - beta1**step))


_Rule = Callable[[list[_Piece], Sequence[float]], None]
_STEPS: dict[str, _Rule] = {"sgd": _sgd_, "adamw": _adamw_}


# Gradients: a slice of rows at a time, never all of a large weight's ---------------------------

# Elements of a slice: 1 MiB of fp32 stays in the second-level cache between the product that makes
# it and the step that reads it.
_SLICE = 1 << 18


class _Scratch:
    """Pieces that wait for one call of the rule: small layers share it, and the gradients that
    exist at once are bounded by two slices whatever the network."""

    def __init__(self, rule: _Rule) -> None:
        self._rule = rule
        self._waiting: dict[tuple[float, ...], list[_Piece]] = {}
        self._elements = 0

    def add(self, piece: _Piece, hyper: Sequence[float]) -> None:
        self._waiting.setdefault(tuple(hyper), []).append(piece)
        self._elements += piece.g.numel()
        if self._elements >= _SLICE:
            self.flush()

    def flush(self) -> None:
        for hyper, pieces in self._waiting.items():
            self._rule(pieces, hyper)
        self._waiting, self._elements = {}, 0


def _product(delta: Tensor, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """dW = δᵀ·x (D, K), or those of its rows whose δ is given."""
    return (delta.T @ inputs.to(delta.dtype)).to(dtype)


def _step_rows(weight: Update, terms: Sequence[tuple[Tensor, Tensor]], scratch: _Scratch) -> None:
    parameter, states, hyper = weight
    height, width = parameter.shape
    rows = max(1, _SLICE // max(1, width))
    for start in range(0, height, rows):
        here = slice(start, start + rows)
        (delta, inputs), *more = terms
        gradient = _product(delta[:, here], inputs, parameter.dtype)
        for delta, inputs in more:
            gradient += _product(delta[:, here], inputs, parameter.dtype)
        slices = tuple(s[here] if s.numel() else s for s in states)
        scratch.add(_Piece(parameter[here], gradient, slices), hyper)


def _step_vector(bias: Update, terms: Sequence[tuple[Tensor, Tensor]], scratch: _Scratch) -> None:
    parameter, states, hyper = bias
    (delta, _), *more = terms
    gradient = delta.sum(0, dtype=parameter.dtype)
    for delta, _ in more:
        gradient += delta.sum(0, dtype=parameter.dtype)
    scratch.add(_Piece(parameter, gradient, states), hyper)


def _is_linear(update: Update, terms: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether SGD's step is linear in the gradient, and in one dtype throughout."""
    if update.hyper[_NESTEROV]:
        return False
    dtype = update.parameter.dtype
    return all(delta.dtype == dtype == inputs.dtype for delta, inputs in terms)


_NESTEROV = RULES["sgd"].hyper.index("nesterov")


def _accumulate(update: Update, terms: Sequence[tuple[Tensor, Tensor]]) -> None:
    """SGD without even a slice of dW: δᵀ·x goes straight into the momentum buffer, or the weight.
    A bias is a weight whose input is 1."""
    parameter, states, (lr, momentum, dampening, decay, _, maximize, first) = update
    if momentum:
        target, gain = states[0], 1.0 if first else 1 - dampening
        beta = 0.0 if first else momentum
    else:
        target, gain, beta = parameter, -lr, 1 - lr * decay
    add = target.addmm_ if target.dim() == 2 else target.addmv_
    for delta, inputs in terms:
        add(delta.T, inputs, beta=beta, alpha=-gain if maximize else gain)
        beta = 1.0
    if momentum:
        if decay:
            target.add_(parameter, alpha=gain * decay)
        parameter.add_(target, alpha=-lr)
