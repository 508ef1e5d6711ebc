"""Whole training steps: ours through the public module, and what it is held against.

A step is forward pass, loss, backward pass and optimizer. All share the architecture, the initial
weights, the batch, the loss, the precision and the optimizer's rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn

import dfa_kernels as dfa
from bench.gpu.build import cuda_backend
from bench.gpu.networks import Task
from bench.gpu.timing import Run
from dfa_kernels.backends.reference import Reference

LR = 1e-4
OURS, IN_BACKWARD = "ours", 'ours, update="backward"'
CUDA = "ours, CUDA backend"
OURS_COMPILED = 'ours, torch.compile, update="backward"'
COMPILED, EAGER = "torch.compile'd backpropagation", "eager backpropagation"
REFERENCE = "torch.compile of our reference backend"


class Setting(NamedTuple):
    """What is the same for all contestants.

    ``precision``: "autocast" (fp32 parameters under bf16 autocast) or "bf16" (parameters and
    optimizer state too). ``rule``: "adamw" or "sgd" (momentum 0.9). ``graph``: the step will be
    captured. ``compiler``: torch.compile's backend.
    """

    device: torch.device
    precision: str = "autocast"
    rule: str = "adamw"
    graph: bool = False
    compiler: str = "inductor"

    def cast(self, net: nn.Module) -> nn.Module:
        net = net.to(self.device)
        return net.to(torch.bfloat16) if self.precision == "bf16" else net

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def compile(self, run: Callable) -> Callable:
        return torch.compile(run, backend=self.compiler)

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """torch.optim's fused one."""
        if self.rule == "sgd":
            return torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9, fused=True)
        return torch.optim.AdamW(net.parameters(), lr=LR, fused=True, capturable=self._captured)

    def fused_optimizer(self, net: dfa.DFA, update: str = "step") -> torch.optim.Optimizer:
        if self.rule == "sgd":
            return dfa.optim.SGD(net, lr=LR, momentum=0.9, update=update)
        return dfa.optim.AdamW(net, lr=LR, update=update, capturable=self._captured)

    @property
    def _captured(self) -> bool:
        return self.graph and self.device.type == "cuda"


def _loop(run: Callable, optimizer: torch.optim.Optimizer, task: Task, setting: Setting) -> Run:
    inputs, target = task.data(setting.device, setting.dtype)

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        with setting.autocast():
            loss = task.loss(run(*inputs), target)
        loss.backward()
        optimizer.step()
        return loss

    return step


def ours(task: Task, setting: Setting) -> Run:
    net = dfa.DFA(setting.cast(task.network(fused=True)))
    return _loop(net, setting.fused_optimizer(net), task, setting)


def on_cuda(task: Task, setting: Setting) -> Run:
    """The same step by the kernels of csrc/; everything else as in `ours`.

    Raises:
        RuntimeError: they are not built.
    """
    backend = cuda_backend(setting.device)
    if backend is None:
        raise RuntimeError("the CUDA backend is not built")
    step = ours(task, setting)

    def by_cuda() -> object:
        with dfa.backends.use(backend):
            return step()

    return by_cuda


def in_backward(task: Task, setting: Setting) -> Run:
    net = dfa.DFA(setting.cast(task.network(fused=True)))
    return _loop(net, setting.fused_optimizer(net, "backward"), task, setting)


def ours_compiled(task: Task, setting: Setting) -> Run:
    net = dfa.DFA(setting.cast(task.network(fused=True)))
    optimizer = setting.fused_optimizer(net, "backward")
    return _loop(setting.compile(net), optimizer, task, setting)


def eager(task: Task, setting: Setting) -> Run:
    net = setting.cast(task.network(fused=False))
    return _loop(net, setting.optimizer(net), task, setting)


def compiled(task: Task, setting: Setting) -> Run:
    net = setting.cast(task.network(fused=False))
    return _loop(setting.compile(net), setting.optimizer(net), task, setting)


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


def reference(task: Task, setting: Setting) -> Run:
    net = dfa.DFA(setting.cast(task.network(fused=True)))
    step = _loop(net, setting.optimizer(net), task, setting)
    # What it has compiled and kept is of one network.
    backend = f"compiled-reference-{len(dfa.backends.available(setting.device))}"
    dfa.backends.register(backend, _CompiledReference(setting))

    def on_reference() -> object:
        with dfa.backends.use(backend):
            return step()

    return on_reference


#: In the order in which they are built; ours first.
CONTESTANTS: dict[str, Callable[[Task, Setting], Run]] = {
    OURS: ours,
    CUDA: on_cuda,
    IN_BACKWARD: in_backward,
    OURS_COMPILED: ours_compiled,
    COMPILED: compiled,
    EAGER: eager,
    REFERENCE: reference,
}
