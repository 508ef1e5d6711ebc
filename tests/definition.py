"""What is right, written a second time: the random stream in plain Python integers, and DFA of a
stack of layers in fp64 with plain torch operations. Nothing here calls the package."""

import math
from functools import lru_cache

import torch

MASK = 0xFFFFFFFF


def philox(key, counter):
    """Philox4x32-10 as in Salmon et al., SC'11, figure 2: one call, Python integers."""
    k0, k1 = key
    c = list(counter)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return tuple(c)


def entry(distribution, seed, stream, k, j):
    """B[k, j], by the table of DESIGN.md."""
    key = (seed & MASK, seed >> 32)

    def words(entries):
        return philox(key, (j // entries, k, stream, 0))

    if distribution == "rademacher":
        word = words(128)[(j // 32) % 4]
        return 1.0 if word >> (j % 32) & 1 else -1.0
    if distribution == "uniform":
        byte = words(16)[(j // 4) % 4] >> (8 * (j % 4)) & 0xFF
        return (2 * byte - 255) / 256
    w = words(4)
    first, second = (w[0], w[1]) if j % 4 < 2 else (w[2], w[3])
    radius = math.sqrt(-2 * math.log((first + 0.5) / 2**32))
    angle = 2 * math.pi * (second + 0.5) / 2**32
    return radius * (math.cos(angle) if j % 2 == 0 else math.sin(angle))


@lru_cache(maxsize=256)
def _matrix(distribution, seed, stream, rows, width):
    return [[entry(distribution, seed, stream, k, j) for j in range(width)] for k in range(rows)]


def matrix(rows, width, *, distribution="rademacher", seed=0, stream=0):
    """B (rows, width) in fp64."""
    made = _matrix(distribution, seed, stream, rows, width)
    return torch.tensor(made, dtype=torch.float64).reshape(rows, width)


VARIANCE = {"rademacher": 1.0, "uniform": 1 / 3, "normal": 1.0}


def default_scale(widest, distribution="rademacher"):
    return 1 / math.sqrt(3 * VARIANCE[distribution] * widest)


# f, and f′ as a function of the preactivations: nothing of what a forward pass may keep.
def _gelu_slope(a):
    phi = torch.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return (1 + torch.erf(a / math.sqrt(2))) / 2 + a * phi


def _tanh_gelu(a):
    c = math.sqrt(2 / math.pi)
    return 0.5 * a * (1 + torch.tanh(c * (a + 0.044715 * a**3)))


def _tanh_gelu_slope(a):
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (a + 0.044715 * a**3))
    return 0.5 * (1 + t) + 0.5 * a * (1 - t * t) * c * (1 + 3 * 0.044715 * a**2)


def _sigmoid(a):
    return 1 / (1 + torch.exp(-a))


ACTIVATIONS = {
    "identity": (lambda a: a, torch.ones_like),
    "relu": (lambda a: a.clamp(min=0), lambda a: (a > 0).to(a)),
    "tanh": (torch.tanh, lambda a: 1 - torch.tanh(a) ** 2),
    "sigmoid": (_sigmoid, lambda a: _sigmoid(a) * (1 - _sigmoid(a))),
    "gelu": (lambda a: a * (1 + torch.erf(a / math.sqrt(2))) / 2, _gelu_slope),
    "gelu_tanh": (_tanh_gelu, _tanh_gelu_slope),
    "silu": (
        lambda a: a * _sigmoid(a),
        lambda a: _sigmoid(a) * (1 + a * (1 - _sigmoid(a))),
    ),
}


def dfa_gradients(layers, x, error, feedback, scale, activation="tanh"):
    """dW and db of a stack of linear layers, each followed by ``activation`` but the last, which
    is the head; ``feedback``: B of each hidden layer. Everything (N, ·), in fp64.

    ``layers``: (W, b or None) of each.
    """
    f, slope = ACTIVATIONS[activation]
    x, error = x.double(), error.double()
    made = []
    for i, (w, b) in enumerate(layers):
        a = x @ w.double().T + (0 if b is None else b.double())
        head = i == len(layers) - 1
        delta = error if head else (error @ feedback[i].double()) * scale * slope(a)
        made.append((delta.T @ x, delta.sum(0)))
        x = a if head else f(a)
    return made


def stack(module):
    """(W, b) of each linear layer of a module, in order."""
    return [
        (m.weight.detach(), None if m.bias is None else m.bias.detach())
        for m in module.modules()
        if isinstance(m, torch.nn.Linear)
    ]


def assert_gradients(module, wanted, rtol=1e-5, atol=1e-6):
    """Element by element: the linear layers' gradients against ``wanted``."""
    layers = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == len(wanted)
    for m, (weight, bias) in zip(layers, wanted, strict=True):
        torch.testing.assert_close(m.weight.grad.double(), weight, rtol=rtol, atol=atol)
        if m.bias is not None:
            torch.testing.assert_close(m.bias.grad.double(), bias, rtol=rtol, atol=atol)


def by_hand(model, x, error, scale=None):
    """dW, db of the tanh network of `mlp`."""
    widths = [m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear)]
    bs = [matrix(widths[-1], d) for d in widths[:-1]]
    scale = scale or default_scale(max(widths[:-1]))
    return dfa_gradients(stack(model), x, error, bs, scale)
