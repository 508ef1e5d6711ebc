"""What a result is compared with, element by element, and how far off it may be.

Three-way oracle. The truth is the reference in fp64; plain PyTorch in the tensors' own dtype shows
what error that dtype costs; a backend may err twice as much, element by element, plus what rounding
δ and accumulating in another order may add, which grows as √N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dfa_kernels.backends.contract import HEAD, Layer, LayerUpdate
from dfa_kernels.feedback import Feedback


def check_near(what: str, made: Tensor, plain: Tensor, truth: Tensor, slack: Tensor) -> None:
    """``made`` errs no more than twice as much as ``plain`` does, and ``slack`` beside.

    Raises:
        AssertionError: naming ``what``, the first element, and the numbers.
    """
    made, plain = made.double(), plain.double()
    eps = torch.finfo(torch.float32).eps if made.numel() else 0.0
    allowed = 2 * (plain - truth).abs() + slack + eps * truth.abs()
    excess = (made - truth).abs() - allowed
    wrong = ~(excess <= 0)
    if not wrong.any():
        return
    index = tuple(int(i) for i in wrong.nonzero()[0])
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are off; at {index} "
        f"{made[index].item():.9g}, plain PyTorch {plain[index].item():.9g}, truth "
        f"{truth[index].item():.9g}, allowed error {allowed[index].item():.3g}"
    )


def check_apart(made: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Each has memory of its own, as a compiler counts on and whoever writes to a gradient."""
    places = [t.untyped_storage().data_ptr() for t in (*made, *given) if t.numel()]
    own = [t.untyped_storage().data_ptr() for t in made if t.numel()]
    shared = sum(places.count(place) > 1 for place in own)
    assert not shared, (
        f"{shared} of {len(made)} results share memory with each other or with an argument"
    )


def check_same(what: str, first: Tensor, second: Tensor) -> None:
    assert torch.equal(first, second), f"{what}: the same inputs gave other bits the second time"


def rounding_noise(rows: int, dtype: torch.dtype) -> float:
    """What rounding δ once and summing ``rows`` terms in any order may add, in units of the
    root of the sum of squares of the terms."""
    return 4 * torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * math.sqrt(rows)


def spread_of_terms(
    error: Tensor, feedback: Feedback, scale: float, layer: Layer
) -> tuple[Tensor, ...]:
    """√Σₙ (|δ|·x)² and √Σₙ δ², with |δ| at its largest where f′ multiplies a cancelling sum."""
    rows = layer.inputs.shape[0]
    if layer.stream == HEAD:
        delta = error.abs()
    else:
        norm = error.norm(dim=1, keepdim=True).repeat_interleave(layer.rows, 0)
        delta = (norm * scale).expand(rows, layer.saved.shape[1])
    return ((delta**2).T @ layer.inputs**2).sqrt(), (delta**2).sum(0).sqrt()


def uncounted(updates: Sequence[LayerUpdate], step: Callable[..., object], *given: Any) -> int:
    """Take a step: how many parameters and copies it has written to unseen by a graph that has kept
    what was there before."""
    steps = [u for weight, bias, _ in updates for u in (weight, bias) if u is not None]
    written = [t for u in steps for t in (u.parameter, u.copy) if t is not None]
    before = [t._version for t in written]
    step(*given)
    return sum(t._version == version for t, version in zip(written, before, strict=True))


def check_counted(unseen: int) -> None:
    """``unseen``: of `uncounted`."""
    assert not unseen, (
        f"a step wrote to {unseen} parameters and copies without counting it: call "
        "torch.autograd.graph.increment_version"
    )
