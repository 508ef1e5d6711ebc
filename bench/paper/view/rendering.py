"""Volume rendering: samples along rays, what a field says of them, and the colour they add up to.

    C = Σᵢ Tᵢ (1 − exp(−σᵢ δᵢ)) cᵢ,   Tᵢ = exp(−Σ_{j<i} σⱼ δⱼ)

Mildenhall et al. 2020, sections 4 and 5.2. All randomness comes from a generator on the CPU, so
that a run draws the same numbers wherever its network is; without one, sampling is regular.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.paper.view.cameras import Rays
from bench.paper.view.model import Query, Size


class Volume(NamedTuple):
    """The stretch of every ray that holds the scene. ``background``: the grey that lies behind
    it, 1 for white; None: what passes everything else ends at the last sample."""

    near: float
    far: float
    background: float | None


class Rendered(NamedTuple):
    """colour (rays, 3); depth (rays,), the mean t; opacity (rays,); weights (rays, samples)."""

    colour: Tensor
    depth: Tensor
    opacity: Tensor
    weights: Tensor


def stratified(
    volume: Volume, rays: int, samples: int, generator: torch.Generator | None
) -> Tensor:
    """One t from each of ``samples`` equal intervals; their middles without a generator."""
    place = torch.arange(samples).expand(rays, samples)
    drawn = 0.5 if generator is None else torch.rand(rays, samples, generator=generator)
    return volume.near + (volume.far - volume.near) / samples * (place + drawn)


def hierarchical(
    depths: Tensor, weights: Tensor, count: int, generator: torch.Generator | None
) -> Tensor:
    """``count`` t for each ray, distributed as the coarse ``weights`` along it."""
    edges = (depths[:, 1:] + depths[:, :-1]) / 2
    mass = weights[:, 1:-1] + 1e-5  # no interval is ruled out
    cdf = F.pad(mass.cumsum(1) / mass.sum(1, keepdim=True), (1, 0))
    if generator is None:
        quantiles = ((torch.arange(count) + 0.5) / count).expand(len(depths), count)
    else:
        quantiles = torch.rand(len(depths), count, generator=generator)
    quantiles = quantiles.to(depths.device).contiguous()
    above = torch.searchsorted(cdf, quantiles, right=True).clamp(1, edges.shape[1] - 1)
    low, high = cdf.gather(1, above - 1), cdf.gather(1, above)
    left, right = edges.gather(1, above - 1), edges.gather(1, above)
    share = (quantiles - low) / (high - low).clamp_min(1e-8)
    return left + share.clamp(0, 1) * (right - left)


def refined(
    depths: Tensor, first: Rendered, count: int, generator: torch.Generator | None
) -> Tensor:
    """The coarse samples and ``count`` more where the first rendering saw something, in order."""
    more = hierarchical(depths, first.weights.detach(), count, generator)
    return torch.cat([depths, more], 1).sort(1).values


def composite(raw: Tensor, depths: Tensor, rays: Rays, volume: Volume) -> Rendered:
    """What the eye sees of raw samples (rays, samples, 4) at ``depths`` (rays, samples).

    Density is softplus(raw − 1), not the authors' relu: a relu that is off along a whole ray
    passes no error back, and a short run does not recover from it (Barron et al. 2021).
    """
    gaps = torch.diff(depths, append=torch.full_like(depths[:, :1], volume.far)).clamp_min(0)
    gaps = gaps * rays.directions.norm(dim=1, keepdim=True)
    thickness = F.softplus(raw[..., 3] - 1) * gaps
    passed = torch.exp(thickness - thickness.cumsum(1))
    absorbed = -torch.expm1(-thickness)
    if volume.background is None:
        # The authors' last interval of 10¹⁰ says the same, until all densities fall so low that
        # the ray comes out black, where no error reaches them: a run that got there stayed there.
        absorbed = torch.cat([absorbed[:, :-1], torch.ones_like(absorbed[:, :1])], 1)
    weights = passed * absorbed
    colour = (weights.unsqueeze(2) * raw[..., :3].sigmoid()).sum(1)
    depth, opacity = (weights * depths).sum(1), weights.sum(1)
    if volume.background is not None:
        colour = colour + (1 - opacity).unsqueeze(1) * volume.background
        depth = depth + (1 - opacity) * volume.far
    return Rendered(colour, depth, opacity, weights)


def render(
    net: Callable[[Query], Tensor],
    rays: Rays,
    volume: Volume,
    size: Size,
    generator: torch.Generator | None = None,
) -> tuple[Rendered, Rendered]:
    """By the coarse field, and by the fine one: two forward passes."""
    coarse = stratified(volume, len(rays.origins), size.coarse, generator).to(rays.origins.device)
    first = composite(net(query(rays, coarse, fine=False)), coarse, rays, volume)
    fine = refined(coarse, first, size.fine, generator)
    return first, composite(net(query(rays, fine, fine=True)), fine, rays, volume)


def query(rays: Rays, depths: Tensor, fine: bool) -> Query:
    positions = rays.origins.unsqueeze(1) + rays.directions.unsqueeze(1) * depths.unsqueeze(2)
    return Query(positions, rays.views, fine)
