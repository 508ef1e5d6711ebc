"""B's tiles, made in registers from Philox words (the stream of ``dfa_kernels.feedback``).

    B[k, j] = f(philox(key = seed, counter = (j // entries, k, stream, 0)), j % entries)

One function a distribution, of the distribution's name; each returns a tile (BE, BD) whose first
column ``j0`` is a multiple of BD, from the column ``k`` (BE, 1) of error indices.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _words(seed, stream, k, j0, QUADS: tl.constexpr, ENTRIES: tl.constexpr):
    """The four words of ``QUADS`` consecutive calls for each k, in their order: (BE, 4·QUADS)."""
    block = j0 // ENTRIES + tl.arange(0, QUADS)[None, :]
    zero = (block - block) + (k - k)
    w0, w1, w2, w3 = tl.philox(
        seed,
        (block + zero).to(tl.uint32),
        (k + zero).to(tl.uint32),
        (stream + zero).to(tl.uint32),
        zero.to(tl.uint32),
    )
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (k.shape[0], 4 * QUADS))


@triton.jit
def rademacher(seed, stream, k, j0, BD: tl.constexpr, DTYPE: tl.constexpr):
    """±1: 128 a call, from single bits, each of which becomes the sign of an fp32 one."""
    words = _words(seed, stream, k, j0, BD // 128, 128)
    place = 31 - tl.arange(0, 32)[None, None, :]
    ones = ((words[:, :, None] << place.to(tl.uint32)) & 0x80000000) ^ 0xBF800000
    return tl.reshape(ones, (k.shape[0], BD)).to(tl.float32, bitcast=True).to(DTYPE)


@triton.jit
def uniform(seed, stream, k, j0, BD: tl.constexpr, DTYPE: tl.constexpr):
    """(2·byte − 255) / 256: 16 a call, from single bytes."""
    words = _words(seed, stream, k, j0, BD // 16, 16)
    octets = (words[:, :, None] >> (8 * tl.arange(0, 4))[None, None, :].to(tl.uint32)) & 0xFF
    levels = tl.reshape(octets, (k.shape[0], BD)).to(tl.int32) * 2 - 255
    return (levels.to(tl.float32) * 0.00390625).to(DTYPE)


@triton.jit
def normal(seed, stream, k, j0, BD: tl.constexpr, DTYPE: tl.constexpr):
    """Box–Muller: 4 a call, a word for the radius and one for the angle of each pair."""
    words = _words(seed, stream, k, j0, BD // 4, 4)
    first, second = tl.split(tl.reshape(words, (k.shape[0], BD // 2, 2)))
    cosine, sine = _turn(second)
    half = tl.sqrt(-0.5 * _log_unit(first))  # of the radius √(−2·ln u)
    pair = tl.join(half * cosine, half * sine)
    # The factor comes last: a reshaped tile that a tf32 product takes as it is aborts the compiler
    # of Triton 3.6 to 3.9 for sm_90 ("Illegal shared layout").
    return (tl.reshape(pair, (k.shape[0], BD)) * 2.0).to(DTYPE)


@triton.jit
def _turn(word):
    """cos and sin of 2π·(word + ½)·2⁻³².

    The nearest quarter turn is exact in integers; what is left lies within π/4 of it, where the
    polynomials are those of Cephes' sinf and cosf. `tl.cos` would have to serve any argument: its
    reduction of the largest needs an array in memory.
    """
    eighth = (word >> 29).to(tl.int32)
    quarter = (eighth + 1) >> 1
    beside = (word & 0x1FFFFFFF).to(tl.int32) - (eighth & 1) * 0x20000000
    angle = (beside.to(tl.float32) + 0.5) * 1.4629180792671596e-09  # 2π·2⁻³²
    z = angle * angle
    s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * angle + angle
    c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z
    c += 1.0 - 0.5 * z
    swapped = (quarter & 1) != 0
    cosine, sine = tl.where(swapped, s, c), tl.where(swapped, c, s)
    cosine = tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
    return cosine, tl.where((quarter & 2) != 0, -sine, sine)


@triton.jit
def _log_unit(word):
    """ln((word + ½)·2⁻³²), whose argument fp32 would round to 1 at the upper end.

    There it is ln(1 − r) with r = (~word + ½)·2⁻³²: Kahan's ln(t)·r / (1 − t) with t = fl(1 − r).
    """
    low = tl.log((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10)
    r = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    t = 1.0 - r
    high = tl.where(t == 1.0, -r, tl.log(t) * (r / tl.where(t == 1.0, 1.0, 1.0 - t)))
    return tl.where(word > 0x7FFFFFFF, high, low)


@triton.jit
def feedback(
    DISTRIBUTION: tl.constexpr, seed, stream, k, j0, BD: tl.constexpr, DTYPE: tl.constexpr
):
    """The tile of the distribution's B."""
    if DISTRIBUTION == "rademacher":
        return rademacher(seed, stream, k, j0, BD, DTYPE)
    elif DISTRIBUTION == "uniform":
        return uniform(seed, stream, k, j0, BD, DTYPE)
    else:
        tl.static_assert(DISTRIBUTION == "normal")
        return normal(seed, stream, k, j0, BD, DTYPE)
