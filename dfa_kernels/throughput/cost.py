"""What a step costs on a device, from a few constants that were measured there.

    ms = gflop·G + activation_mb·A + output_mb·O + parameter_mb·P + layer·(L + 1) + step

G: the flops of the step's products (`counting`); A, O, P: the bytes of all hidden activations, of
the logits, of the parameters, each as often read and written as the contestant's way of stepping
asks for, which is what its constant says; L: hidden layers, each of which launches the same number
of operations; and what a step takes whatever its size. A constant is at least 0. Each contestant
has its own: what an optimizer or a module adds is in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from dfa_kernels.throughput import counting
from dfa_kernels.throughput.contestants import PRECISIONS
from dfa_kernels.throughput.networks import MLP, Shape


class Constants(NamedTuple):
    """Milliseconds of each unit: see the top of this file."""

    gflop: float
    activation_mb: float
    output_mb: float
    parameter_mb: float
    layer: float
    step: float


class Sample(NamedTuple):
    """A measured step."""

    shape: Shape
    ms: float


def units(shape: Shape, method: str, precision: str) -> Constants:
    """How many of each unit a step has."""
    task = MLP.of(shape)
    sizes, itemsize = task.sizes(), PRECISIONS[precision].itemsize
    if method == "bp":
        flops = counting.backpropagation(shape.batch, sizes)
    else:
        flops = counting.direct_feedback(shape.batch, sizes, shape.outputs)
    parameters = sum(d * k + d for d, k in sizes)
    return Constants(
        flops / 1e9,
        shape.batch * shape.width * shape.depth * itemsize / 1e6,
        shape.batch * shape.outputs * itemsize / 1e6,
        parameters * itemsize / 1e6,
        shape.depth + 1,
        1,
    )


def predict(constants: Constants, shape: Shape, method: str, precision: str) -> float:
    """Milliseconds of a step."""
    pairs = zip(constants, units(shape, method, precision), strict=True)
    return sum(constant * count for constant, count in pairs)


def fit(samples: Sequence[Sample], method: str, precision: str) -> Constants | None:
    """The constants whose relative errors are the least in their squares, none below 0; None where
    there are fewer samples than constants."""
    import numpy as np
    from scipy.optimize import nnls

    if len(samples) < len(Constants._fields):
        return None
    counts = np.array([units(s.shape, method, precision) for s in samples])
    times = np.array([s.ms for s in samples])
    relative = counts / times[:, None]
    scale = relative.max(axis=0)  # columns of one size: the solver's tolerance is absolute
    found, _ = nnls(relative / scale, np.ones(len(samples)))
    return Constants(*(found / scale).tolist())


def crossing(
    difference: Callable[[float], float], low: float, high: float
) -> tuple[float, bool] | None:
    """Where ``difference`` (of two times, at a value of an axis) changes its sign between ``low``
    and ``high``, and whether it grows there; None where it does not. The first one, from below."""
    steps = [low * (high / low) ** (i / 200) for i in range(201)]
    for a, b in pairwise(steps):
        if (difference(a) < 0) != (difference(b) < 0):
            grows = difference(b) > difference(a)
            for _ in range(60):
                middle = math.sqrt(a * b)
                if (difference(middle) < 0) == (difference(a) < 0):
                    a = middle
                else:
                    b = middle
            return math.sqrt(a * b), grows
    return None
