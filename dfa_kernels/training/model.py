"""One method's network, optimizer and step: what `experiment` trains and `memory` measures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfa_kernels import optim
from dfa_kernels.feedback import Feedback
from dfa_kernels.linear import fuse
from dfa_kernels.module import DFA
from dfa_kernels.training.options import ACTIVATIONS, DTYPES, SCHEDULES, Options

MOMENTUM = 0.9  # of --optimizer sgd


def mlp(sizes: tuple[int, ...], activation: str) -> nn.Sequential:
    """hidden1, hidden2, … (linear and activation), output (linear)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (width, following) in enumerate(pairwise(sizes[:-1]), 1):
        layers[f"hidden{i}"] = nn.Linear(width, following)
        layers[f"activation{i}"] = ACTIVATIONS[activation]()
    layers["output"] = nn.Linear(sizes[-2], sizes[-1])
    return nn.Sequential(layers)


class Learner:
    """A network trained by ``method``. For one seed it begins with the same weights and feedback
    whatever the method, and the layers are the same modules: only the method differs."""

    def __init__(
        self, options: Options, method: str, seed: int, features: int, classes: int
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            plain = mlp(options.sizes(features, classes), options.activation)
        plain.to(options.device, DTYPES[options.dtype])
        feedback = Feedback(options.distribution, seed)
        self.net = DFA(fuse(plain), feedback, method=method)
        self.optimizer = _optimizer(self.net, options)
        # Two shapes at most, a full batch and the last one: each is worth its own code.
        self._forward: Callable[[Tensor], Tensor] = (
            torch.compile(self.net, dynamic=False) if options.compile else self.net
        )
        self._device = torch.device(options.device).type
        self._autocast = options.dtype == "bfloat16"
        self._rate, self._schedule = options.lr[method], SCHEDULES[options.schedule]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean cross-entropy of a minibatch, through the compiled network if there is one."""
        return F.cross_entropy(self._logits(self._forward, x), y)

    def step(self, x: Tensor, y: Tensor, done: float = 0.0) -> Tensor:
        """One training step when a share ``done`` of the run is; its loss, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * self._schedule(done)
        loss = self.loss(x, y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor, rows: int = 4096) -> tuple[float, float]:
        """Mean cross-entropy and accuracy, ``rows`` at a time."""
        loss = torch.zeros((), dtype=torch.float64, device=x.device)
        right = torch.zeros((), dtype=torch.int64, device=x.device)
        for part, labels in zip(x.split(rows), y.split(rows), strict=True):
            logits = self._logits(self.net, part)
            loss += F.cross_entropy(logits, labels, reduction="sum")
            right += (logits.argmax(1) == labels).sum()
        return loss.item() / len(x), right.item() / len(x)

    def _logits(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._autocast):
            logits = forward(x)
        return logits.float() if self._autocast else logits


def _optimizer(net: DFA, options: Options) -> torch.optim.Optimizer:
    """Ours, fused with the gradients, where there are none to look at; else torch.optim with the
    fused step that torch has: backpropagation is compared at its best."""
    lr = options.lr[net.method]
    # Ours leaves records behind, which a compiled backward cannot.
    if net.method == "dfa" and options.fused and not options.compile:
        if options.optimizer == "adamw":
            return optim.AdamW(net, lr)
        return optim.SGD(net, lr, MOMENTUM)
    fused = torch.device(options.device).type in ("cpu", "cuda") or None
    if options.optimizer == "adamw":
        return torch.optim.AdamW(net.parameters(), lr, fused=fused)
    return torch.optim.SGD(net.parameters(), lr, MOMENTUM, fused=fused)
