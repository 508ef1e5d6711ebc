"""A real capture: photographs, and one `transforms.json` with intrinsics and lens distortion.

The convention of NVlabs/instant-ngp's tools: fl_x, fl_y, cx, cy in pixels of w × h, k1, k2, p1, p2
as in OpenCV. The capture is moved and scaled so that the point that all cameras look at is the
origin and the mean camera stands 4 from it: the positional encoding wants coordinates near 1.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench.paper.view.cameras import Camera, focus, swing
from bench.paper.view.rendering import Volume
from bench.paper.view.transforms import Transforms
from bench.paper.view.views import Scene, read_image, split, stack
from dfa_kernels.training import InputError

_DISTANCE = 4.0  # of the mean camera
_UNKNOWN = ("k3", "k4", "is_fisheye", "ftheta_p0", "rolling_shutter")  # not in this lens model


def load(
    root: Path, shrink: int, background: float | None, near: float | None, far: float | None
) -> Scene:
    """
    Args:
        near, far: in the file's own units; None: 0.3 of the nearest camera's distance from the
            point that all look at, and twice the farthest one's.

    Raises:
        InputError: a file is missing or wrong.
    """
    file = Transforms(root / "transforms.json", ".jpg")
    for name in _UNKNOWN:
        if file.values.get(name):
            raise InputError(f"{file.path}: {name} is not part of the lens model k1, k2, p1, p2")
    file.frames.sort(key=lambda frame: frame.image)  # the split must not depend on the order
    pictures = [(f.where, read_image(f.image, f.where, shrink, background)) for f in file.frames]
    pixels, poses = stack(pictures), file.poses()
    camera = _camera(file, pixels.shape[2], pixels.shape[1], shrink)
    at = focus(poses)
    distances = (poses[:, :3, 3] - at).norm(dim=1)
    if not float(distances.min()) > 1e-6 * float(distances.max()):  # nor is it NaN
        raise InputError(f"{file.path}: a camera stands where all look at: no scale can be found")
    scale = _DISTANCE / float(distances.mean())
    near = 0.3 * float(distances.min()) if near is None else near
    far = 2 * float(distances.max()) if far is None else far
    if not near < far:
        raise InputError(f"{file.path}: near {near:g} is not before far {far:g}")
    poses[:, :3, 3] = (poses[:, :3, 3] - at) * scale
    volume = Volume(near * scale, far * scale, background)
    splits = split(pixels, poses, file.path)
    orbit = partial(swing, poses, poses.new_zeros(3))
    return Scene(root.resolve().name, camera, splits, volume, orbit)


def _camera(file: Transforms, width: int, height: int, shrink: int) -> Camera:
    """Of images that were already shrunk to ``width`` × ``height``."""
    w, h = file.number("w", width * shrink), file.number("h", height * shrink)
    if (w // shrink, h // shrink) != (width, height):
        raise InputError(
            f"{file.path}: w × h is {w:g} × {h:g}, but its images are {width} × {height} after "
            f"shrinking {shrink} times"
        )
    if "fl_x" in file.values:
        fx = file.positive("fl_x")
        fy = file.positive("fl_y", fx)
    else:
        fx = fy = Camera.of_angle(int(w), int(h), file.angle()).fx
    distortion = [file.number(name, 0.0) for name in ("k1", "k2", "p1", "p2")]
    centre = file.number("cx", w / 2), file.number("cy", h / 2)
    return Camera(int(w), int(h), fx, fy, *centre, *distortion).shrunk(shrink)
