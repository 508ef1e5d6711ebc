"""The parts of `bench.gpu`, in the order in which they matter, and how much time each may take."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

from bench.gpu.context import Context


class Part(NamedTuple):
    """``where``: module and function under `bench.gpu`, imported where it runs. Seconds: below
    ``least`` it is skipped, beyond ``most`` it is stopped."""

    title: str
    where: str
    least: float
    most: float
    asked: bool = False  # runs only where it is asked for

    @property
    def run(self) -> Callable[[Context], None]:
        return functools.partial(_call, self.where)


def _call(where: str, context: Context) -> None:
    module, function = where.split(":")
    getattr(importlib.import_module(module), function)(context)


#: Whether the kernels are right comes before how fast they are, and the largest claims before the
#: others: time may end before this list.
PARTS = {
    "environment": Part("Machine", "bench.gpu.machine:describe", 5, 40),
    "build": Part("csrc/", "bench.gpu.build:build", 20, 90),
    "vectors": Part("Test vectors", "bench.gpu.checks:vectors", 20, 60),
    "tests": Part("Tests", "bench.gpu.checks:tests", 30, 120),
    "ceilings": Part("Ceilings", "bench.gpu.ceilings:measure", 10, 30),
    "large": Part("Large MLP, autocast", "bench.gpu.steps:large", 20, 60),
    "small": Part("Small MLP, autocast", "bench.gpu.steps:small", 20, 45),
    "narrow": Part("Narrow MLP, eager", "bench.gpu.steps:narrow", 20, 45),
    "nerf": Part("NeRF's MLP, autocast", "bench.gpu.steps:field", 20, 45),
    "small-graph": Part("Small MLP, graphs", "bench.gpu.steps:small_graph", 20, 45),
    "project": Part("`project`", "bench.gpu.kernels:projections", 10, 35),
    "update": Part("`update`", "bench.gpu.kernels:updates", 10, 30),
    "project-cuda": Part("`project`, CUDA", "bench.gpu.kernels:cuda_projections", 10, 20),
    "update-cuda": Part("`update`, CUDA", "bench.gpu.kernels:cuda_updates", 10, 30),
    "promises": Part("Memory and bits", "bench.gpu.promises:measure", 10, 30),
    "sanitizer": Part("compute-sanitizer", "bench.gpu.checks:sanitizer", 20, 40),
    "launch": Part("Host time of a call", "bench.launch:on_device", 5, 20),
    "choice": Part("Triton or CUDA", "bench.gpu.choice:measure", 10, 30),
    "epilogue": Part("ReLU in the product", "bench.gpu.epilogue:measure", 5, 15),
    "reference": Part("Operations", "bench.gpu.kernels:against_reference", 15, 45),
    "large-bf16": Part("Large MLP, bf16", "bench.gpu.steps:large_bf16", 20, 60),
    "small-bf16": Part("Small MLP, bf16", "bench.gpu.steps:small_bf16", 20, 45),
    "small-graph-bf16": Part("Small MLP, graphs, bf16", "bench.gpu.steps:small_graph_bf16", 20, 45),
    "nerf-bf16": Part("NeRF's MLP, bf16", "bench.gpu.steps:field_bf16", 20, 45),
    "small-graph-sgd": Part("Small MLP, graphs, SGD", "bench.gpu.steps:small_graph_sgd", 20, 45),
    "scaling": Part("Scaling curves", "bench.gpu.scaling:curves", 20, 60),
    "sweep": Part("Sweep of tiles", "bench.gpu.sweep:sweep", 20, 300, asked=True),
}
