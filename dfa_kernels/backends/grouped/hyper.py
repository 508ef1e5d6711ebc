"""A row of hyperparameters as the kernels read it: whatever depends on the step count alone is
computed once, in fp64, on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Columns of a row, for every rule.
COLUMNS = 7


def columns(rule: str, hyper: Sequence[float]) -> tuple[float, ...]:
    """What a kernel reads of a row of ``contract.RULES``.

    sgd: lr, momentum (0 at the first step), gain of the gradient, decay, Nesterov's momentum (or
    0), sign, 1 where there is a momentum buffer. adamw: 1 − lr·decay, 1 − β1, β2, 1 − β2, eps,
    lr / (1 − β1ᵗ), 1 / √(1 − β2ᵗ); the second column carries the sign of the gradient.
    """
    if rule == "sgd":
        lr, momentum, dampening, decay, nesterov, maximize, first = map(float, hyper)
        return (
            lr,
            0.0 if first else momentum,
            1.0 if first else 1 - dampening,
            decay,
            momentum if nesterov else 0.0,
            -1.0 if maximize else 1.0,
            1.0 if momentum else 0.0,
        )
    lr, beta1, beta2, eps, decay, maximize, step = map(float, hyper)
    sign = -1.0 if maximize else 1.0
    return (
        1 - lr * decay,
        sign * (1 - beta1),
        beta2,
        1 - beta2,
        eps,
        lr / (1 - beta1**step),
        1 / math.sqrt(1 - beta2**step),
    )
