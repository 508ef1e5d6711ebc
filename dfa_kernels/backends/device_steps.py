"""How the reference steps a parameter whose row of hyperparameters lives on its device.

No number of the row is known on the host: a CUDA graph that holds the step reads at each replay
what is there then, and nothing waits. What depends on the row is a choice between two tensors, and
its arithmetic is float64, as on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_Rule = Callable[[Tensor, Tensor, list[Tensor], Tensor], None]


class DeviceScratch:
    """Takes the pieces of parameters as `steps`'s scratch does, and steps each at once."""

    def __init__(self, rule: str) -> None:
        self._rule = _RULES[rule]

    def add(self, piece: Any, row: Tensor) -> None:
        """Step a piece (its parameter, gradient and states), 16-bit ones in fp32."""
        p, g, states = piece
        wide = [t if t.itemsize > 2 else t.float() for t in (p, *states)]
        self._rule(wide[0], g.to(wide[0].dtype), wide[1:], row)
        for narrow, stepped in zip((p, *states), wide, strict=True):
            if narrow is not stepped:
                narrow.copy_(stepped)


def _sgd_(p: Tensor, g: Tensor, states: list[Tensor], row: Tensor) -> None:
    """`steps._sgd_`; where momentum may be 0 there is a buffer nevertheless."""
    lr, momentum, dampening, decay, nesterov, maximize, first = row.unbind()
    g = torch.where(maximize != 0, -g, g)
    g = torch.where(decay != 0, g + decay * p, g)
    (buffer,) = states
    if buffer.numel():
        kept = torch.where(first != 0, g, momentum * buffer + (1 - dampening) * g)
        moving = torch.where(nesterov != 0, g + momentum * kept, kept)
        buffer.copy_(torch.where(momentum != 0, kept, buffer))
        g = torch.where(momentum != 0, moving, g)
    p.sub_(lr * g)


def _adamw_(p: Tensor, g: Tensor, states: list[Tensor], row: Tensor) -> None:
    """`steps._adamw_`."""
    lr, beta1, beta2, eps, decay, maximize, step = row.unbind()
    mean, square = states
    g = torch.where(maximize != 0, -g, g)
    p.mul_(1 - lr * decay)
    mean.add_((g - mean).mul_(1 - beta1))
    square.mul_(beta2).add_((g * g).mul_(1 - beta2))
    root = square.sqrt().div_((1 - beta2**step).sqrt()).add_(eps)
    p.sub_((mean / root).mul_(lr / (1 - beta1**step)))


_RULES: dict[str, _Rule] = {"sgd": _sgd_, "adamw": _adamw_}
