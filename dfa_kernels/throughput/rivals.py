"""Other packages' DFA, where they are installed. Both take MLPs in fp32 alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfa_kernels.throughput.contestants import Built, Setting, loop, objective_of
from dfa_kernels.throughput.networks import MLP, Task


def tinydfa(task: Task, setting: Setting) -> Built:
    """The paper's own: `DFALayer` after every hidden activation, `DFA` around the output."""
    package = importlib.import_module("tinydfa")
    layers: list[nn.Module] = []
    points = []
    for module in _mlp(task).network(fused=False).children():
        layers.append(module)
        if isinstance(module, nn.Tanh):
            points.append(package.DFALayer())
            layers.append(points[-1])
    net = setting.cast(nn.Sequential(*layers, package.DFA(points)))
    run = loop(objective_of(net, task), setting.optimizer(net), task, setting)
    return Built(run, _held(net))


def biotorch(task: Task, setting: Setting) -> Built:
    """BioTorch's DFA linear layers."""
    layers_of = importlib.import_module("biotorch.layers.dfa")
    convert = importlib.import_module("biotorch.module.biomodule")
    shape = _mlp(task)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for d, k in shape.sizes():
        layers += [layers_of.Linear(k, d, output_dim=shape.outputs), nn.Tanh()]
    body = nn.Sequential(*layers[:-1])
    net = setting.cast(convert.BioModule(body, mode="dfa", output_dim=shape.outputs))

    def objective(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x, targets=y, loss_function=F.cross_entropy), y)

    return Built(loop(objective, setting.optimizer(net), task, setting), _held(net))


def _mlp(task: Task) -> MLP:
    if not isinstance(task, MLP):
        raise NotImplementedError(f"it is made for MLPs, not for {task}")
    return task


def _held(net: nn.Module) -> Callable[[], int]:
    """Bytes of every tensor that a module keeps under a name of feedback's or of the way back."""

    def held() -> int:
        found: dict[int, Tensor] = {}
        for module in net.modules():
            kept = {**vars(module), **module._parameters, **module._buffers}
            for name, value in kept.items():
                named = "feedback" in name or name.endswith("backward")
                if named and isinstance(value, Tensor):
                    found[id(value)] = value
        return sum(t.numel() * t.itemsize for t in found.values())

    return held
