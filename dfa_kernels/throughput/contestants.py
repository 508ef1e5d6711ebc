"""Whole training steps: ours through the public module, and what it is held against.

A step is forward pass, loss, backward pass and optimizer. All contestants of a task share the
architecture, the initial weights, the batch, the loss, the precision and the optimizer's rule;
whoever steps by torch.optim has the fastest of its implementations, by measurement.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import dfa_kernels as dfa
from dfa_kernels.backends.reference import Reference
from dfa_kernels.in_backward import UPDATES_COMPILE
from dfa_kernels.throughput.networks import Task
from dfa_kernels.throughput.spread import spread
from dfa_kernels.throughput.timing import Run, rounds

#: The learning rate and what else a rule is given, by its name in dfa_kernels.optim.
RULES: dict[str, dict[str, float]] = {"sgd": {"lr": 1e-3, "momentum": 0.9}, "adamw": {"lr": 1e-4}}

#: Of parameters, optimizer state and inputs; under "autocast" they are fp32, products bf16.
PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "autocast": torch.float32,
}


class Setting(NamedTuple):
    """What is the same for all contestants.

    ``precision``: of `PRECISIONS`. ``rule``: of `RULES`. ``graph``: the step will be captured.
    ``compiler``: torch.compile's backend.
    """

    device: torch.device
    precision: str = "float32"
    rule: str = "sgd"
    graph: bool = False
    compiler: str = "inductor"

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and inputs."""
        return PRECISIONS[self.precision]

    def cast(self, net: nn.Module) -> nn.Module:
        return net.to(self.device, self.dtype)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision != "autocast":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def compile(self, run: Callable) -> Callable:
        # Shapes never change in a benchmark: a graph for any of them would be a slower rival.
        return torch.compile(run, backend=self.compiler, dynamic=False)

    @property
    def rates(self) -> dict[str, float]:
        return RULES[self.rule]

    @property
    def captured(self) -> dict[str, bool]:
        """What AdamW needs to be told for a CUDA graph."""
        wanted = self.graph and self.device.type == "cuda" and self.rule == "adamw"
        return {"capturable": True} if wanted else {}

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """torch.optim's, in the implementation that is the fastest for these parameters."""
        own = list(net.parameters())
        return self._kind(own, **self.rates, **self.captured, **self._fastest(own))

    @property
    def _kind(self) -> Any:
        return torch.optim.SGD if self.rule == "sgd" else torch.optim.AdamW

    def _fastest(self, own: Sequence[Tensor]) -> dict[str, bool]:
        """Among `IMPLEMENTATIONS`, on a copy of the parameters, of the first ones where there are
        many. A captured step is fused: what captures well cannot be seen from outside a graph."""
        if self.graph:
            return IMPLEMENTATIONS["fused"]
        kind = self._kind
        parameters: list[Tensor] = []
        for original in own:
            if sum(p.numel() for p in parameters) < COPIED:
                parameters.append(original.detach().clone().requires_grad_())
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-6)
        steps = {
            name: kind(parameters, **self.rates, **how).step
            for name, how in IMPLEMENTATIONS.items()
        }
        # Not every dtype and device has every implementation.
        times = rounds(steps, self.device, 0.0, least=CHOICE, died=lambda *_: None)
        times = {name: own for name, own in times.items() if len(own) == CHOICE}
        return IMPLEMENTATIONS[min(times, key=lambda name: spread(times[name]).median)]

    def fused_optimizer(self, net: dfa.DFA, update: str = "step") -> torch.optim.Optimizer:
        """Ours, and of what is not a fused layer the fastest of torch.optim's."""
        kind: Any = dfa.optim.SGD if self.rule == "sgd" else dfa.optim.AdamW
        fused = {p for layer in net.fused_layers().values() for p in layer.parameters()}
        rest = [p for p in net.parameters() if p not in fused]
        how = self._fastest(rest) if rest else {}
        return kind(net, **self.rates, **self.captured, **how, update=update)


#: torch.optim's implementations of a rule, and the rounds in which they are compared.
IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "one by one": {"foreach": False, "fused": False},
}
CHOICE = 5
#: Elements that are copied for it: the three of them have a state each beside gradients.
COPIED = 1 << 26


