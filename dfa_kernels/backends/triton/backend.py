"""`project`, `gradients` and `step_` by the Triton kernels: checks and layouts, then launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfa_kernels.backends.contract import HEAD, Layer, LayerUpdate, Point, Segment, Update
from dfa_kernels.backends.triton import project, rules, update
from dfa_kernels.backends.triton.launch import Launcher
from dfa_kernels.backends.triton.layout import aligned, as_rows, check, padded
from dfa_kernels.backends.triton.update import Applied, Grouped, Term
from dfa_kernels.feedback import Feedback


class Kernels:
    """The three functions of `contract.Backend`."""

    def __init__(self) -> None:
        self._launcher = Launcher()

    def project(
        self, error: Tensor, feedback: Feedback, scale: float, points: Sequence[Point]
    ) -> list[Tensor]:
        error = as_rows(error)
        check(error, "the error")
        streams: dict[int, list[project.Target]] = {}
        made = []
        for p in points:
            out = error.new_empty((error.shape[0] * p.rows, p.width), dtype=p.dtype)
            check(out, f"δh of {p.width} features", p.rows)
            made.append(out)
            streams.setdefault(p.stream, []).append(project.Target(out, p.width, p.rows))
        groups = [project.Group(error, scale, s, targets) for s, targets in streams.items()]
        device = rules.device_of(error.device)
        self._launcher.run(project.launches(groups, feedback, device), error.device)
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
        grouped = []
        for weight, bias, segments in updates:
            own = None if bias is None else _in_rows(bias, copied)
            grouped.append(_Wanted(_in_rows(weight, copied), own, segments))
        self._run(feedback, rule, grouped)
        for original, changed in copied:
            original.copy_(changed)

    def _run(self, feedback: Feedback, rule: str, wanted: Sequence[_Wanted]) -> None:
        if not wanted:
            return
        device = wanted[0].weight.parameter.device
        known = rules.device_of(device)
        deltas = _Deltas(feedback, wanted)
        grouped = [
            Grouped(weight, bias, [deltas.term(s) for s in segments])
            for weight, bias, segments in wanted
        ]
        launches = project.launches(deltas.groups(), feedback, known)
        self._launcher.run(launches + update.launches(rule, feedback, grouped, known), device)


class _Wanted(NamedTuple):
    weight: Applied
    bias: Applied | None
    segments: list[Segment]


def _in_rows(given: Update, copied: list[tuple[Tensor, Tensor]]) -> Applied:
    """The parameter and its states as the kernels address them: rows of adjacent elements, the same
    strides for all. What is not so is copied, and ``copied`` says where it must go back to."""
    parameter, states, hyper = given
    for t in (parameter, *states):
        check(t, f"a parameter or state of shape {tuple(parameter.shape)}")
    tensors = [parameter, *states]
    strides = parameter.stride()
    if strides[-1] != 1 or any(s.numel() and s.stride() != strides for s in states):
        made = [t.contiguous() if t.numel() else t for t in tensors]
        copied += [(t, c) for t, c in zip(tensors, made, strict=True) if t is not c]
        tensors = made
    return Applied(tensors[0], tuple(tensors[1:]), None, hyper)


class _Deltas:
    """Where every segment's δ comes from: stored by `project`, made on the fly by `update`, or, at
    the error point, the error itself."""

    def __init__(self, feedback: Feedback, wanted: Sequence[_Wanted]) -> None:
        segments = [s for w in wanted for s in w.segments]
        self._fly = feedback.values is None and rules.on_the_fly(
            max((s.error.shape[1] for s in segments), default=1),
            max((w.weight.parameter.shape[1] for w in wanted), default=1),
            all(
                rules.tensor_cores(torch.promote_types(s.error.dtype, s.layer.saved.dtype))
                for s in segments
            ),
        )
        self._errors: dict[int, Tensor] = {}
        self._targets: dict[tuple[int, float, int], list[project.Target]] = {}

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
        if stream == HEAD and activation == "identity" and error.dtype == saved.dtype:
            if aligned(error):
                return Term(x, error)
        width = saved.shape[1]
        delta = saved.new_empty((saved.shape[0], padded(width, saved.dtype)))
        key = (id(given), scale, stream)
        self._targets.setdefault(key, []).append(
            project.Target(delta, width, rows, saved, activation)
        )
        return Term(x, delta)

    def groups(self) -> list[project.Group]:
        """What `project` must make of the terms so far."""
        return [
            project.Group(self._errors[error], scale, stream, targets)
            for (error, scale, stream), targets in self._targets.items()
        ]
