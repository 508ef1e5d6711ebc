"""Steps written out for the MLP, without autograd and without our module.

Between the two of them lies what DFA itself is worth, and above them what a module costs. SGD goes
by `addmm_` straight into the momentum; AdamW needs the gradient, and is torch's fused one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dfa_kernels as dfa
from dfa_kernels.throughput.contestants import Built, Setting, nothing
from dfa_kernels.throughput.networks import MLP, Task


class _Weights:
    """Weights, biases and optimizer state of the MLP, and its forward pass."""

    def __init__(self, task: Task, setting: Setting) -> None:
        if not isinstance(task, MLP):
            raise NotImplementedError(f"it is written out for MLPs, not for {task}")
        if setting.precision == "autocast":
            raise NotImplementedError("it is written out for one dtype, not for autocast")
        net = setting.cast(task.network(fused=False))
        linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
        self.weights = [m.weight.detach() for m in linears]
        self.biases = [m.bias.detach() for m in linears]
        self.rule, self.rates = setting.rule, setting.rates
        parameters = [*self.weights, *self.biases]
        if self.rule == "sgd":
            self.buffers = [torch.zeros_like(t) for t in parameters]
        else:
            adamw: Any = torch.optim.AdamW
            self.optimizer = adamw(parameters, **self.rates, **setting.captured, fused=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = [x]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            kept.append(torch.addmm(bias, kept[-1], weight.T).tanh_())
        kept.append(torch.addmm(self.biases[-1], kept[-1], self.weights[-1].T))
        return kept

    def update(self, i: int, delta: Tensor, x: Tensor) -> None:
        weight, bias = self.weights[i], self.biases[i]
        if self.rule == "adamw":
            weight.grad, bias.grad = delta.T @ x, delta.sum(0)
            return
        momentum, lr = self.rates["momentum"], self.rates["lr"]
        of_weight, of_bias = self.buffers[i], self.buffers[i + len(self.weights)]
        of_weight.addmm_(delta.T, x, beta=momentum)
        weight.add_(of_weight, alpha=-lr)
        of_bias.mul_(momentum).add_(delta.sum(0))
        bias.add_(of_bias, alpha=-lr)

    def end(self) -> None:
        if self.rule == "adamw":
            self.optimizer.step()


def _error(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy's mean, and its gradient in place of a log-softmax."""
    log_p = torch.log_softmax(logits.float() if logits.itemsize < 4 else logits, dim=1)
    loss = F.nll_loss(log_p, y)
    error = log_p.exp_()
    error.scatter_add_(1, y[:, None], torch.full_like(error[:, :1], -1))
    return loss, error.div_(len(y)).to(logits.dtype)


def direct_feedback(task: Task, setting: Setting) -> Built:
    model = _Weights(task, setting)
    (x,), y = task.data(setting.device, setting.dtype)
    depth = len(model.weights) - 1
    outputs, width = (model.weights[-1].shape[0], model.weights[0].shape[0])
    feedback = dfa.Feedback()
    matrix = feedback.matrix(outputs, width, dtype=setting.dtype, device=setting.device)
    matrix *= feedback.scale_for(width)

    def step() -> Tensor:
        kept = model.forward(x)
        loss, error = _error(kept[-1], y)
        projection = error @ matrix
        for i in range(depth):
            model.update(i, torch.ops.aten.tanh_backward(projection, kept[i + 1]), kept[i])
        model.update(depth, error, kept[-2])
        model.end()
        return loss

    return Built(step, lambda: matrix.numel() * matrix.itemsize)


def backpropagation(task: Task, setting: Setting) -> Built:
    model = _Weights(task, setting)
    (x,), y = task.data(setting.device, setting.dtype)
    depth = len(model.weights) - 1

    def step() -> Tensor:
        kept = model.forward(x)
        loss, delta = _error(kept[-1], y)
        for i in range(depth, -1, -1):
            below = torch.ops.aten.tanh_backward(delta @ model.weights[i], kept[i]) if i else delta
            model.update(i, delta, kept[i])
            delta = below
        model.end()
        return loss

    return Built(step, nothing)


def without_update(task: Task, setting: Setting) -> Built:
    """No step, but what each has: the products of the forward pass, the loss, and by autograd its
    gradient at the output."""
    model = _Weights(task, setting)
    (x,), y = task.data(setting.device, setting.dtype)

    def step() -> Tensor:
        output = model.forward(x)[-1].requires_grad_()
        loss = task.loss(output, y)
        loss.backward()
        return loss

    return Built(step, nothing)
