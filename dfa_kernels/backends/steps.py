"""How the reference steps a layer from its δ and x: by SGD or AdamW, never holding dW whole.

SGD is linear in the gradient, so δᵀ·x goes straight into the momentum buffer (`_accumulate`); other
rules see a gradient, a slice of rows at a time (`_Scratch`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from dfa_kernels.backends.contract import RULES, Update
from dfa_kernels.backends.device_steps import DeviceScratch

#: (δ, x) of every segment that a layer's gradient sums.
Terms = Sequence[tuple[Tensor, Tensor]]


class Step:
    """One optimizer step over the layers that are added. Small layers share one call of the rule,
    so the last of them are not stepped before `flush`. A bias goes before its weight, whose product
    leaves little of δ in the caches."""

    def __init__(self, rule: str) -> None:
        self._rule, self._linear = rule, rule == "sgd"
        self._scratch = _Scratch(_STEPS[rule])
        self._copies: list[tuple[Tensor, Tensor]] = []

    def add(self, weight: Update, bias: Update | None, terms: Terms) -> None:
        if weight.copy is not None:
            self._copies.append((weight.copy, weight.parameter))
        if bias is not None and bias.copy is not None:
            self._copies.append((bias.copy, bias.parameter))
        scratch: _Scratch | DeviceScratch = self._scratch
        if type(weight.hyper) is Tensor:
            scratch = DeviceScratch(self._rule)
        elif self._linear and _accumulate(weight, bias, terms):
            return
        if bias is not None:
            _step_vector(bias, terms, scratch)
        _step_rows(weight, terms, scratch)

    def flush(self) -> None:
        self._scratch.flush()
        for copy, parameter in self._copies:
            copy.copy_(parameter)


@functools.lru_cache(maxsize=16)
def ones(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the bias's δᵀ is multiplied by: the same for every layer and step."""
    return torch.ones(length, dtype=dtype, device=device)


class _Piece(NamedTuple):
    """A parameter, or a slice of its rows, with its states and its gradient g, which the rule may
    overwrite."""

    p: Tensor
    g: Tensor
    states: tuple[Tensor, ...]


def _sgd_(pieces: list[_Piece], hyper: Sequence[float]) -> None:
    """buf ← μ·buf + (1−τ)·(g + λ·p),  p ← p − γ·buf  (Nesterov: p ← p − γ·(g + λ·p + μ·buf))."""
    lr, momentum, dampening, decay, nesterov, maximize, first = hyper
    for p, g, states in pieces:
        if maximize:
            g.neg_()
        if decay:
            g.add_(p, alpha=decay)
        if momentum:
            (buffer,) = states
            if first:
                buffer.copy_(g)
            else:
                buffer.mul_(momentum).add_(g, alpha=1 - dampening)
            g = g.add_(buffer, alpha=momentum) if nesterov else buffer
        p.add_(g, alpha=-lr)


def _adamw_(pieces: list[_Piece], hyper: Sequence[float]) -> None:
    """Loshchilov & Hutter 2019, algorithm 2: decoupled decay, bias-corrected moments."""
    lr, beta1, beta2, eps, decay, maximize, step = hyper
    device = pieces[0].p.device
    if device.type in ("cpu", "cuda"):  # torch has it in one pass there
        _fused_adamw_([piece for piece in pieces if _of_one_layout(piece)], hyper)
        pieces = [piece for piece in pieces if not _of_one_layout(piece)]
    for p, g, (mean, square) in pieces:
        if maximize:
            g.neg_()
        p.mul_(1 - lr * decay)
        mean.lerp_(g, 1 - beta1)
        square.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
        p.addcdiv_(mean, root, value=-lr / (1 - beta1**step))


def _of_one_layout(piece: _Piece) -> bool:
    """Whether element i of each lies at the same place: torch's fused step looks at no strides."""
    p, g, states = piece
    return p.stride() == g.stride() and all(s.stride() == g.stride() for s in states)


def _fused_adamw_(pieces: list[_Piece], hyper: Sequence[float]) -> None:
    if not pieces:
        return
    lr, beta1, beta2, eps, decay, maximize, step = hyper
    parameters, gradients, states = zip(*pieces, strict=True)
    means, squares = zip(*states, strict=True)
    count = torch.tensor(step, device=pieces[0].p.device)
    torch._fused_adamw_(
        parameters, gradients, means, squares, [], [count] * len(pieces), lr=lr, beta1=beta1,
        beta2=beta2, weight_decay=decay, eps=eps, amsgrad=False, maximize=bool(maximize),
    )  # fmt: skip
    increment_version((*parameters, *means, *squares))  # which torch's does not


