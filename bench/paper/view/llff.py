"""LLFF: forward-facing photographs, `poses_bounds.npy`, and normalised device coordinates.

A row of the file is a view: 3 × 5 numbers [rotation | position | (height, width, focal)], whose
axes are down, right, backwards; then the nearest and the farthest depth that were seen.
Mildenhall et al., SIGGRAPH 2019; the photographs lie in `images/`, in order of name.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.paper.view.cameras import Camera, check_pose, swing
from bench.paper.view.rendering import Volume
from bench.paper.view.views import Scene, read_image, split, stack
from dfa_kernels.training import InputError

_SUFFIXES = {".jpg", ".jpeg", ".png"}
_NEAREST = 4 / 3  # the nearest depth of all after scaling: the plane z = −1 lies before it


def load(root: Path, shrink: int, background: float | None) -> Scene:
    """
    Raises:
        InputError: a file is missing or wrong.
    """
    path = root / "poses_bounds.npy"
    rows = _read(path)
    images = sorted(p for p in _folder(root).iterdir() if p.suffix.lower() in _SUFFIXES)
    if len(images) != len(rows):
        raise InputError(
            f"{path} has {len(rows)} poses, but {root / 'images'} holds {len(images)} images"
        )
    size = rows[0, :15].reshape(3, 5)[:, 4]
    for i, row in enumerate(rows):
        where = f"{path}, frame {i} ({images[i].name})"
        if not np.array_equal(row[:15].reshape(3, 5)[:, 4], size):
            raise InputError(f"{where}: its height, width or focal length is not the first one's")
        if not 0 < row[15] < row[16]:
            raise InputError(f"{where}: its bounds {row[15]:g}, {row[16]:g} are not 0 < near < far")
    poses = torch.stack([_pose(row, path, i, images[i]) for i, row in enumerate(rows)])
    pictures = [
        (f"{path}, frame {i}", read_image(image, f"{path}, frame {i}", shrink, background))
        for i, image in enumerate(images)
    ]
    pixels = stack(pictures)
    height, width, focal = (float(n) for n in size)
    if (width // shrink, height // shrink) != (pixels.shape[2], pixels.shape[1]):
        raise InputError(
            f"{path}: its images should be {width:g} × {height:g}, but are {pixels.shape[2]} × "
            f"{pixels.shape[1]} after shrinking {shrink} times"
        )
    if focal <= 0:
        raise InputError(f"{path}: the focal length must be positive, got {focal:g}")
    centre = width / 2, height / 2
    camera = Camera(int(width), int(height), focal, focal, *centre).shrunk(shrink)
    scale = _NEAREST / float(rows[:, 15].min())
    poses[:, :3, 3] *= scale
    poses = _recentred(poses)
    if not bool((poses[:, 2, 2] > 0.1).all()):
        i = int(poses[:, 2, 2].argmin())
        raise InputError(
            f"{path}, frame {i} ({images[i].name}): it does not face the way of the mean camera, "
            "which normalised device coordinates need: use a transforms.json and --data capture"
        )
    far = scale * float(rows[:, 16].max())
    depth = 1 / (0.75 / _NEAREST + 0.25 / far)  # between both ends, nearer to the near one
    return Scene(
        root.resolve().name, camera, split(pixels, poses, path), Volume(0.0, 1.0, background),
        partial(swing, poses, torch.tensor([0.0, 0.0, -depth])), ndc=True,
    )  # fmt: skip


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as broken:
        raise InputError(f"{path} is no sound NumPy file: {broken}") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 17:
        shape = getattr(rows, "shape", "no array")
        raise InputError(f"{path} has shape {shape}, not (views, 17)")
    if not np.issubdtype(rows.dtype, np.number) or not len(rows):
        raise InputError(f"{path} holds {len(rows)} rows of {rows.dtype}, not of numbers")
    return rows.astype(np.float64)


def _folder(root: Path) -> Path:
    folder = root / "images"
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: LLFF's photographs should be there")
    return folder


def _pose(row: np.ndarray, path: Path, i: int, image: Path) -> Tensor:
    m = torch.from_numpy(row[:15].reshape(3, 5).copy())
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.stack([m[:, 1], -m[:, 0], m[:, 2], m[:, 3]], 1)
    check_pose(pose, f"{path}, frame {i} ({image.name})")
    return pose.float()


def _recentred(poses: Tensor) -> Tensor:
    """In the frame of the mean camera, so that all face about −z."""
    centre = poses[:, :3, 3].mean(0)
    back = F.normalize(poses[:, :3, 2].sum(0), dim=0)
    right = F.normalize(torch.linalg.cross(poses[:, :3, 1].sum(0), back), dim=0)
    mean = torch.eye(4)
    mean[:3] = torch.stack([right, torch.linalg.cross(back, right), back, centre], 1)
    return torch.linalg.inv(mean) @ poses
