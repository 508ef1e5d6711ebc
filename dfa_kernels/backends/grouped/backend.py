"""`project`, `gradients` and `step_` by grouped kernels: checks and layouts, then launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from dfa_kernels.backends.contract import (
    HEAD,
    Layer,
    LayerUpdate,
    Point,
    Segment,
    Update,
    written,
)
from dfa_kernels.backends.grouped.hyper import COLUMNS
from dfa_kernels.backends.grouped.layout import aligned, as_rows, check, fits, padded
from dfa_kernels.backends.grouped.plan import Applied, Group, Grouped, Target, Term
from dfa_kernels.feedback import Feedback

#: Memory of a shape, for δ beside the outputs that are given.
Allocate = Callable[[Tensor, tuple[int, int]], Tensor]


def _new(like: Tensor, shape: tuple[int, int]) -> Tensor:
    return like.new_empty(shape)


class Kernels:
    """The three functions of `contract.Backend`.

    ``project``, ``update``: what has ``launches``, made of `plan`'s groups and updates; ``rules``:
    what has ``device_of``, ``on_the_fly`` and ``flies``; ``launcher.run`` starts launches in order.
    """

    def __init__(self, project: Any, update: Any, rules: Any, launcher: Any) -> None:
        self._project, self._update = project, update
        self._rules, self._launcher = rules, launcher

    def project(
        self, error: Tensor, feedback: Feedback, scale: float, points: Sequence[Point]
    ) -> list[Tensor]:
        error = as_rows(error)
        check(error, "the error")
        streams: dict[int, list[Target]] = {}
        made = []
        for p in points:
            out = error.new_empty((error.shape[0] * p.rows, p.width), dtype=p.dtype)
            check(out, f"δh of {p.width} features", p.rows)
            made.append(out)
            streams.setdefault(p.stream, []).append(Target(out, p.width, p.rows))
        groups = [Group(error, scale, s, targets) for s, targets in streams.items()]
        device = self._rules.device_of(error.device)
        self._launcher.run(self._project.launches(groups, feedback, device), error.device)
        return made

    def gradients(
        self,
        error: Tensor,
        feedback: Feedback,
        scale: float,
        layers: Sequence[Layer],
        dtype: torch.dtype,
    ) -> list[tuple[Tensor, Tensor]]:
        made = []
        grouped = []
        for layer in layers:
            height, width = layer.saved.shape[1], layer.inputs.shape[1]
            weight = error.new_empty((height, width), dtype=dtype)
            bias = error.new_empty(height, dtype=dtype)
            check(weight, f"dW of {height} × {width}")
            made.append((weight, bias))
            segment = Segment(error, scale, layer)
            grouped.append(_Wanted(Applied(weight), Applied(bias), [segment]))
        self._run(feedback, "store", grouped)
        return made

    def step_(self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]) -> None:
        copied: list[tuple[Tensor, Tensor]] = []
        self._run(feedback, rule, self._wanted(updates, copied))
        for original, changed in reversed(copied):
            original.copy_(changed)
        increment_version(written(updates))

    def _wanted(
        self, updates: Sequence[LayerUpdate], copied: list[tuple[Tensor, Tensor]]
    ) -> list[_Wanted]:
        """The updates as the kernels take them; ``copied``: what must go back to where it was."""
        grouped = []
        for weight, bias, segments in updates:
            _check(weight)
            if bias is not None:
                _check(bias)
                _check_rows(weight, bias)
                weight, bias = _alike(weight, bias, copied)
            own = None if bias is None else _in_rows(bias, copied)
            grouped.append(_Wanted(_in_rows(weight, copied), own, segments))
        return grouped

    def _run(self, feedback: Feedback, rule: str, wanted: Sequence[_Wanted]) -> None:
        if wanted:
            planned = self._plan(feedback, rule, wanted)
            self._launcher.run(planned.launches, wanted[0].weight.parameter.device)

    def _plan(
        self,
        feedback: Feedback,
        rule: str,
        wanted: Sequence[_Wanted],
        allocate: Allocate = _new,
    ) -> Planned:
        """Launches of `project`, if δ is stored, and of `update`."""
        device = wanted[0].weight.parameter.device
        known = self._rules.device_of(device)
        deltas = _Deltas(self._rules, feedback, wanted, allocate)
        grouped = [
            Grouped(weight, bias, [deltas.term(s) for s in segments])
            for weight, bias, segments in wanted
        ]
        projected = deltas.groups()
        launches = self._project.launches(projected, feedback, known)
        launches += self._update.launches(rule, feedback, grouped, known)
        return Planned(launches, projected, grouped)


class Planned(NamedTuple):
    """Launches, and what their addresses belong to: to be held until they have been started."""

    launches: list[Any]
    projected: list[Group]
    grouped: list[Grouped]


class _Wanted(NamedTuple):
    weight: Applied
    bias: Applied | None
    segments: list[Segment]


def _check(given: Update) -> None:
    for t in (given.parameter, *given.states, given.copy):
        if t is not None and not fits(t):
            check(t, f"a parameter, state or copy of shape {tuple(given.parameter.shape)}")
    row = given.hyper
    if type(row) is Tensor:
        device = given.parameter.device
        if row.dtype != torch.float64 or row.shape != (COLUMNS,) or row.device != device:
            raise ValueError(
                f"a row of hyperparameters in memory must be {COLUMNS} float64 on {device}, got "
                f"{str(row.dtype).removeprefix('torch.')} of shape {tuple(row.shape)} on "
                f"{row.device}"
            )
        if row.stride() != (1,):
            raise ValueError(
                f"a row of hyperparameters in memory must be contiguous, got stride {row.stride()}"
            )


def _check_rows(weight: Update, bias: Update) -> None:
    if (type(weight.hyper) is Tensor) != (type(bias.hyper) is Tensor):
        raise ValueError(
            f"the hyperparameters of a weight of shape {tuple(weight.parameter.shape)} and of its "
            "bias must both be numbers or both rows in memory"
        )


def _in_rows(given: Update, copied: list[tuple[Tensor, Tensor]]) -> Applied:
    """The parameter and what goes with it as the kernels address them: rows of adjacent elements,
    the same strides for all. What is not so is copied, and ``copied`` says where it must go back
    to."""
    parameter, states, hyper, copy = given
    tensors = [parameter, *states] if copy is None else [parameter, *states, copy]
    strides = parameter.stride()
    if strides[-1] != 1 or any(t.numel() and t.stride() != strides for t in tensors):
        made = [t.contiguous() if t.numel() else t for t in tensors]
        copied += [(t, c) for t, c in zip(tensors, made, strict=True) if t is not c]
        tensors = made
    if copy is not None:
        copy = tensors.pop()
    return Applied(tensors[0], tuple(tensors[1:]), copy, hyper)


def _alike(
    weight: Update, bias: Update, copied: list[tuple[Tensor, Tensor]]
) -> tuple[Update, Update]:
    """Both in the wider of their dtypes, for a kernel is compiled for one; copies too. ``copied``
    says what must go back to where it came from."""
    own, other = _dtypes(weight), _dtypes(bias)
    if own != other:
        wider = [torch.promote_types(a, b) for a, b in zip(own, other, strict=True)]
        weight, bias = _cast(weight, wider, copied), _cast(bias, wider, copied)
    wanted = None if weight.copy is None else weight.copy.dtype
    if bias.copy is not None and bias.copy.dtype != wanted:
        copied.append((bias.copy, bias.parameter))
        bias = bias._replace(copy=None)
    return weight, bias


def _dtypes(given: Update) -> list[torch.dtype]:
    return [t.dtype for t in (given.parameter, *given.states)]


def _cast(given: Update, dtypes: list[torch.dtype], copied: list[tuple[Tensor, Tensor]]) -> Update:
    made = []
    for tensor, dtype in zip((given.parameter, *given.states), dtypes, strict=True):
        made.append(tensor.to(dtype))
        if made[-1] is not tensor:
            copied.append((tensor, made[-1]))
    return given._replace(parameter=made[0], states=tuple(made[1:]))


class _Deltas:
    """Where every segment's δ comes from: stored by `project`, made on the fly by `update`, or, at
    the error point, the error itself."""

    def __init__(
        self,
        rules: Any,
        feedback: Feedback,
        wanted: Sequence[_Wanted],
        allocate: Allocate,
    ) -> None:
        self._allocate = allocate
        segments = [s for w in wanted for s in w.segments]
        self._fly = feedback.values is None and rules.on_the_fly(
            max((s.error.shape[1] for s in segments), default=1),
            max((w.weight.parameter.shape[1] for w in wanted), default=1),
        )
        self._fly = self._fly and all(
            rules.flies(s.error.dtype, s.layer.saved.dtype) for s in segments
        )
        self._errors: dict[int, Tensor] = {}
        self._targets: dict[tuple[int, float, int], list[Target]] = {}

    def term(self, segment: Segment) -> Term:
        """The segment as `update` takes it."""
        given, scale, (inputs, saved, activation, stream, rows) = segment
        error = self._errors.get(id(given))
        if error is None:
            error = self._errors[id(given)] = as_rows(given)
            check(error, "the error")
        x, saved = as_rows(inputs, saved.dtype), as_rows(saved)
        check(x, "a layer's input")
        check(saved, "a layer's output", rows)
        if self._fly:
            return Term(x, saved, error, scale, stream, activation, rows)
        itself = stream == HEAD and activation == "identity" and error.dtype == saved.dtype
        if itself and aligned(error):
            return Term(x, error)
        width = saved.shape[1]
        delta = self._allocate(saved, (saved.shape[0], padded(width, saved.dtype)))
        key = (id(given), scale, stream)
        self._targets.setdefault(key, []).append(Target(delta, width, rows, saved, activation))
        return Term(x, delta)

    def groups(self) -> list[Group]:
        """What `project` must make of the terms so far."""
        return [
            Group(self._errors[error], scale, stream, targets)
            for (error, scale, stream), targets in self._targets.items()
        ]