class Built(NamedTuple):
    """A step that is ready to run, and the bytes that it holds for B by now.

    ``bare``: the same step where ``backend`` is in use already. A training loop chooses its backend
    once; to choose it at every step shows in a small network's time.
    """

    run: Run
    feedback_bytes: Callable[[], int | None]
    backend: str | None = None
    bare: Run | None = None


def nothing() -> int:
    """Bytes that backpropagation holds for B."""
    return 0


def loop(
    objective: Callable[..., Tensor], optimizer: torch.optim.Optimizer, task: Task, setting: Setting
) -> Run:
    """The usual training loop's step; ``objective``: the loss of inputs and target."""
    inputs, target = task.data(setting.device, setting.dtype)

    def cast(*given: Tensor) -> Tensor:
        with setting.autocast():
            return objective(*given)

    loss_of = cast if setting.precision == "autocast" else objective

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(*inputs, target)
        loss.backward()
        optimizer.step()
        return loss

    return step


def objective_of(net: Callable, task: Task) -> Callable[..., Tensor]:
    """The loss of inputs and target."""

    def objective(*given: Tensor) -> Tensor:
        *inputs, target = given
        return task.loss(net(*inputs), target)

    return objective


# Backpropagation ------------------------------------------------------------------------------


def eager(task: Task, setting: Setting) -> Built:
    net = setting.cast(task.network(fused=False))
    return Built(loop(objective_of(net, task), setting.optimizer(net), task, setting), nothing)


def compiled(task: Task, setting: Setting) -> Built:
    """Network and loss are one graph, and its backward pass another."""
    net = setting.cast(task.network(fused=False))
    objective = setting.compile(objective_of(net, task))
    return Built(loop(objective, setting.optimizer(net), task, setting), nothing)


# Ours -----------------------------------------------------------------------------------------


def ours(task: Task, setting: Setting) -> Built:
    net = dfa.DFA(setting.cast(task.network(fused=True)))
    return _ours(net, setting.fused_optimizer(net), task, setting)


def in_backward(task: Task, setting: Setting) -> Built:
    net = dfa.DFA(setting.cast(task.network(fused=True)))
    return _ours(net, setting.fused_optimizer(net, "backward"), task, setting)


def plain_optimizer(task: Task, setting: Setting) -> Built:
    net = dfa.DFA(setting.cast(task.network(fused=True)))
    return _ours(net, setting.optimizer(net), task, setting)


def ours_compiled(task: Task, setting: Setting) -> Built:
    """The update in a compiled backward pass.

    Raises:
        NotImplementedError: this torch cannot compile that.
    """
    if not UPDATES_COMPILE:
        raise NotImplementedError(
            f"an update in a compiled backward pass needs torch 2.12, and this is "
            f"{torch.__version__}"
        )
    net = dfa.DFA(setting.cast(task.network(fused=True)))
    optimizer = setting.fused_optimizer(net, "backward")
    run = loop(objective_of(setting.compile(net), task), optimizer, task, setting)
    return Built(run, of_reference)


def _ours(net: dfa.DFA, optimizer: torch.optim.Optimizer, task: Task, setting: Setting) -> Built:
    return Built(loop(objective_of(net, task), optimizer, task, setting), of_reference)


def of_reference() -> int:
    """Bytes that the reference keeps for B: all that is kept where it or our kernels ran."""
    return cast(Reference, dfa.backends.get("reference")).matrices.bytes()


def on_backend(
    backend: str, way: Callable[[Task, Setting], Built], task: Task, setting: Setting
) -> Built:
    """``way``, on the named backend.

    Raises:
        RuntimeError: it cannot run on the device.
    """
    reason = dfa.backends.available(setting.device)[backend]
    if reason is not None:
        raise RuntimeError(f"it cannot run on {setting.device}: {reason}")
    with dfa.backends.use(backend):
        built = way(task, setting)

    def step() -> object:
        with dfa.backends.use(backend):
            return built.run()

    own = getattr(dfa.backends.get(backend), "feedback_bytes", None)
    if own is None and backend not in dfa.backends.PREFERENCE:
        own = _unknown
    return Built(step, own or built.feedback_bytes, backend, built.run)


def _unknown() -> None:
    """Bytes that a backend keeps for B where nobody can see them."""
