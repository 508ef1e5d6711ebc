"""The optimizers' steps in registers: `torch.optim`'s semantics on fp32 tiles.

A row of hyperparameters reaches them as `columns` makes it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dfa_kernels.backends.grouped.hyper import COLUMNS, columns

__all__ = ["COLUMNS", "adamw", "columns", "sgd"]


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
