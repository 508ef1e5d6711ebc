"""A scene as the task sees it: photographs of it with their poses, in three splits.

Photographs are kept as bytes and rays are made as they are asked for, so that the memory is that
of the pictures alone. Every loader ends here; what it cannot use it refuses in one sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.paper.view.cameras import Camera, Rays, cast, to_ndc
from bench.paper.view.rendering import Volume
from dfa_kernels.training import InputError

SPLITS = ("train", "validation", "test")
_HOLD = 8  # every eighth photograph is a test view, as is usual for captures without a split
SMALLEST = 11  # pixels: the window of SSIM


class Views(NamedTuple):
    """pixels (views, height, width, 3) uint8; poses (views, 4, 4)."""

    pixels: Tensor
    poses: Tensor


@dataclass
class Scene:
    """``orbit``: so many poses to show the scene from. ``truth``: from any pose, where they are
    known, colour (height, width, 3) and depth (height, width). ``ndc``: whether rays are in
    normalised device coordinates."""

    name: str
    camera: Camera
    splits: dict[str, Views]
    volume: Volume
    orbit: Callable[[int], Tensor]
    ndc: bool = False
    truth: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def __post_init__(self) -> None:
        self._directions = self.camera.directions()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Rays, Tensor]:
        """``count`` pixels of the training views: rays, and colours (count, 3) in [0, 1]."""
        pixels, poses = self.splits["train"]
        views, height, width, _ = pixels.shape
        drawn = torch.randint(views * height * width, (count,), generator=generator)
        view, pixel = drawn // (height * width), drawn % (height * width)
        rays = self._rays(self._directions.view(-1, 3)[pixel], poses[view])
        return rays, pixels.view(-1, 3)[drawn].float() / 255

    def rays(self, pose: Tensor) -> Rays:
        """Of every pixel, row by row."""
        return self._rays(self._directions.view(-1, 3), pose)

    def _rays(self, directions: Tensor, poses: Tensor) -> Rays:
        rays = cast(directions, poses)
        return to_ndc(rays, self.camera) if self.ndc else rays


def split(pixels: Tensor, poses: Tensor, where: Path) -> dict[str, Views]:
    """Views 0, 8, 16, … for testing, 4, 12, 20, … for validation, the others for training.

    Raises:
        InputError: too few for that.
    """
    place = torch.arange(len(pixels)) % _HOLD
    chosen = {"train": place % 4 != 0, "validation": place == 4, "test": place == 0}
    if len(pixels) < 6:
        raise InputError(
            f"{where} holds {len(pixels)} frames, but a split into training, validation and test "
            "views needs at least 6"
        )
    return {name: Views(pixels[of], poses[of]) for name, of in chosen.items()}


def read_image(path: Path, where: str, shrink: int, background: float | None) -> Tensor:
    """(height, width, 3) uint8; ``shrink`` × ``shrink`` pixels are averaged to one, and what is
    transparent lies on the ``background``.

    Args:
        where: names the frame in errors.

    Raises:
        InputError: no image, or not a whole one, or one too small to be shrunk so much.
    """
    if not path.is_file():
        raise InputError(f"{where}: its image {path} does not exist")
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA" if "transparency" in opened.info else opened.mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as broken:
        why = str(broken).split(" (")[0]
        raise InputError(f"{where}: its image {path} cannot be read: {why}") from None
    if picture.mode[0] in "IF":
        raise InputError(f"{where}: its image {path} is {picture.mode}, not 8 bits a channel")
    if picture.mode in ("RGBA", "LA", "PA") and background is not None:
        shade = (round(255 * background),) * 3
        behind = Image.new("RGBA", picture.size, (*shade, 255))
        picture = Image.alpha_composite(behind, picture.convert("RGBA"))
    width, height = (n // shrink for n in picture.size)
    if min(width, height) < SMALLEST:
        raise InputError(
            f"{where}: its image {path} of {picture.width} × {picture.height} pixels, shrunk "
            f"{shrink} times, is smaller than {SMALLEST} × {SMALLEST}"
        )
    whole = picture.convert("RGB").crop((0, 0, width * shrink, height * shrink))
    return torch.from_numpy(np.array(whole.reduce(shrink)))


def stack(pictures: list[tuple[str, Tensor]]) -> Tensor:
    """Pictures with where they are from, which must have one size."""
    first, shape = pictures[0][0], pictures[0][1].shape
    for where, picture in pictures:
        if picture.shape != shape:
            raise InputError(
                f"{where}: its image is {picture.shape[1]} × {picture.shape[0]} pixels after "
                f"shrinking, but that of {first} {shape[1]} × {shape[0]}"
            )
    return torch.stack([picture for _, picture in pictures])
