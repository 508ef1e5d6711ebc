"""The activations of a fused layer: f, and δ = g ⊙ f′ from what the forward pass kept anyway.

f′ is read from the outputs h where it can be (relu h>0, tanh 1−h², sigmoid h(1−h), identity 1), and
from the preactivations a where it cannot (gelu, silu). Position in ``ACTIVATIONS`` is the code
that the custom ops carry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_aten = torch.ops.aten


class Activation(NamedTuple):
    """``forward_`` may overwrite its argument; ``backward(g, saved)`` is g ⊙ f′."""

    name: str
    forward_: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    from_preactivations: bool = False


ACTIVATIONS = (
    Activation("identity", lambda a: a, lambda g, h: g),
    Activation("relu", torch.relu_, lambda g, h: _aten.threshold_backward.default(g, h, 0)),
    Activation("tanh", torch.tanh_, _aten.tanh_backward.default),
    Activation("sigmoid", torch.sigmoid_, _aten.sigmoid_backward.default),
    Activation("gelu", F.gelu, _aten.gelu_backward.default, True),
    Activation(
        "gelu_tanh",
        lambda a: F.gelu(a, approximate="tanh"),
        lambda g, a: _aten.gelu_backward.default(g, a, approximate="tanh"),
        True,
    ),
    Activation("silu", F.silu, _aten.silu_backward.default, True),
)

CODES = {activation.name: code for code, activation in enumerate(ACTIVATIONS)}


def differentiable(name: str) -> Callable[[Tensor], Tensor]:
    """f as autograd wants it: never in place."""
    return _DIFFERENTIABLE[name]


_DIFFERENTIABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda a: a,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda a: F.gelu(a, approximate="tanh"),
    "silu": F.silu,
}


def of_module(module: nn.Module) -> str | None:
    """The name of a module's activation, or None where a fused layer has no such one."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return _MODULES.get(type(module))


_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
}
