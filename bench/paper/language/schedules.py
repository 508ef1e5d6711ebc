"""Optimizers and learning rates of the paper's ablation, as its code ran them.

    paper                 --schedule   --lr    --beta2
    BP, DFA baseline      noam         7e-4    0.98     7e-4 = 512^-½ · 4000^-½, the peak of noam
    DFA + Adam            constant     5e-5    0.98
    DFA + β₂              constant     5e-5    0.999
    DFA + schedule        plateau      1e-4    0.999

All with Adam, and gradients clipped to a norm of 0.5. ``--lr`` is always the highest rate reached.
``cosine`` (a linear rise, half a cosine to 0) is not theirs: it suits runs too short for noam.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

OPTIMIZERS = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam}
SCHEDULES = ("noam", "cosine", "constant", "plateau")

_CLIP = 0.5
_EPSILON = 1e-9
_FACTOR, _PATIENCE = 0.2, 1  # of plateau: after how many validations without a better one


def optimizer(
    name: str, parameters: Iterable[nn.Parameter], rate: float, beta2: float
) -> torch.optim.Optimizer:
    """It clips before each step."""
    learnt = list(parameters)
    made = OPTIMIZERS[name](learnt, lr=rate, betas=(0.9, beta2), eps=_EPSILON)
    made.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(learnt, _CLIP) and None)
    return made


def schedule(name: str, optimizer: torch.optim.Optimizer, steps: int, warm_up: int) -> Any:
    """What is stepped once a training step; None for a constant rate.

    Args:
        warm_up: steps of a linear rise, in ``noam`` and ``cosine``.
    """

    def noam(done: int) -> float:
        return min((done + 1) / warm_up, (warm_up / (done + 1)) ** 0.5)

    def cosine(done: int) -> float:
        fall = min(max(done - warm_up, 0) / max(steps - warm_up, 1), 1)
        return min((done + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * fall))

    if name == "plateau":
        return Plateau(optimizer)
    if name == "constant":
        return None
    return lr_scheduler.LambdaLR(optimizer, {"noam": noam, "cosine": cosine}[name])


class Plateau:
    """PyTorch's, for a loop that steps it at each training step and validates now and then."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._inner = lr_scheduler.ReduceLROnPlateau(optimizer, factor=_FACTOR, patience=_PATIENCE)
        self._seen: float | None = None

    def watch(self, loss: float) -> None:
        """A validation's loss, which the next step heeds."""
        self._seen = loss

    def step(self) -> None:
        if self._seen is not None:
            self._inner.step(self._seen)
            self._seen = None

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self._inner.state_dict(), "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state["inner"])
        self._seen = state["seen"]
