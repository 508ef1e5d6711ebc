"""Small scenes on disk, in each format, of the procedural scene: what the loaders must find."""

import json

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bench.paper.view import procedural
from bench.paper.view.cameras import Camera, look_at

SIDE = 13
CAMERA = Camera.of_angle(SIDE, SIDE, 0.75)


def poses(count, spread=1.0):
    """Cameras 4 from the origin; the smaller ``spread``, the more they face one way."""
    turn = spread * torch.linspace(-1, 1, count)
    eyes = torch.stack([turn.sin(), -turn.cos(), 0.6 + 0.2 * spread * turn.cos()], 1)
    return look_at(4 * F.normalize(eyes, dim=1), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))


def photographs(views, camera=CAMERA):
    shots = [procedural.photograph(camera, pose) for pose in views]
    return [(255 * colour).round().byte().numpy() for colour, _ in shots]


def write_blender(root, counts=(3, 2, 2)):
    """RGBA, transparent where the scene is not. Returns the poses of each split."""
    written = {}
    for name, count in zip(("train", "val", "test"), counts, strict=True):
        (root / name).mkdir(parents=True)
        written[name] = poses(count, 0.5 + count)
        frames = []
        for i, pose in enumerate(written[name]):
            colour, depth = procedural.photograph(CAMERA, pose)
            alpha = depth.isfinite().float().unsqueeze(2)
            pixels = (255 * torch.cat([colour, alpha], 2)).round().byte().numpy()
            Image.fromarray(pixels).save(root / name / f"r_{i}.png")
            frames.append({"file_path": f"./{name}/r_{i}", "transform_matrix": pose.tolist()})
        text = json.dumps({"camera_angle_x": 0.75, "frames": frames})
        (root / f"transforms_{name}.json").write_text(text)
    return written


def write_capture(root, count=9, **changed):
    """In a world of its own, half as large again and moved. Returns the poses without that.
    ``changed``: values at the top of the file; None leaves one out."""
    (root / "images").mkdir(parents=True)
    views = poses(count)
    frames = []
    for i, (pose, pixels) in enumerate(zip(views, photographs(views), strict=True)):
        Image.fromarray(pixels).save(root / "images" / f"{i:04}.png")
        moved = pose.clone()
        moved[:3, 3] = 1.5 * pose[:3, 3] + torch.tensor([1.0, -2.0, 0.5])
        frames.append({"file_path": f"images/{i:04}.png", "transform_matrix": moved.tolist()})
    values = {"fl_x": CAMERA.fx, "fl_y": CAMERA.fy, "cx": CAMERA.cx, "cy": CAMERA.cy}
    values |= {"w": SIDE, "h": SIDE, "frames": frames} | changed
    values = {k: v for k, v in values.items() if v is not None}
    (root / "transforms.json").write_text(json.dumps(values, indent=1))
    return views


def llff_rows(views, near=2.4, far=5.6):
    rows = []
    for pose in views.double().numpy():
        right, up, back, at = pose[:3].T
        size = np.array([SIDE, SIDE, CAMERA.fx])
        rows.append([*np.stack([-up, right, back, at, size], 1).ravel(), near, far])
    return np.array(rows)


def write_llff(root, count=9):
    (root / "images").mkdir(parents=True)
    views = poses(count, 0.15)
    for i, pixels in enumerate(photographs(views)):
        Image.fromarray(pixels).save(root / "images" / f"{i:04}.png")
    np.save(root / "poses_bounds.npy", llff_rows(views))
    return views


def edit(path, change):
    """Read a JSON file, let ``change`` work on it, write it back."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