_Rule = Callable[[list[_Piece], Sequence[float]], None]
_STEPS: dict[str, _Rule] = {"sgd": _sgd_, "adamw": _adamw_}


# Gradients: a slice of rows at a time, never all of a large weight's ---------------------------

# Elements of a slice: 2 MiB of fp32 stay in the caches between the product that makes it and the
# step that reads it; where slices are smaller, so are the products, and slower.
_SLICE = 1 << 19


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


def product(delta: Tensor, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """dW = δᵀ·x (D, K), or those of its rows whose δ is given."""
    return (delta.T @ inputs.to(delta.dtype)).to(dtype)


def _step_rows(weight: Update, terms: Terms, scratch: Any) -> None:
    parameter, states, hyper, _ = weight
    height, width = parameter.shape
    rows = max(1, _SLICE // max(1, width))
    if rows >= height:
        scratch.add(_Piece(parameter, _gradient(terms, parameter.dtype), states), hyper)
        return
    for start in range(0, height, rows):
        here = slice(start, start + rows)
        gradient = _gradient([(delta[:, here], x) for delta, x in terms], parameter.dtype)
        slices = tuple(s[here] if s.numel() else s for s in states)
        scratch.add(_Piece(parameter[here], gradient, slices), hyper)


def _gradient(terms: Terms, dtype: torch.dtype) -> Tensor:
    (delta, inputs), *more = terms
    gradient = product(delta, inputs, dtype)
    for delta, inputs in more:
        gradient += product(delta, inputs, dtype)
    return gradient


def _step_vector(bias: Update, terms: Terms, scratch: Any) -> None:
    parameter, states, hyper, _ = bias
    (delta, _), *more = terms
    gradient = delta.sum(0, dtype=parameter.dtype)
    for delta, _ in more:
        gradient += delta.sum(0, dtype=parameter.dtype)
    scratch.add(_Piece(parameter, gradient, states), hyper)


# SGD without even a slice of dW -----------------------------------------------------------------

_NESTEROV = RULES["sgd"].hyper.index("nesterov")


class Sum(NamedTuple):
    """A step that is linear in a gradient g: ``target ← beta·target + alpha·g``; then, for each of
    ``after``, a tensor, another and a number: ``tensor ← tensor + number·other``."""

    target: Tensor
    beta: float
    alpha: float
    after: Sequence[tuple[Tensor, Tensor, float]]


def accumulates(update: Update) -> bool:
    """Whether `linear` can express an SGD step: not Nesterov's, which reads g twice, and no numbers
    that are on the device."""
    return type(update.hyper) is not Tensor and not update.hyper[_NESTEROV]


def linear(parameter: Tensor, states: Sequence[Tensor], hyper: Any) -> Sum:
    """SGD's step by these numbers, g going straight into the momentum buffer or the parameter."""
    lr, momentum, dampening, decay, _, maximize, first = hyper
    if not momentum:
        return Sum(parameter, 1 - lr * decay, lr if maximize else -lr, ())
    (buffer,) = states
    gain = 1.0 if first else 1 - dampening
    after = [(parameter, buffer, -lr)]
    if decay:
        after.insert(0, (buffer, parameter, gain * decay))
    return Sum(buffer, 0.0 if first else momentum, -gain if maximize else gain, after)


def _accumulate(weight: Update, bias: Update | None, terms: Terms) -> bool:
    """δᵀ·x goes straight into the momentum buffer, or into the weight; a bias is a weight whose
    input is 1. False, and nothing done, where the step is not linear in the gradients, or not in
    one dtype throughout.

    All in one function: between two products every other that is called must be fetched again.
    """
    dtype = weight.parameter.dtype
    steps: list[tuple[Update, Callable[..., Tensor]]] = [(weight, torch.Tensor.addmm_)]
    if bias is not None:
        if bias.parameter.dtype is not dtype:
            return False
        steps.insert(0, (bias, torch.Tensor.addmv_))
    factors = []
    for delta, inputs in terms:
        if delta.dtype is not dtype or inputs.dtype is not dtype:
            return False
        factors.append((delta.T, inputs))
    for update, _ in steps:
        if update.hyper[_NESTEROV]:
            return False
    for update, add_ in steps:
        target, beta, alpha, after = linear(*update[:3])
        for turned, inputs in factors:
            if update is bias:
                inputs = ones(turned.shape[1], dtype, turned.device)
            add_(target, turned, inputs, beta=beta, alpha=alpha)
            beta = 1.0
        for tensor, other, number in after:
            tensor.add_(other, alpha=number)
    return True
