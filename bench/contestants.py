"""Who takes part in `bench.step`: each is a function that makes one training step over one batch.

All share the architecture (tanh MLP), the initial weights, the batch, the loss (cross-entropy) and
the optimizer (SGD, momentum 0.9). The hand-written ones use no autograd and make no gradient
tensors: between them lies what DFA itself is worth, and above them what our module costs.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dfa_kernels as dfa

INPUT = 784
LR, MOMENTUM = 1e-3, 0.9

Step = Callable[[], object]


class Shape(NamedTuple):
    """A batch through ``depth`` hidden layers of ``width`` tanh units to ``outputs`` logits."""

    batch: int
    depth: int
    width: int
    outputs: int

    def __str__(self) -> str:
        return f"{self.batch},{self.depth},{self.width},{self.outputs}"

    def mlp(self) -> nn.Sequential:
        torch.manual_seed(0)
        sizes = [INPUT, *[self.width] * self.depth, self.outputs]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.batch, INPUT, generator=generator)
        return x, torch.randint(self.outputs, (self.batch,), generator=generator)


def _loop(net: Callable, optimizer: torch.optim.Optimizer, shape: Shape) -> Step:
    x, y = shape.data()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _sgd(net: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)


def backpropagation(shape: Shape) -> Step:
    net = shape.mlp()
    return _loop(net, _sgd(net), shape)


def compiled_backpropagation(shape: Shape) -> Step:
    net = shape.mlp()
    return _loop(torch.compile(net), _sgd(net), shape)


def ours(shape: Shape) -> Step:
    net = dfa.DFA(dfa.fuse(shape.mlp()))
    return _loop(net, dfa.optim.SGD(net, lr=LR, momentum=MOMENTUM), shape)


def ours_in_backward(shape: Shape) -> Step:
    net = dfa.DFA(dfa.fuse(shape.mlp()))
    optimizer = dfa.optim.SGD(net, lr=LR, momentum=MOMENTUM, update="backward")
    return _loop(net, optimizer, shape)


def ours_plain_optimizer(shape: Shape) -> Step:
    net = dfa.DFA(dfa.fuse(shape.mlp()))
    return _loop(net, _sgd(net), shape)


# By hand -------------------------------------------------------------------------------------


class _Weights:
    """Weights, biases and momentum buffers of the MLP, and its forward pass without autograd."""

    def __init__(self, shape: Shape) -> None:
        linears = [m for m in shape.mlp() if isinstance(m, nn.Linear)]
        self.weights = [m.weight.detach() for m in linears]
        self.biases = [m.bias.detach() for m in linears]
        self.buffers = [torch.zeros_like(t) for t in (*self.weights, *self.biases)]

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = [x]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            kept.append(torch.addmm(bias, kept[-1], weight.T).tanh_())
        kept.append(torch.addmm(self.biases[-1], kept[-1], self.weights[-1].T))
        return kept

    def update(self, i: int, delta: Tensor, x: Tensor) -> None:
        weight, bias = self.weights[i], self.biases[i]
        momentum, bias_momentum = self.buffers[i], self.buffers[i + len(self.weights)]
        momentum.addmm_(delta.T, x, beta=MOMENTUM)
        weight.add_(momentum, alpha=-LR)
        bias_momentum.mul_(MOMENTUM).add_(delta.sum(0))
        bias.add_(bias_momentum, alpha=-LR)


def _error(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy's mean, and its gradient in place of a log-softmax."""
    log_p = torch.log_softmax(logits, dim=1)
    loss = F.nll_loss(log_p, y)
    error = log_p.exp_()
    error[torch.arange(len(y)), y] -= 1
    return loss, error.div_(len(y))


def by_hand_dfa(shape: Shape) -> Step:
    model, (x, y) = _Weights(shape), shape.data()
    feedback = dfa.Feedback()
    matrix = feedback.matrix(shape.outputs, shape.width) * feedback.scale_for(shape.width)

    def step() -> Tensor:
        kept = model.forward(x)
        loss, error = _error(kept[-1], y)
        projection = error @ matrix
        for i in range(shape.depth):
            delta = torch.ops.aten.tanh_backward(projection, kept[i + 1])
            model.update(i, delta, kept[i])
        model.update(shape.depth, error, kept[-2])
        return loss

    return step


def by_hand_backpropagation(shape: Shape) -> Step:
    model, (x, y) = _Weights(shape), shape.data()

    def step() -> Tensor:
        kept = model.forward(x)
        loss, delta = _error(kept[-1], y)
        for i in range(shape.depth, -1, -1):
            below = None
            if i:
                below = torch.ops.aten.tanh_backward(delta @ model.weights[i], kept[i])
            model.update(i, delta, kept[i])
            delta = below
        return loss

    return step


# Other packages, where they are installed ------------------------------------------------------


def tinydfa(shape: Shape) -> Step:
    """The paper's own: `DFALayer` after every hidden activation, `DFA` around the output."""
    package = importlib.import_module("tinydfa")
    layers: list[nn.Module] = []
    points = []
    for module in shape.mlp():
        layers.append(module)
        if isinstance(module, nn.Tanh):
            points.append(package.DFALayer())
            layers.append(points[-1])
    net = nn.Sequential(*layers, package.DFA(points))
    return _loop(net, _sgd(net), shape)


def biotorch(shape: Shape) -> Step:
    """BioTorch's DFA linear layers."""
    layers_of = importlib.import_module("biotorch.layers.dfa")
    convert = importlib.import_module("biotorch.module.biomodule")
    torch.manual_seed(0)
    sizes = [INPUT, *[shape.width] * shape.depth, shape.outputs]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [layers_of.Linear(a, b, output_dim=shape.outputs), nn.Tanh()]
    net = convert.BioModule(nn.Sequential(*layers[:-1]), mode="dfa", output_dim=shape.outputs)
    x, y = shape.data()
    optimizer = _sgd(net)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x, targets=y, loss_function=F.cross_entropy), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


#: In the order of the table; the first is what the others are divided by.
CONTESTANTS: dict[str, Callable[[Shape], Step]] = {
    "backpropagation": backpropagation,
    "compiled backpropagation": compiled_backpropagation,
    "hand-written backpropagation": by_hand_backpropagation,
    "TinyDFA": tinydfa,
    "BioTorch": biotorch,
    "hand-written DFA": by_hand_dfa,
    "dfa_kernels, torch.optim": ours_plain_optimizer,
    'dfa_kernels, update="backward"': ours_in_backward,
    "dfa_kernels": ours,
}
