"""Cameras: from a pixel and a pose to a ray, through the lens.

A pose is camera to world, 4 × 4: the camera looks along its own −z, x is right, y is up. Pixel
centres lie at half integers, so (0.5, 0.5) is the first one's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dfa_kernels.training import InputError

_ORTHONORMAL = 1e-3  # how far RᵀR may be from the identity: files have few digits


class Rays(NamedTuple):
    """``origins`` + t · ``directions``; ``views``: unit directions that the colour depends on."""

    origins: Tensor
    directions: Tensor
    views: Tensor

    def chunks(self, size: int) -> list[Rays]:
        return [Rays(*part) for part in zip(*(t.split(size) for t in self), strict=True)]

    def to(self, device: torch.device | str) -> Rays:
        return Rays(*(t.to(device) for t in self))


class Camera(NamedTuple):
    """Focal lengths and principal point in pixels; OpenCV's radial k and tangential p."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0

    @classmethod
    def of_angle(cls, width: int, height: int, angle_x: float) -> Camera:
        """Without distortion, looking through its centre; ``angle_x``: the field of view."""
        focal = width / 2 / math.tan(angle_x / 2)
        return cls(width, height, focal, focal, width / 2, height / 2)

    def shrunk(self, times: int) -> Camera:
        """For images of which every ``times`` × ``times`` pixels became one."""
        f, c = (self.fx / times, self.fy / times), (self.cx / times, self.cy / times)
        return self._replace(
            width=self.width // times, height=self.height // times,
            fx=f[0], fy=f[1], cx=c[0], cy=c[1],
        )  # fmt: skip

    @property
    def distortion(self) -> tuple[float, float, float, float]:
        return self.k1, self.k2, self.p1, self.p2

    def directions(self) -> Tensor:
        """Of every pixel, in the camera's frame: (height, width, 3), with z = −1.

        Raises:
            InputError: the distortion cannot be inverted over the whole image.
        """
        y, x = torch.meshgrid(
            torch.arange(self.height, dtype=torch.float64) + 0.5,
            torch.arange(self.width, dtype=torch.float64) + 0.5,
            indexing="ij",
        )
        x, y = (x - self.cx) / self.fx, (y - self.cy) / self.fy
        if any(self.distortion):
            x, y = undistort(x, y, *self.distortion)
        return torch.stack([x, -y, -torch.ones_like(x)], -1).float()


def distort(
    x: Tensor, y: Tensor, k1: float, k2: float, p1: float, p2: float
) -> tuple[Tensor, Tensor]:
    """OpenCV's model, on x/z and y/z with y down."""
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + k2 * r2)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def undistort(
    x: Tensor, y: Tensor, k1: float, k2: float, p1: float, p2: float
) -> tuple[Tensor, Tensor]:
    """The inverse of `distort`, by Newton's method.

    Raises:
        InputError: some point has none near it.
    """
    u, v = x.clone(), y.clone()
    for _ in range(20):
        at_x, at_y = distort(u, v, k1, k2, p1, p2)
        r2 = u * u + v * v
        radial, slope = 1 + r2 * (k1 + k2 * r2), 2 * (k1 + 2 * k2 * r2)
        xx = radial + u * u * slope + 2 * p1 * v + 6 * p2 * u
        yy = radial + v * v * slope + 6 * p1 * v + 2 * p2 * u
        xy = u * v * slope + 2 * p1 * u + 2 * p2 * v  # the Jacobian is symmetric
        det = xx * yy - xy * xy
        u = u - (yy * (at_x - x) - xy * (at_y - y)) / det
        v = v - (xx * (at_y - y) - xy * (at_x - x)) / det
    at_x, at_y = distort(u, v, k1, k2, p1, p2)
    left = (at_x - x).abs().maximum((at_y - y).abs())
    # Past a fold of the model the image is turned over, once or twice: that is no lens.
    upright = (det > 0) & (xx + yy > 0)
    if not bool(((left < 1e-6) & upright).all()):
        raise InputError(
            f"the lens distortion k1 {k1:g}, k2 {k2:g}, p1 {p1:g}, p2 {p2:g} cannot be inverted "
            "over the whole image"
        )
    return u, v


