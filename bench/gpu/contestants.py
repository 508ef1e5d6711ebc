"""Who takes part in `bench.gpu.steps`: the package's contestants, and our reference compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import dfa_kernels as dfa
from bench.gpu.build import cuda_backend
from dfa_kernels.backends.reference import Reference
from dfa_kernels.throughput.contestants import (
    Built,
    Setting,
    compiled,
    eager,
    in_backward,
    ours,
    ours_compiled,
    plain_optimizer,
)
from dfa_kernels.throughput.networks import Task

OURS, IN_BACKWARD = "ours", 'ours, update="backward"'
TRITON, CUDA = "ours, Triton backend", "ours, CUDA backend"
OURS_COMPILED = 'ours, torch.compile, update="backward"'
COMPILED, EAGER = "torch.compile'd backpropagation", "eager backpropagation"
REFERENCE = "torch.compile of our reference backend"


def on_triton(task: Task, setting: Setting) -> Built:
    """`ours`, whatever the work, by Triton's kernels."""
    return _by("triton", task, setting)


def on_cuda(task: Task, setting: Setting) -> Built:
    """`ours`, whatever the work, by the kernels of csrc/.

    Raises:
        RuntimeError: they are not built.
    """
    backend = cuda_backend(setting.device)
    if backend is None:
        raise RuntimeError("the CUDA backend is not built")
    return _by(backend, task, setting)


def _by(backend: str, task: Task, setting: Setting) -> Built:
    built = ours(task, setting)

    def run() -> object:
        with dfa.backends.use(backend):
            return built.run()

    return built._replace(run=run)


def compiled_reference(setting: Setting, reference: Reference, name: str) -> Callable:
    """A function of the reference's, compiled by torch, but for the first call, which makes B and
    keeps it: compiled, that would be one compilation, and what follows another."""
    eager = getattr(reference, name)
    later = setting.compile(eager)
    calls = 0

    def run(*given: object) -> Any:
        nonlocal calls
        calls += 1
        return (eager if calls == 1 else later)(*given)

    return run


class _CompiledReference:
    """The reference backend with `project` and `gradients` compiled.

    Its `step_` is eager and goes slice by slice, which suits a CPU's cache: torch.optim's fused
    step on compiled gradients is the stronger rival, and the one that runs here.
    """

    def __init__(self, setting: Setting) -> None:
        backend = Reference()
        self.project = compiled_reference(setting, backend, "project")
        self.gradients = compiled_reference(setting, backend, "gradients")

    def unavailable(self, device: torch.device) -> str | None:
        return None

    def describe(self) -> str:
        return "the reference, compiled by torch"


def reference(task: Task, setting: Setting) -> Built:
    built = plain_optimizer(task, setting)
    # What it has compiled and kept is of one network.
    backend = f"compiled-reference-{len(dfa.backends.available(setting.device))}"
    dfa.backends.register(backend, _CompiledReference(setting))

    def on_reference() -> object:
        with dfa.backends.use(backend):
            return built.run()

    return built._replace(run=on_reference)


#: In the order in which they are built: those first that a target names.
CONTESTANTS: dict[str, Callable[[Task, Setting], Built]] = {
    OURS: ours,
    EAGER: eager,
    CUDA: on_cuda,
    TRITON: on_triton,
    COMPILED: compiled,
    REFERENCE: reference,
    IN_BACKWARD: in_backward,
    OURS_COMPILED: ours_compiled,
}
