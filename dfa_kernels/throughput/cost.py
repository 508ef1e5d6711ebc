"""What a step costs on a device, from a few constants that were measured there.

    ms = gflop·G + narrow·S + activation_mb·A + output_mb·O + parameter_mb·P + layer·(L + 1) + step

G: the flops of the step's products (`counting`); S: the same, each product's times √(1/m + 1/n +
1/k) of its sides, the square root of the elements that it has for each multiplication: a narrow one
uses less of what it reads again; A, O, P: the bytes of all hidden activations, of the logits, of
the parameters, each as often read and written as the contestant's way of stepping asks for, which
is what its constant says; L: hidden layers, each of which launches the same number of operations;
and what a step takes whatever its size. A constant is at least 0. Each contestant has its own: what
an optimizer or a module adds is in them.

On a GPU the host's launches hide behind the device's work, and the sum says too much where the two
take about as long.
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
    narrow: float
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
    products = counting.products(method, shape.batch, sizes)
    parameters = sum(d * k + d for d, k in sizes)
    return Constants(
        sum(2 * math.prod(sides) for sides in products) / 1e9,
        sum(2 * math.prod(s) * math.sqrt(sum(1 / side for side in s)) for s in products) / 1e9,
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


def crossing(difference: Callable[[int], float], low: int, high: int) -> tuple[int, bool] | None:
    """The first value after ``low``, up to ``high``, where ``difference`` (of two times, at a value
    of an axis) has changed its sign, and whether it grew there; None where it keeps it."""
    steps = sorted({round(low * (high / low) ** (i / 200)) for i in range(201)})
    for below, above in pairwise(steps):
        if (difference(below) < 0) != (difference(above) < 0):
            grows = difference(above) > difference(below)
            before = difference(below) < 0
            while above - below > 1:
                middle = (below + above) // 2
                if (difference(middle) < 0) == before:
                    below = middle
                else:
                    above = middle
            return above, grows
    return None