def cast(directions: Tensor, poses: Tensor) -> Rays:
    """Rays of directions (…, 3) in the frames of cameras (…, 4, 4)."""
    turned = (poses[..., :3, :3] @ directions.unsqueeze(-1)).squeeze(-1)
    origins = poses[..., :3, 3].expand(turned.shape)
    return Rays(origins, turned, F.normalize(turned, dim=-1))


def to_ndc(rays: Rays, camera: Camera) -> Rays:
    """Normalised device coordinates, for cameras that all face −z: t in [0, 1) runs from the
    plane z = −1 to infinity, and equal steps are equal steps in disparity (NeRF, appendix C)."""
    o, d = rays.origins, rays.directions
    o = o - ((1 + o[..., 2:]) / d[..., 2:]) * d
    scale = o.new_tensor([-2 * camera.fx / camera.width, -2 * camera.fy / camera.height])
    o_slope, d_slope = o[..., :2] / o[..., 2:], d[..., :2] / d[..., 2:]
    origins = torch.cat([scale * o_slope, 1 + 2 / o[..., 2:]], -1)
    directions = torch.cat([scale * (d_slope - o_slope), -2 / o[..., 2:]], -1)
    return Rays(origins, directions, rays.views)


# Poses ------------------------------------------------------------------------------------------


def check_pose(pose: Tensor, where: str) -> None:
    """``pose``: (4, 4) or (3, 4).

    Raises:
        InputError: it does not turn and move a camera; ``where`` names the file and the frame.
    """
    if not bool(pose.isfinite().all()):
        raise InputError(f"{where}: the pose has an entry that is not finite")
    if len(pose) == 4 and pose[3].tolist() != [0, 0, 0, 1]:
        raise InputError(f"{where}: the pose's last row is {pose[3].tolist()}, not 0 0 0 1")
    r = pose[:3, :3].double()
    off = float((r.T @ r - torch.eye(3, dtype=torch.float64)).abs().max())
    if off > _ORTHONORMAL:
        raise InputError(
            f"{where}: the pose is not a rotation: RᵀR is off the identity by {off:.2g}"
        )
    if float(torch.linalg.det(r)) < 0:
        raise InputError(f"{where}: the pose is not a rotation: it mirrors, its determinant is −1")


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """The pose of a camera at ``eye`` that looks at ``target``; each (…, 3)."""
    back = F.normalize(eye - target, dim=-1)
    right = F.normalize(torch.linalg.cross(up.expand(back.shape), back), dim=-1)
    pose = torch.zeros(*back.shape[:-1], 4, 4)
    axes = [right, torch.linalg.cross(back, right), back, eye.expand(back.shape)]
    pose[..., :3, :] = torch.stack(axes, -1)
    pose[..., 3, 3] = 1
    return pose


def around(radius: float, elevation: float, count: int) -> Tensor:
    """Poses on a circle about the z axis that look at the origin; ``elevation`` in radians."""
    turn = torch.arange(count) * (2 * math.pi / count)
    flat, high = radius * math.cos(elevation), radius * math.sin(elevation)
    eyes = torch.stack([flat * turn.cos(), flat * turn.sin(), torch.full_like(turn, high)], -1)
    return look_at(eyes, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))


def swing(poses: Tensor, target: Tensor, count: int) -> Tensor:
    """Poses on an ellipse about the mean camera, half as wide and high as the cameras are spread,
    that look at ``target``: an orbit for photographs that were taken from one side."""
    centre = poses[:, :3, 3].mean(0)
    up = F.normalize(poses[:, :3, 1].mean(0), dim=0)
    frame = look_at(centre, target, up)[:3, :3]
    spread = ((poses[:, :3, 3] - centre) @ frame).std(0) / 2
    turn = torch.arange(count) * (2 * math.pi / count)
    eyes = centre + (spread[0] * turn.cos())[:, None] * frame[:, 0]
    return look_at(eyes + (spread[1] * turn.sin())[:, None] * frame[:, 1], target, up)


def focus(poses: Tensor) -> Tensor:
    """The point nearest to all optical axes, in the least-squares sense."""
    axes, origins = poses[:, :3, 2].double(), poses[:, :3, 3].double()
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    nearest = torch.linalg.lstsq(across.sum(0), (across @ origins[:, :, None]).sum(0)).solution
    return nearest[:, 0].float()
