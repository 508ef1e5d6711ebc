"""g ⊙ f′ in registers: the activations of ``dfa_kernels.activation``, by their codes there.

``s`` is what the forward pass kept: the outputs h, or the preactivations a for gelu and silu.
``CODES`` has the bit of every activation in the launch, so that the others cost nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def derivative(g, s, code, CODES: tl.constexpr):
    """g ⊙ f′(s) in fp32."""
    out = g
    if CODES & 2:
        if code == 1:
            out = tl.where(s <= 0.0, 0.0, g)
    if CODES & 4:
        if code == 2:
            out = g * (1.0 - s * s)
    if CODES & 8:
        if code == 3:
            out = g * ((1.0 - s) * s)
    if CODES & 16:
        if code == 4:
            out = g * _gelu(s)
    if CODES & 32:
        if code == 5:
            out = g * _gelu_tanh(s)
    if CODES & 64:
        if code == 6:
            out = g * _silu(s)
    return out


@triton.jit
def _gelu(a):
    """Φ(a) + a·φ(a)."""
    cdf = 0.5 * (1.0 + tl.erf(a * 0.7071067811865476))
    return cdf + a * tl.exp(-0.5 * a * a) * 0.3989422804014327


@triton.jit
def _gelu_tanh(a):
    """Of ½·a·(1 + tanh(√(2/π)·(a + 0.044715·a³)))."""
    inner = 0.7978845608028654 * (a + 0.044715 * a * a * a)
    t = 2.0 * tl.sigmoid(2.0 * inner) - 1.0
    slope = 0.7978845608028654 * (1.0 + 0.134145 * a * a)
    return 0.5 * (1.0 + t) + 0.5 * a * (1.0 - t * t) * slope


@triton.jit
def _silu(a):
    """σ(a)·(1 + a·(1 − σ(a)))."""
    y = tl.sigmoid(a)
    return y * (1.0 + a * (1.0 - y))
