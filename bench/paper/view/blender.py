"""Blender scenes: `transforms_{train,val,test}.json` and RGBA images, as NeRF's own are.

Cameras stand about 4 from the origin, near 2 and far 6; one field of view for all.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench.paper.view.cameras import Camera, around
from bench.paper.view.rendering import Volume
from bench.paper.view.transforms import Transforms
from bench.paper.view.views import SPLITS, Scene, Views, read_image, stack
from dfa_kernels.training import InputError

_FILES = dict(zip(SPLITS, ("train", "val", "test"), strict=True))


def load(
    root: Path, shrink: int, background: float | None, every: int, near: float, far: float
) -> Scene:
    """
    Args:
        every: of the validation and test views each one in so many is kept.

    Raises:
        InputError: a file is missing or wrong.
    """
    files = {n: Transforms(root / f"transforms_{f}.json", ".png") for n, f in _FILES.items()}
    angle = files["train"].angle()
    splits = {}
    for name, file in files.items():
        if file.angle() != angle:
            raise InputError(
                f"{file.path}: camera_angle_x is {file.angle():g}, but {angle:g} in the training "
                "views"
            )
        step = 1 if name == "train" else every
        frames = file.frames[::step]
        pictures = [(f.where, read_image(f.image, f.where, shrink, background)) for f in frames]
        splits[name] = Views(stack(pictures), file.poses()[::step])
    height, width = splits["train"].pixels.shape[1:3]
    for name, views in splits.items():
        if views.pixels.shape[1:3] != (height, width):
            raise InputError(
                f"{files[name].path}: its images are {views.pixels.shape[2]} × "
                f"{views.pixels.shape[1]} pixels after shrinking, the training views' {width} × "
                f"{height}"
            )
    radius = float(splits["train"].poses[:, :3, 3].norm(dim=1).mean())
    return Scene(
        root.resolve().name, Camera.of_angle(width, height, angle), splits,
        Volume(near, far, background), partial(around, radius, 0.5),
    )  # fmt: skip
