"""What an operation must do at the least, from the mathematics: flops, and bytes of device memory.

Each input is read once and each output written once; B is made in registers and is no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class Work(NamedTuple):
    """Floating-point operations of the matrix products, and bytes moved."""

    flops: int
    bytes: int


class Floor(NamedTuple):
    """The least milliseconds that `Work` can take, and what takes them: "memory" or "products"."""

    ms: float
    bound: str


def project(
    rows: int, error: int, widths: Sequence[int], shared: bool, size: int, saved: bool = True
) -> Work:
    """δ = (e·B·scale) ⊙ f′(saved) for layers of ``widths``; ``size``: bytes of an element.

    ``shared``: one product for all, as wide as the widest. ``saved``: f′ is read from a tensor
    beside the one that is written; opaque points write alone.
    """
    columns = max(widths) if shared else sum(widths)
    moved = rows * error + rows * sum(widths) * (2 if saved else 1)
    return Work(2 * rows * error * columns, moved * size)


def update(
    rows: int, sizes: Sequence[tuple[int, int]], size: int, parameter: int, states: int
) -> Work:
    """dW = δᵀ·x and the optimizer's step in place, for weights (D, K) and biases (D,).

    ``size``: bytes of an element of δ and x; ``parameter``: of a parameter and each of its
    ``states``, which are read and written.
    """
    flops = sum(2 * rows * d * k for d, k in sizes)
    read = sum(rows * (d + k) for d, k in sizes) * size
    stepped = sum(d * k + d for d, k in sizes) * parameter * 2 * (1 + states)
    return Work(flops, read + stepped)


def store(rows: int, sizes: Sequence[tuple[int, int]], size: int, parameter: int) -> Work:
    """dW = δᵀ·x and db, written."""
    flops = sum(2 * rows * d * k for d, k in sizes)
    read = sum(rows * (d + k) for d, k in sizes) * size
    return Work(flops, read + sum(d * k + d for d, k in sizes) * parameter)


def forward(rows: int, sizes: Sequence[tuple[int, int]]) -> int:
    """Flops of a network's forward pass."""
    return sum(2 * rows * d * k for d, k in sizes)


def backpropagation(rows: int, sizes: Sequence[tuple[int, int]]) -> int:
    """Flops of a step: forward, dW, and Wᵀδ for all but the first layer."""
    first = 2 * rows * sizes[0][0] * sizes[0][1]
    return 3 * forward(rows, sizes) - first


def direct_feedback(rows: int, sizes: Sequence[tuple[int, int]], error: int) -> int:
    """Flops of a step: forward, dW, and one projection as wide as the widest hidden layer."""
    widest = max((d for d, _ in sizes[:-1]), default=0)
    return 2 * forward(rows, sizes) + 2 * rows * error * widest


def products(
    method: str, rows: int, sizes: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """The three sides of each matrix product of an MLP's step by "bp" or "dfa"."""
    made = [(rows, d, k) for d, k in sizes] * 2  # forward, and dW
    if method == "dfa":
        widest = max((d for d, _ in sizes[:-1]), default=0)
        return [*made, (rows, sizes[-1][0], widest)]
    return [*made, *((rows, d, k) for d, k in sizes[1:])]


def step(
    method: str, rows: int, sizes: Sequence[tuple[int, int]], size: int, parameter: int, states: int
) -> Work:
    """A whole training step of an MLP by "bp" or "dfa", at the least.

    Each layer reads its weights and input and writes its output; the loss reads the logits and
    writes the error; the way back reads what the forward pass kept and writes every δ; the update
    reads δ and x, and reads and writes parameters and ``states``. Backpropagation reads all weights
    but the first once more. ``size`` and ``parameter``: bytes of an element, as in `update`.
    """
    widths = [d for d, _ in sizes]
    parameters = sum(d * k + d for d, k in sizes) * parameter
    ahead = parameters + rows * sum(d + k for d, k in sizes) * size
    loss = 2 * rows * widths[-1] * size
    if method == "dfa":
        back = project(rows, widths[-1], widths[:-1], True, size).bytes
        flops = direct_feedback(rows, sizes, widths[-1])
    else:
        weights = sum(d * k for d, k in sizes[1:]) * parameter
        back = weights + rows * sum(above + 2 * d for d, above in pairwise(widths)) * size
        flops = backpropagation(rows, sizes)
    last = update(rows, sizes, size, parameter, states)
    return Work(flops, ahead + loss + back + last.bytes)


def floor(work: Work, copy: float, rate: float) -> Floor:
    """``copy``: bytes a second, read and written; ``rate``: flops a second of large products."""
    memory, products = work.bytes / copy * 1e3, work.flops / rate * 1e3
    return Floor(memory, "memory") if memory >= products else Floor(products, "products")


def performed(run: Callable[[], object]) -> int:
    """Flops of the matrix products that PyTorch performs in a run, as its FlopCounterMode counts
    them; those that accumulate in place are products too."""
    with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter:
        run()
    return counter.get_total_flops()


def _product(total: tuple, a: tuple[int, int], b: tuple[int, int], **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


_IN_PLACE = {torch.ops.aten.addmm_: _product}


class _Launches(TorchDispatchMode):
    """Counts the operations that compute something: not those that return a view."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def launched(run: Callable[[], object]) -> int:
    """How many operations PyTorch hands to the device in a run; views are none."""
    with _Launches() as counter:
        run()
    return counter.count
