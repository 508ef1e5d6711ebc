"""The optimizers' steps in registers: `torch.optim`'s semantics on fp32 tiles.

A row of hyperparameters reaches them as `columns` makes it, on the host. Of a row in memory a
program makes it, in fp64 too (`columns_of`): 1 − βᵗ in fp32 is wrong in its fourth digit where β is
0.999 and t is 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dfa_kernels.backends.grouped.hyper import COLUMNS, columns

__all__ = ["COLUMNS", "adamw", "columns", "sgd"]


@triton.jit
def columns_of(row, RULE: tl.constexpr):
    """`columns` of the float64 row in memory."""
    lr = tl.load(row)
    h1, h2, h3 = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    h4, h5, h6 = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6)
    sign = tl.where(h5 != 0.0, -1.0, 1.0)
    if RULE == "sgd":
        momentum, dampening, decay, nesterov, first = h1, h2, h3, h4, h6
        c0 = lr
        c1 = tl.where(first != 0.0, 0.0, momentum)
        c2 = tl.where(first != 0.0, 1.0, 1.0 - dampening)
        c3 = decay
        c4 = tl.where(nesterov != 0.0, momentum, 0.0)
        c5 = sign
        c6 = tl.where(momentum != 0.0, 1.0, 0.0)
    else:
        beta1, beta2, eps, decay, step = h1, h2, h3, h4, h6
        c0 = 1.0 - lr * decay
        c1 = sign * (1.0 - beta1)
        c2 = beta2
        c3 = 1.0 - beta2
        c4 = eps
        c5 = lr / (1.0 - tl.exp2(step * tl.log2(beta1)))
        c6 = 1.0 / tl.sqrt(1.0 - tl.exp2(step * tl.log2(beta2)))
    return (
        c0.to(tl.float32), c1.to(tl.float32), c2.to(tl.float32), c3.to(tl.float32),
        c4.to(tl.float32), c5.to(tl.float32), c6.to(tl.float32),
    )  # fmt: skip


@triton.jit
def sgd(p, g, buffer, lr, momentum, gain, decay, nesterov, sign, buffered):
    """buf ← μ·buf + (1−τ)·(g + λ·p),  p ← p − γ·buf  (Nesterov: p ← p − γ·(g + λ·p + μ·buf))."""
    g = sign * g + decay * p
    kept = tl.where(momentum == 0.0, 0.0, momentum * buffer) + gain * g
    direction = tl.where(nesterov == 0.0, kept, g + nesterov * kept)
    return p - lr * tl.where(buffered == 0.0, g, direction), kept


@triton.jit
def adamw(p, g, mean, square, shrink, rate1, beta2, rate2, eps, step_size, correction):
    """Loshchilov & Hutter 2019, algorithm 2: decoupled decay, bias-corrected moments."""
    sign = tl.where(rate1 < 0.0, -1.0, 1.0)
    mean += tl.abs(rate1) * (sign * g - mean)
    square = beta2 * square + rate2 * g * g
    root = tl.sqrt(square) * correction + eps
    return p * shrink - step_size * mean / root, mean, square
