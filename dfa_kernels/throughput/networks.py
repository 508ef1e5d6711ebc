"""The networks whose whole step is timed, each as plain modules and as fused layers."""

from __future__ import annotations

import itertools
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dfa_kernels as dfa

Sizes = list[tuple[int, int]]

#: Of an MLP that is named by its shape: as many as an image of MNIST has pixels.
INPUTS = 784


class Shape(NamedTuple):
    """A batch through ``depth`` hidden layers of ``width`` tanh units to ``outputs`` logits."""

    batch: int
    depth: int
    width: int
    outputs: int

    def __str__(self) -> str:
        return f"{self.batch},{self.depth},{self.width},{self.outputs}"


class Task(Protocol):
    """A network, a batch and a loss."""

    @property
    def batch(self) -> int: ...

    def network(self, fused: bool) -> nn.Module:
        """With the same initial weights each time; ``fused``: of `dfa.Linear` layers."""

    def data(self, device: torch.device, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
        """The network's inputs, and the target."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor: ...

    def sizes(self) -> Sizes:
        """(D, K) of every weight."""


class MLP(NamedTuple):
    """``depth`` hidden layers of ``width`` tanh units between ``inputs`` and ``outputs`` logits."""

    batch: int
    inputs: int
    depth: int
    width: int
    outputs: int

    @classmethod
    def of(cls, shape: tuple[int, int, int, int]) -> MLP:
        """Of a `Shape`."""
        batch, depth, width, outputs = shape
        return cls(batch, INPUTS, depth, width, outputs)

    def __str__(self) -> str:
        return f"MLP {self.depth} × {self.width}, N {self.batch:,}, {self.outputs:,} outputs"

    def network(self, fused: bool) -> nn.Module:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for d, k in self.sizes():
            layers += [nn.Linear(k, d), nn.Tanh()]
        net = nn.Sequential(*layers[:-1])
        return dfa.fuse(net) if fused else net

    def data(self, device: torch.device, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
        torch.manual_seed(1)
        x = torch.randn(self.batch, self.inputs, device=device, dtype=dtype)
        return (x,), torch.randint(self.outputs, (self.batch,), device=device)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.float() if output.itemsize < 4 else output, target)

    def sizes(self) -> Sizes:
        widths = [self.inputs, *[self.width] * self.depth, self.outputs]
        return [(d, k) for k, d in itertools.pairwise(widths)]


class NeRF(NamedTuple):
    """Mildenhall et al. 2020, figure 7: 8 layers of 256 with the input again at the fifth, a
    density, and a colour that sees the direction; error width 4, as in Launay et al. 2020."""

    batch: int
    width: int = 256
    position: int = 63
    direction: int = 27

    def __str__(self) -> str:
        return f"NeRF's MLP, 8 × {self.width} + view layer, N {self.batch:,}"

    def network(self, fused: bool) -> nn.Module:
        torch.manual_seed(0)
        return _Field(self, fused)

    def data(self, device: torch.device, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
        torch.manual_seed(1)
        x = torch.randn(self.batch, self.position, device=device, dtype=dtype)
        d = torch.randn(self.batch, self.direction, device=device, dtype=dtype)
        return (x, d), torch.rand(self.batch, 4, device=device)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output.float(), target)

    def sizes(self) -> Sizes:
        w, p = self.width, self.position
        trunk = [(w, p), *[(w, w)] * 4, (w, w + p), *[(w, w)] * 2]
        return [*trunk, (1, w), (w, w), (w // 2, w + self.direction), (3, w // 2)]


class _Layer(nn.Linear):
    """A linear layer with ReLU, as PyTorch has it."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class _Field(nn.Module):
    def __init__(self, task: NeRF, fused: bool) -> None:
        super().__init__()

        def layer(k: int, d: int) -> nn.Module:
            return dfa.Linear(k, d, activation="relu") if fused else _Layer(k, d)

        w, p = task.width, task.position
        self.below = nn.ModuleList([layer(p, w), *[layer(w, w) for _ in range(4)]])
        self.above = nn.ModuleList([layer(w + p, w), *[layer(w, w) for _ in range(2)]])
        self.density = nn.Linear(w, 1)
        self.feature = dfa.Linear(w, w) if fused else nn.Linear(w, w)
        self.view = layer(w + task.direction, w // 2)
        self.colour = nn.Linear(w // 2, 3)

    def forward(self, position: Tensor, direction: Tensor) -> Tensor:
        h = position
        for layer in self.below:
            h = layer(h)
        h = torch.cat((h, position), dim=-1)
        for layer in self.above:
            h = layer(h)
        seen = self.view(torch.cat((self.feature(h), direction), dim=-1))
        return torch.cat((self.colour(seen), self.density(h)), dim=-1)
