"""NeRF: from a position and a view direction to a colour and a density.

    γ(x) ─► depth × width, relu; γ(x) again after layer `skip` ─┬─► density, 1
                                                               └─► feature ─┐
    γ(d) ───────────────────────────────────────────────────────────────────┴─► half, relu ─► rgb, 3

Mildenhall et al., ECCV 2020, appendix A; γ(x) = (x, sin 2⁰x, cos 2⁰x, …, sin 2ᴸ⁻¹x, cos 2ᴸ⁻¹x).
Two such fields: a coarse one says where the fine one should look. The error point is the output,
rgb and density before their nonlinearities, 4 wide. Every `dfa.Linear` is a point; the two heads
above them are plain layers, and what autograd gives them is their true gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import dfa_kernels as dfa


class Size(NamedTuple):
    """``skip``: the layer (from 0) after which γ(x) comes in again. ``position``, ``direction``:
    octaves of γ. ``coarse``, ``fine``: samples a ray; the fine field sees both."""

    depth: int
    width: int
    skip: int
    position: int
    direction: int
    coarse: int
    fine: int


SIZES = {
    "nerf": Size(8, 256, 4, 10, 4, 64, 128),
    "nerf-small": Size(4, 128, 1, 6, 2, 16, 16),
}


class Query(NamedTuple):
    """What a field is asked: positions (rays, samples, 3), unit directions (rays, 3)."""

    positions: Tensor
    directions: Tensor
    fine: bool


def encode(x: Tensor, octaves: int) -> Tensor:
    """γ: (n, 3) → (n, 3 + 6·octaves)."""
    scaled = (x.unsqueeze(1) * 2.0 ** torch.arange(octaves, device=x.device).unsqueeze(1)).flatten(
        1
    )
    return torch.cat([x, scaled.sin(), scaled.cos()], 1)


class Field(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        position, direction = 3 + 6 * size.position, 3 + 6 * size.direction
        inputs = [position] + [size.width] * (size.depth - 1)
        if size.skip + 1 < size.depth:
            inputs[size.skip + 1] += position
        self.trunk = nn.ModuleList(dfa.Linear(n, size.width, activation="relu") for n in inputs)
        self.feature = dfa.Linear(size.width, size.width)
        self.view = dfa.Linear(size.width + direction, size.width // 2, activation="relu")
        self.density = nn.Linear(size.width, 1)
        self.colour = nn.Linear(size.width // 2, 3)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # as in the authors' code
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        # Unlike there, the heads begin at nothing, and what they become first is what the feedback
        # has made of the layers below: alignment then does not start against a random head.
        nn.init.zeros_(self.density.weight)
        nn.init.zeros_(self.colour.weight)

    def forward(self, positions: Tensor, directions: Tensor) -> Tensor:
        """(rays, samples, 3), (rays, 3) → (rays, samples, 4): r, g, b, density, all raw."""
        rays, samples, _ = positions.shape
        where = encode(positions.reshape(-1, 3), self.size.position)
        h = where
        for i, layer in enumerate(self.trunk):
            h = layer(torch.cat([where, h], 1) if i == self.size.skip + 1 else h)
        seen = encode(directions, self.size.direction).repeat_interleave(samples, 0)
        view = self.view(torch.cat([self.feature(h), seen], 1))
        return torch.cat([self.colour(view), self.density(h)], 1).view(rays, samples, 4)


class NeRF(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.coarse, self.fine = Field(size), Field(size)

    def forward(self, query: Query) -> Tensor:
        field = self.fine if query.fine else self.coarse
        return field(query.positions, query.directions)
