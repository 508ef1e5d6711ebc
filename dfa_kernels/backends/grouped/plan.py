"""What the launches of `project` and `update` are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfa_kernels.backends.contract import HEAD


class Target(NamedTuple):
    """Who reads a projection: ``out`` (N·k, ≥ width) is written, zeros beyond ``width``;
    ``saved`` (N·k, width), None for an opaque point."""

    out: Tensor
    width: int
    rows: int
    saved: Tensor | None = None
    activation: str = "identity"


class Group(NamedTuple):
    """An error (N, E), its scale, a stream of B or ``HEAD``, and who reads the product."""

    error: Tensor
    scale: float
    stream: int
    targets: list[Target]


class Term(NamedTuple):
    """A segment of a gradient's sum: ``inputs`` x (N, K), and ``delta`` δ (N, ≥ D), zeros beyond D
    and of aligned rows; or, for δ made on the fly, ``saved`` (N, D) and where δ comes from."""

    inputs: Tensor
    delta: Tensor
    error: Tensor | None = None
    scale: float = 1.0
    stream: int = HEAD
    activation: str = "identity"
    rows: int = 1


class Applied(NamedTuple):
    """A parameter, its states and its low-precision copy; ``hyper``: its row of the rule's, or
    where that is in memory."""

    parameter: Tensor
    states: tuple[Tensor, ...] = ()
    copy: Tensor | None = None
    hyper: Sequence[float] | Tensor = ()


class Grouped(NamedTuple):
    """A weight (D, K) with rows of adjacent elements, its bias (D,), and what their gradients sum;
    states and copies have the strides of their parameter."""

    weight: Applied
    bias: Applied | None
    terms: list[Term]


def of_one_dtype(
    groups: Sequence[Group],
) -> dict[tuple[torch.dtype, torch.dtype], list[Group]]:
    """The groups by the dtypes of their error and their targets, which a launch has one of each."""
    classes: dict[tuple[torch.dtype, torch.dtype], list[Group]] = {}
    for group in groups:
        for target in group.targets:
            kept = classes.setdefault((group.error.dtype, target.out.dtype), [])
            same = kept and kept[-1].error is group.error and kept[-1][1:3] == group[1:3]
            if not same:
                kept.append(group._replace(targets=[]))
            kept[-1].targets.append(target)
    return classes
