"""A scene without files: three balls and a box on a chequered disc, ray-traced from any pose.

Light from one side, hard shadows, and highlights that move with the eye, so that view directions
matter. Everything lies within 1.5 of the origin; cameras stand 4 away, above the disc, and the
background is white: the proportions of the Blender scenes. z is up.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.paper.view.cameras import Camera, Rays, around, cast, look_at
from bench.paper.view.rendering import Volume
from bench.paper.view.views import Scene, Views

SIDE = 96  # pixels before shrinking
_COUNTS = {"train": 40, "validation": 4, "test": 6}
_SUBPIXELS = 3  # in each direction: every pixel is a mean of 9 rays
_ANGLE = 0.75  # field of view, radians
_RADIUS = 4.0
_FLOOR, _DISC, _TILE = -0.45, 1.4, 0.4
_LIGHT = F.normalize(torch.tensor([0.5, -0.6, 0.9]), dim=0)
_NUDGE = 1e-3  # a shadow ray starts this far off its surface


class Ball(NamedTuple):
    centre: tuple[float, float, float]
    radius: float
    colour: tuple[float, float, float]
    shine: float


class Box(NamedTuple):
    """Turned about z by ``turn`` radians."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    turn: float
    colour: tuple[float, float, float]


BALLS = (
    Ball((0.45, 0.35, 0.1), 0.55, (0.85, 0.2, 0.15), 0.6),
    Ball((-0.6, 0.5, -0.15), 0.3, (0.2, 0.65, 0.3), 0.3),
    Ball((0.1, -0.75, -0.2), 0.25, (0.95, 0.75, 0.2), 0.8),
)
BOXES = (Box((-0.5, -0.35, -0.05), (0.3, 0.3, 0.4), 0.5, (0.25, 0.4, 0.85)),)


class _Hit(NamedTuple):
    """t (rays,), infinite for a miss; normal (rays, 3), colour (rays, 3), shine (rays,)."""

    t: Tensor
    normal: Tensor
    colour: Tensor
    shine: Tensor


def trace(rays: Rays) -> tuple[Tensor, Tensor]:
    """Colour (rays, 3) on white, and t (rays,), infinite where there is nothing."""
    hit = _nearest(rays.origins, rays.directions)
    seen = hit.t.isfinite()
    colour = torch.ones(len(hit.t), 3)
    part = Rays(*(t[seen] for t in rays))
    colour[seen] = _shade(part, _Hit(*(t[seen] for t in hit)))
    return colour, hit.t


def _shade(rays: Rays, hit: _Hit) -> Tensor:
    """Blinn and Phong's light: ambient, diffuse, and a highlight; the last two not in shadow."""
    start = rays.origins + rays.directions * hit.t.unsqueeze(1) + _NUDGE * hit.normal
    lit = _nearest(start, _LIGHT.expand_as(start)).t.isinf()
    diffuse = (hit.normal @ _LIGHT).clamp_min(0) * lit
    halfway = F.normalize(_LIGHT - rays.views, dim=1)
    shine = hit.shine * lit * (hit.normal * halfway).sum(1).clamp_min(0) ** 30
    return (hit.colour * (0.35 + 0.65 * diffuse).unsqueeze(1) + shine.unsqueeze(1)).clamp(0, 1)


