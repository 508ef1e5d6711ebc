"""Training a NeRF on a scene, and scoring it on views that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

import dfa_kernels as dfa
from bench.paper.task import Metric, Problem, Run
from bench.paper.view import pictures, rendering
from bench.paper.view.model import NeRF, Size
from bench.paper.view.pictures import Picture
from bench.paper.view.rendering import Rendered
from bench.paper.view.views import Scene
from dfa_kernels.alignment import Cosine

_CHUNK = 4096  # rays rendered at a time
_RISE = 0.1  # the share of the steps over which the rate rises
_DECAY = 0.1  # what is left of the rate at the last step
_SHOWN = 2  # test views in the pictures
_ALIGNED = 128  # rays whose alignment is measured


class Training(Run):
    """Coarse and fine colours against the photograph's, on rays from all training views."""

    def __init__(self, problem: Views, method: str, rate: float, seed: int) -> None:
        super().__init__(seed)
        self.problem = problem
        model = NeRF(problem.size).to(problem.device)
        self.net = dfa.DFA(model, dfa.Feedback(problem.distribution, seed=seed), method=method)
        self.optimizer = dfa.optim.AdamW(self.net, lr=rate, weight_decay=0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, problem.share_of_rate)
        self._scores: dict[str, dict[str, float]] = {}  # of the weights as they are

    def loss(self) -> Tensor:
        self._scores.clear()
        problem = self.problem
        rays, colours = problem.scene.draw(problem.rays, self.generator)
        colours = colours.to(problem.device)
        coarse, fine = rendering.render(
            self.net, rays.to(problem.device), problem.scene.volume, problem.size, self.generator
        )
        return F.mse_loss(coarse.colour, colours) + F.mse_loss(fine.colour, colours)

    def scores(self, split: str) -> dict[str, float]:
        if split not in self._scores:
            views = self.problem.scene.splits[split]
            each = []
            for pixels, pose in zip(views.pixels, views.poses, strict=True):
                each.append(scores(self.picture(pose).colour, pixels.numpy() / np.float32(255)))
            self._scores[split] = {name: mean(s[name] for s in each) for name in each[0]}
        return dict(self._scores[split])

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._scores.clear()

    def picture(self, pose: Tensor) -> Picture:
        """The fine field's view from ``pose``."""
        problem = self.problem
        self.net.eval()
        parts: list[Rendered] = []
        with torch.no_grad():
            for rays in problem.scene.rays(pose).chunks(_CHUNK):
                rays = rays.to(problem.device)
                parts.append(
                    rendering.render(self.net, rays, problem.scene.volume, problem.size)[1]
                )
        shape = problem.scene.camera.height, problem.scene.camera.width
        colour, depth = (
            torch.cat([getattr(p, name) for p in parts]).cpu() for name in ("colour", "depth")
        )
        return Picture(colour.view(*shape, 3).clamp(0, 1).numpy(), depth.view(shape).numpy())

    def alignment(self) -> dict[str, Cosine]:
        """Of both fields, on one batch of regular samples that no run has drawn."""
        problem = self.problem
        volume = problem.scene.volume
        rays, colours = problem.scene.draw(_ALIGNED, torch.Generator().manual_seed(2**31))
        rays, colours = rays.to(problem.device), colours.to(problem.device)
        coarse = rendering.stratified(volume, _ALIGNED, problem.size.coarse, None)
        coarse = coarse.to(problem.device)
        with torch.no_grad():
            asked = rendering.query(rays, coarse, fine=False)
            first = rendering.composite(self.net(asked), coarse, rays, volume)
        fine = rendering.refined(coarse, first, problem.size.fine, None)

        def loss(raw: Tensor, depths: Tensor) -> Tensor:
            return F.mse_loss(rendering.composite(raw, depths, rays, volume).colour, colours)

        found: dict[str, Cosine] = {}
        for depths, is_fine in ((coarse, False), (fine, True)):
            found |= dfa.alignment(self.net, loss, rendering.query(rays, depths, is_fine), depths)
        return found


class Views(Problem):
    """A scene and how long to look at it. ``frames``: of the orbit; 0 leaves it out."""

    metrics = (
        Metric("PSNR", higher_is_better=True),
        Metric("SSIM", higher_is_better=True, digits=3),
    )

    def __init__(
        self, model: str, scene: Scene, size: Size, *, steps: int, rays: int, frames: int,
        distribution: str, device: str,
    ) -> None:  # fmt: skip
        self.model, self.data = model, scene.name
        self.scene, self.size = scene, size
        self.steps, self.rays, self.frames = steps, rays, frames
        self.validate_every = max(1, steps // 2)
        self.distribution, self.device = distribution, device
        camera, volume = scene.camera, scene.volume
        self.description = {
            **size._asdict(),
            "rays": rays,
            "pixels": [camera.width, camera.height],
            "views": {name: len(views.poses) for name, views in scene.splits.items()},
            "near": volume.near,
            "far": volume.far,
            "background": volume.background,
            "ndc": scene.ndc,
            "distribution": distribution,
            "optimizer": f"Adam, rate rising over {_RISE:g} of the steps, falling to {_DECAY:g}",
        }

    def share_of_rate(self, step: int) -> float:
        """A linear rise, then an exponential fall, as mip-NeRF's: a full rate at once can send a
        density where its gradient is zero, before the feedback means anything."""
        rise = min(1.0, (step + 1) / (_RISE * self.steps))
        return rise * _DECAY ** (step / self.steps)

    def run(self, method: str, rate: float, seed: int) -> Training:
        return Training(self, method, rate, seed)

    def draw(self, runs: Mapping[str, Run], folder: Path) -> list[Path]:
        trained = {name: run for name, run in runs.items() if isinstance(run, Training)}
        views = self.scene.splits["test"]
        truth: list[Picture] = []
        captions: dict[str, list[str]] = {method: [] for method in trained}
        rendered: dict[str, list[Picture]] = {method: [] for method in trained}
        for pixels, pose in zip(views.pixels[:_SHOWN], views.poses[:_SHOWN], strict=True):
            photograph = pixels.numpy() / np.float32(255)
            truth.append(Picture(photograph, self._true_depth(pose)))
            for method, run in trained.items():
                picture = run.picture(pose)
                rendered[method].append(picture)
                psnr = scores(picture.colour, photograph)["PSNR"]
                captions[method].append(f"{method} {psnr:.1f} dB")
        paths = pictures.write_views(truth, rendered, captions, folder)
        if self.frames:
            poses = self.scene.orbit(self.frames)
            orbits = {m: [run.picture(pose).colour for pose in poses] for m, run in trained.items()}
            if self.scene.truth is not None:
                true = [self.scene.truth(pose)[0].numpy() for pose in poses]
                orbits = {"truth": true, **orbits}
            paths += pictures.write_orbit(orbits, folder)
        return paths

    def _true_depth(self, pose: Tensor) -> np.ndarray:
        if self.scene.truth is None:
            shape = self.scene.camera.height, self.scene.camera.width
            return np.full(shape, np.nan, np.float32)
        return self.scene.truth(pose)[1].numpy()


def scores(image: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """PSNR, and SSIM as Wang et al. 2004 define it (a Gaussian window, σ 1.5)."""
    similarity = structural_similarity(
        truth, image, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    with np.errstate(divide="ignore"):  # equal images: infinite
        ratio = peak_signal_noise_ratio(truth, image, data_range=1.0)
    return {"PSNR": float(ratio), "SSIM": float(similarity)}
