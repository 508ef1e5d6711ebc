"""The gate of `bench.machine_code`: what a kernel's machine code must be.

- No spills: no stack, no instruction that reads or writes it.
- Every 16-bit product is wgmma on sm_90, none anything else; on other GPUs it runs on tensor cores,
  and so does a tf32 product everywhere. One exception: where δ is made on the fly and some rows are
  not whole vectors, a tile has 32 rows (64 of them take more than 255 registers), fewer than the
  64 of a wgmma, and e·B, of E ≤ 32, is mma; δᵀ·x is not.
- Asynchronous copies of 128 bits or bulk ones feed every loop that multiplies, as many as its tiles
  take. Where rows are not whole vectors there can be none, for their addresses are not multiples of
  16 bytes, and nothing is asked; nor of gfx942, where tiles come by way of registers.
- Epilogues load and store parameters, states, `saved` and δ by vectors of 128 bits, of layers whose
  rows are whole vectors: at least as many as these tensors' tiles take. A low-precision copy is
  stored in 64 bits, since it follows the parameter's 128.
- Where the sum over N is split, on gfx942 every warp waits for its own stores before the barrier
  after which one of them tells the other programs that the part is there. NVIDIA's barrier and
  release order them for all.

Of the kernels of csrc/ the same is asked, by what their tiles say: one loop with the products of a
step (mma, or fused multiply-adds for fp32) and with the copies of the next, all of 128 bits. A
kernel of theirs holds every rule and dtype: it needs the vectors of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bench.machine_listing import PRODUCTS, Code

VECTOR = 16


def violations(kernel: str, C: dict[str, Any], code: Code, arch: str) -> list[str]:
    """What of the gate the code breaks, a sentence each; ``C``: what it was compiled for."""
    amd = arch.startswith("gfx")
    threads = code.warps * (64 if amd else 32)

    def vectors(dtype: Any, *shape: int) -> int:
        """How many whole ones a thread loads or stores of a tile."""
        return math.prod(shape) * dtype.primitive_bitwidth // 8 // VECTOR // threads

    found = [*_spilled(code), *_products(kernel, C, code, arch)]
    if kernel == "project":
        fed, whole = C["aligned"], C["whole"] != "none"
        copies = vectors(C["error"], C["n"], C["e"])
        if C["distribution"] == "matrix":
            copies += vectors(C["matrix"], C["e"], C["d"])
        stores = vectors(C["out"], C["n"], C["d"])
        loads = stores if C["codes"] != 1 else 0
    else:
        fed, whole = C["aligned"] == "all", C["aligned"] != "none"
        copies = vectors(C["x"], C["n"], C["k"])
        if not C["fly"]:
            copies += vectors(C["x"], C["n"], C["d"])
        parameter = vectors(C["parameter"], C["d"], C["k"])
        states = {"store": 0, "sgd": 1, "adamw": 2}[C["rule"]]
        stores = parameter + states * vectors(C["state"], C["d"], C["k"])
        loads = stores if states else 0
        if C["fly"] and C["codes"] != 1:  # in the loop with a bias's sum, and in that without
            loads += 2 * vectors(C["x"], C["n"], C["d"])
    if fed and not amd:
        found += _copies(C, code, copies)
    if whole:
        found += _narrow(code, loads, stores)
    if amd and kernel == "update" and C["split"]:
        found += _handed_over(code)
    return found


def built_violations(kernel: str, compute: str, size: str, tile: Any, code: Code) -> list[str]:
    """The same of a kernel of csrc/; ``tile``: what csrc/tables.h says of it."""
    itemsize = 2 if compute in ("bf16", "fp16") else 4
    scalar = compute == "fp32"
    if kernel == "project":
        copied, depth = tile.n * tile.k, 4 if scalar else 16  # of an innermost loop
        products = tile.n * tile.d * depth
        # Eight columns of every fourth of a warp's rows, of 16 bits or of 32: as many at once as
        # registers hold.
        rows, most = min(tile.n // 2, 32) // 4, 16 // itemsize
        loads = stores = min(rows, most) + 2 * (1 if itemsize == 2 else 2)
    else:
        copied = tile.n * (tile.d + tile.k)
        products = tile.d * tile.k * (1 if scalar else tile.n)
        # Four columns of a parameter, two states and a copy, or of dW: as many times at once as
        # make the loads of 256 threads.
        times = 256 // tile.threads
        loads, stores = 3 * times, (4 + 1) * times
    product = "fma" if scalar else "mma"
    of_one = 1 if scalar else 16 * 8 * (32 // itemsize) // 32  # m16n8k16 or k8, of a lane
    least = {
        product: products // of_one // tile.threads,
        "asynchronous 128": copied * itemsize // VECTOR // tile.threads,
    }
    found = [*_spilled(code)]
    main = [loop for loop in code.loops if all(loop.get(n, 0) >= c for n, c in least.items())]
    if not main:
        asked = " and ".join(f"{count} {name}" for name, count in least.items())
        found.append(f"no loop has the {asked} that its tiles take")
    if code.counts.get("asynchronous", 0) > code.counts.get("asynchronous 128", 0):
        found.append("copies of fewer than 128 bits")
    if size == "on the fly" and "mma" not in code.counts:
        found.append("no product on tensor cores")  # e·B, whatever the other is computed in
    return [*found, *_narrow(code, loads, stores)]


def _spilled(code: Code) -> Iterable[str]:
    if code.stack or code.spills:
        yield f"registers are spilled: {code.stack} bytes of stack, {code.spills} instructions"


def _handed_over(code: Code) -> Iterable[str]:
    all_, early = code.counts.get("hand-over", 0), code.counts.get("early hand-over", 0)
    if early or not all_:
        yield f"of {all_} hand-overs of a part {early} are while stores of it are under way"


def _narrow(code: Code, loads: int, stores: int) -> Iterable[str]:
    for name, least in (("load", loads), ("store", stores)):
        has = code.counts.get(f"{name} 128", 0)
        if has < least:
            yield f"{has} {name}s of 128 bits, where the tiles' take {least}"


def _products(kernel: str, C: dict[str, Any], code: Code, arch: str) -> Iterable[str]:
    has = code.counts
    dtype = C["compute"] if kernel == "project" else C["x"]
    if dtype.primitive_bitwidth == 16:
        narrow = kernel == "update" and C["fly"] and C["aligned"] != "all"
        if arch == "90" and ("wgmma" not in has or ("mma" in has and not narrow)):
            yield f"16-bit products by {has.get('wgmma', 0)} wgmma and {has.get('mma', 0)} mma"
    elif C["precision"] != "tf32":
        return
    if not set(PRODUCTS) & has.keys():
        yield "no product on tensor cores"


def _copies(C: dict[str, Any], code: Code, least: int) -> Iterable[str]:
    if not code.loops:
        yield "no loop that multiplies was found"
    for loop in code.loops:
        has = loop.get("asynchronous 128", 0)
        if "bulk" not in loop and ("asynchronous" not in loop or has < least):
            yield f"a loop with {has} copies of 128 bits and no bulk one, where tiles take {least}"
