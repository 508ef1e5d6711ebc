"""What the device can do at most, measured in the same run: a large copy, large products, and the
smallest operation. Each is the best of several rounds: whatever disturbs one makes it slower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dfa_kernels.throughput.contestants import PRECISIONS
from dfa_kernels.throughput.result import Ceilings
from dfa_kernels.throughput.timing import Run, host, kernel, once, warm

#: Bytes of a copy's source: many times any cache; 4 GiB on a GPU.
_COPIED = {"cpu": 1 << 28, "cuda": 1 << 32}
#: Sides of a product, and the most milliseconds that one may take: not every CPU multiplies every
#: dtype by its own instructions.
_SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
_LONGEST = 500.0


def measure(device: torch.device, precisions: Sequence[str], seconds: float = 1.5) -> Ceilings:
    """``seconds``: for each figure, after a few rounds at the least."""
    source = torch.randn(_COPIED[_kind(device)] // 4, device=device)
    target = torch.empty_like(source)
    times = copying(source, target, seconds)
    gbps = 2 * source.nbytes / min(times) / 1e6
    del source, target
    tflops = {}
    for precision in precisions:
        rate = products(device, precision, seconds)
        if rate is not None:
            tflops[precision] = rate
    return Ceilings(gbps, tflops, min(host(smallest(device), device)))


def copying(
    source: torch.Tensor, target: torch.Tensor, seconds: float, least: int = 9
) -> list[float]:
    """Milliseconds of ``target`` ← ``source``."""
    return kernel(lambda: target.copy_(source), source.device, seconds, least)


def multiplying(
    device: torch.device, side: int, dtype: torch.dtype, seconds: float, least: int = 9
) -> list[float]:
    """Milliseconds of a product of two square matrices, on random data: zeros cost less power."""
    return kernel(product(device, side, dtype), device, seconds, least)


def product(device: torch.device, side: int, dtype: torch.dtype) -> Run:
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def products(device: torch.device, precision: str, seconds: float) -> float | None:
    """TFLOP/s of the largest product that takes a reasonable time; None where the device has none
    in this dtype. Under autocast it is bf16's."""
    dtype = torch.bfloat16 if precision == "autocast" else PRECISIONS[precision]
    chosen = None
    for side in _SIDES[_kind(device)]:
        try:
            run = product(device, side, dtype)
            warm(run, device, 1)
            took = once(run, device)
        except RuntimeError:
            return None
        chosen = side
        if 8 * took > _LONGEST:
            break
    assert chosen is not None
    return 2 * chosen**3 / min(multiplying(device, chosen, dtype, seconds)) / 1e9


def smallest(device: torch.device) -> Callable[[], object]:
    """An operation on one number: what it takes is the launch."""
    number = torch.zeros(1, device=device)
    return lambda: number.add_(1)


def _kind(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "cpu"