def photograph(camera: Camera, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Colour (height, width, 3) and depth (height, width), the t of the pixel's middle."""
    n = _SUBPIXELS
    finer = camera._replace(
        width=camera.width * n, height=camera.height * n,
        fx=camera.fx * n, fy=camera.fy * n, cx=camera.cx * n, cy=camera.cy * n,
    )  # fmt: skip
    colour, depth = trace(cast(finer.directions().view(-1, 3), pose))
    colour = colour.view(camera.height, n, camera.width, n, 3).mean((1, 3))
    return colour, depth.view(camera.height, n, camera.width, n)[:, n // 2, :, n // 2]


def load(shrink: int) -> Scene:
    """Training views all around, held-out ones between them: the same in every process."""
    camera = Camera.of_angle(SIDE, SIDE, _ANGLE).shrunk(shrink)
    splits = {name: _views(camera, n, i) for i, (name, n) in enumerate(_COUNTS.items())}
    return Scene(
        "procedural", camera, splits, Volume(2.4, 5.6, 1.0),
        partial(around, _RADIUS, 0.55),
        truth=lambda pose: photograph(camera, pose),
    )  # fmt: skip


def _views(camera: Camera, count: int, split: int) -> Views:
    """``count`` cameras spread evenly over the upper part of a sphere, turned for each split."""
    i = torch.arange(count) + 0.5
    high = 0.15 + 0.7 * i / count  # sine of the elevation: equal areas
    turn = i * math.pi * (3 - math.sqrt(5)) + 2.1 * split  # the golden angle
    flat = (1 - high * high).sqrt()
    eyes = _RADIUS * torch.stack([flat * turn.cos(), flat * turn.sin(), high], 1)
    poses = look_at(eyes, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    pixels = torch.stack([photograph(camera, pose)[0] for pose in poses])
    return Views((255 * pixels).round().to(torch.uint8), poses)


# Intersections ----------------------------------------------------------------------------------


def _nearest(o: Tensor, d: Tensor) -> _Hit:
    hits = [_ball(o, d, ball) for ball in BALLS] + [_box(o, d, box) for box in BOXES]
    hits.append(_disc(o, d))
    nearest = torch.stack([hit.t for hit in hits]).argmin(0)
    rows = torch.arange(len(o))
    return _Hit(*(torch.stack(part)[nearest, rows] for part in zip(*hits, strict=True)))


def _ball(o: Tensor, d: Tensor, ball: Ball) -> _Hit:
    centre = torch.tensor(ball.centre)
    a, b = (d * d).sum(1), ((o - centre) * d).sum(1)
    c = ((o - centre) ** 2).sum(1) - ball.radius**2
    root = (b * b - a * c).sqrt()  # NaN for a miss
    t = (-b - root) / a
    t = torch.where(t > 0, t, torch.inf)  # of NaN too; eyes are outside
    normal = (o + d * torch.where(t.isfinite(), t, 0).unsqueeze(1) - centre) / ball.radius
    return _painted(t, normal, torch.tensor(ball.colour), ball.shine)


def _box(o: Tensor, d: Tensor, box: Box) -> _Hit:
    """By slabs, in the box's own frame."""
    c, s = math.cos(box.turn), math.sin(box.turn)
    frame = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    own_o, own_d = (o - torch.tensor(box.centre)) @ frame, d @ frame
    own_d = torch.where(own_d.abs() < 1e-9, 1e-9, own_d)
    half = torch.tensor(box.half)
    one, other = (-half - own_o) / own_d, (half - own_o) / own_d
    enter, face = torch.minimum(one, other).max(1)
    leave = torch.maximum(one, other).min(1).values
    t = torch.where((enter < leave) & (enter > 0), enter, torch.inf)
    side = F.one_hot(face, 3) * -own_d.sign()
    return _painted(t, side @ frame.T, torch.tensor(box.colour), 0.1)


def _disc(o: Tensor, d: Tensor) -> _Hit:
    t = (_FLOOR - o[:, 2]) / d[:, 2]
    at = o[:, :2] + d[:, :2] * t.unsqueeze(1)
    t = torch.where((t > 0) & (at.norm(dim=1) < _DISC), t, torch.inf)
    odd = (at.nan_to_num(0, 0, 0) / _TILE).floor().sum(1).remainder(2).unsqueeze(1)
    colour = torch.lerp(torch.tensor([0.9, 0.9, 0.85]), torch.tensor([0.3, 0.3, 0.35]), odd)
    return _painted(t, torch.tensor([0.0, 0.0, 1.0]), colour, 0.0)


def _painted(t: Tensor, normal: Tensor, colour: Tensor, shine: float) -> _Hit:
    rows = (len(t), 3)
    return _Hit(t, normal.expand(rows), colour.expand(rows), torch.full_like(t, shine))
