"""`transforms*.json`, which Blender scenes and real captures share: frames with poses.

{"camera_angle_x": …, "frames": [{"file_path": "…", "transform_matrix": [[…], …]}, …]}
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.paper.view.cameras import check_pose
from dfa_kernels.training import InputError


class Frame(NamedTuple):
    where: str  # the file and the frame, for errors
    image: Path
    pose: Tensor  # (4, 4)


class Transforms:
    """One such file, checked.

    Raises:
        InputError: it is missing, not JSON, or a frame has no path or no proper pose.
    """

    def __init__(self, path: Path, suffix: str = "") -> None:
        """``suffix``: of images whose ``file_path`` has none."""
        self.path = path
        self.values = _read(path)
        frames = self.values.get("frames")
        if not isinstance(frames, list) or not frames:
            raise InputError(f"{path} has no list of frames")
        self.frames = [self._frame(i, frame, suffix) for i, frame in enumerate(frames)]

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number at the top of the file; ``default`` where it is left out."""
        value = self.values.get(name, default)
        if value is None:
            raise InputError(f"{self.path} has no {name}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{self.path}: {name} is {value!r}, not a number")
        if not math.isfinite(value):
            raise InputError(f"{self.path}: {name} is {value}")
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.number(name, default)
        if value <= 0:
            raise InputError(f"{self.path}: {name} must be positive, got {value:g}")
        return value

    def angle(self) -> float:
        value = self.positive("camera_angle_x")
        if value >= math.pi:
            raise InputError(f"{self.path}: camera_angle_x must be below π, got {value:g}")
        return value

    def poses(self) -> Tensor:
        return torch.stack([frame.pose for frame in self.frames])

    def _frame(self, index: int, frame: Any, suffix: str) -> Frame:
        where = f"{self.path}, frame {index}"
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise InputError(f"{where}: it has no file_path")
        where = f"{where} ({frame['file_path']})"
        try:
            pose = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
        except KeyError:
            raise InputError(f"{where}: it has no transform_matrix") from None
        except (TypeError, ValueError):
            raise InputError(f"{where}: its transform_matrix is not a matrix of numbers") from None
        if pose.shape != (4, 4):
            raise InputError(f"{where}: its transform_matrix is {tuple(pose.shape)}, not 4 × 4")
        check_pose(pose, where)
        image = self.path.parent / frame["file_path"]
        if not image.suffix:
            image = image.with_name(image.name + suffix)
        return Frame(where, image, pose.float())


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        values = json.loads(path.read_text())
    except OSError as failed:
        raise InputError(f"{path} cannot be read: {failed.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text") from None
    except json.JSONDecodeError as wrong:
        raise InputError(f"{path}, line {wrong.lineno}: it is no JSON: {wrong.msg}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}, not an object with frames")
    return values
