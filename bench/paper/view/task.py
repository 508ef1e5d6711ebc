"""What `python -m bench.paper view` can be asked for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, ClassVar

from bench.paper.task import Task
from bench.paper.view import blender, capture, llff, procedural
from bench.paper.view.model import SIZES
from bench.paper.view.problem import Views
from bench.paper.view.views import SMALLEST, Scene
from dfa_kernels.training import InputError
from dfa_kernels.training.options import check_device

_BACKGROUNDS = {"white": 1.0, "black": 0.0, "none": None}
_STEPS = {"nerf": 200_000, "nerf-small": 2000}
_RAYS = {"nerf": 4096, "nerf-small": 64}
_RATES = {"nerf": (5e-5, 1e-4, 2e-4, 5e-4), "nerf-small": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)}
_QUICK_RATES = {"nerf": (5e-5,), "nerf-small": (3e-3,)}
_QUICK = {"steps": 150, "rays": 64, "downscale": 4, "frames": 8}


class ViewSynthesis(Task):
    name = "view"
    models: ClassVar = {
        "nerf-small": "two fields 4 × 128, 16 + 16 samples a ray",
        "nerf": "the published size, two fields 8 × 256, 64 + 128 samples",
    }
    data: ClassVar = {
        "procedural": "balls and a box, ray-traced here",
        "blender": "transforms_{train,val,test}.json with RGBA images",
        "capture": "transforms.json with intrinsics and lens distortion",
        "llff": "poses_bounds.npy with images/, in normalised device coordinates",
    }

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        def number(name: str, kind: type, text: str) -> None:
            parser.add_argument(name, type=kind, metavar="N", help=text)

        number("--steps", int, "of training (nerf-small 2000, nerf 200000)")
        number("--rays", int, "a step (nerf-small 64, nerf 4096)")
        number("--downscale", int, "N × N pixels become one (procedural 3, else 1)")
        number("--frames", int, "of the orbit; 0: none (20)")
        number("--every", int, "blender: keep each N-th validation and test view (8)")
        number("--near", float, "where rays begin: blender (2), capture (from the cameras)")
        number("--far", float, "where they end: blender (6), capture (from the cameras)")
        parser.add_argument(
            "--background", choices=_BACKGROUNDS,
            help="behind the scene (white; capture and llff: none, the scene fills the picture)",
        )  # fmt: skip
        parser.add_argument("--device", default="cpu", help="where the network is (cpu)")

    def rates(self, options: argparse.Namespace) -> tuple[float, ...]:
        return (_QUICK_RATES if options.quick else _RATES)[options.model]

    def problem(self, options: argparse.Namespace) -> Views:
        quick = _QUICK if options.quick else {}
        usual: dict[str, Any] = {
            "steps": _STEPS[options.model],
            "rays": _RAYS[options.model],
            "downscale": 3 if options.data == "procedural" else 1,
            "frames": 20,
            "every": 8,
        } | quick
        for name, lowest in (
            ("steps", 1),
            ("rays", 1),
            ("downscale", 1),
            ("frames", 0),
            ("every", 1),
        ):
            if getattr(options, name) is None:
                setattr(options, name, usual[name])
            if getattr(options, name) < lowest:
                raise InputError(
                    f"--{name} must be at least {lowest}, got {getattr(options, name)}"
                )
        check_device(options.device)  # before anything that takes long
        return Views(
            options.model, self._scene(options), SIZES[options.model], steps=options.steps,
            rays=options.rays, frames=options.frames, distribution=options.distribution,
            device=options.device,
        )  # fmt: skip

    def _scene(self, options: argparse.Namespace) -> Scene:
        data, shrink = options.data, options.downscale
        near, far = _bounds(options)
        usual = "white" if data in ("procedural", "blender") else "none"
        background = _BACKGROUNDS[options.background or usual]
        if data == "procedural":
            if options.background not in (None, "white"):
                raise InputError("--background: the procedural scene lies on white")
            if procedural.SIDE // shrink < SMALLEST:
                side = procedural.SIDE // shrink
                raise InputError(
                    f"--downscale {shrink} leaves {side} × {side} pixels, fewer than {SMALLEST} × "
                    f"{SMALLEST}"
                )
            return procedural.load(shrink)
        if options.root is None:
            raise InputError(f"--data {data} needs --root DIR, the folder of {_FILES[data]}")
        root: Path = options.root
        if data == "capture":
            return capture.load(root, shrink, background, near, far)
        if data == "llff":
            return llff.load(root, shrink, background)
        return blender.load(root, shrink, background, options.every, near or 2.0, far or 6.0)


_FILES = {
    "blender": "transforms_train.json and others",
    "capture": "transforms.json",
    "llff": "poses_bounds.npy",
}


def _bounds(options: argparse.Namespace) -> tuple[float | None, float | None]:
    near, far = options.near, options.far
    for name, value in (("near", near), ("far", far)):
        if value is None:
            continue
        if options.data not in ("blender", "capture"):
            raise InputError(f"--{name} is of no use with --data {options.data}")
        if not 0 < value < float("inf"):
            raise InputError(f"--{name} must be positive and finite, got {value:g}")
    if near is not None and far is not None and near >= far:
        raise InputError(f"--near {near:g} is not before --far {far:g}")
    return near, far


TASK = ViewSynthesis()
