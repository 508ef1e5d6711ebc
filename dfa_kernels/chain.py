"""A network of nothing but fused layers, one after another, with a fused optimizer: in one go.

What `Recording` collects layer by layer is known here before the forward pass, so it makes no
module calls and plans nothing: the same products, the same node and the same records for less
Python, which on small layers is what a step waits for. Whatever is unusual (hooks,
autocast, frozen parameters, an input that is not a plain matrix) takes the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from dfa_kernels.activation import ACTIVATIONS, CODES
from dfa_kernels.autograd import NOTHING, DeferringNode, LayerPlan, Plan
from dfa_kernels.backends.contract import HEAD

if TYPE_CHECKING:
    from dfa_kernels.module import DFA, Linear

_IDENTITY = CODES["identity"]


class Chain:
    """The layers of a `DFA` with its default points and error point, whose ``model`` is a
    Sequential of fused layers alone; ``layers``: with their names, the last being the head."""

    def __init__(self, owner: DFA, model: nn.Sequential, layers: list[tuple[str, Linear]]) -> None:
        self._owner, self._model = owner, model
        self._children = tuple(model._modules.values())
        self._layers = [layer for _, layer in layers]
        *hidden, (head, last) = layers
        plans = [
            LayerPlan(name, 2 * i, 2 * i + 1, layer.code, owner.stream(name), 1, 2 * i, 2 * i + 1)
            for i, (name, layer) in enumerate(hidden)
        ]
        i = len(hidden)
        kept = NOTHING if last.code == _IDENTITY else 2 * i + 1
        plans.append(LayerPlan(head, 2 * i, kept, last.code, HEAD, 1, 2 * i, 2 * i + 1))
        feedback = owner.feedback
        widest = max((layer.out_features for _, layer in hidden), default=1)
        self._plan = Plan(
            feedback.distribution, feedback.seed, feedback.scale_for(widest), 0,
            last.out_features, (), tuple(plans), 2 * len(layers), 2 * len(layers),
        )  # fmt: skip

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The network's output; None where the general way must be taken."""
        optimizer = self._owner.stepping_optimizer()
        if optimizer is None or len(args) != 1 or kwargs or self._changed():
            return None
        x = args[0]
        if type(x) is not Tensor or x.dim() != 2 or x.requires_grad or _surrounded(x):
            return None
        parameters: list[Any] = []
        for layer in self._layers:
            own = layer._parameters
            parameters += (own["weight"], own["bias"])
        first = parameters[0]
        if first.device != x.device or first.dtype != x.dtype or x.size(1) != first.size(1):
            return None
        for p in parameters:
            if p is None or not p.requires_grad:
                return None
        if not optimizer.claims(parameters):
            return None
        kept = []
        for i, layer in enumerate(self._layers):
            kept.append(x)
            weight, bias = parameters[2 * i].detach(), parameters[2 * i + 1].detach()
            saved = F.linear(x, weight, bias)
            x = ACTIVATIONS[layer.code].forward_(saved)
            kept.append(saved)
        if self._plan.layers[-1].saved == NOTHING:
            kept.pop()  # the output itself, which nothing reads
        plan = self._plan._replace(error_rows=x.size(0))
        matrix = self._owner.feedback_matrix
        return DeferringNode.apply(plan, matrix, x, *optimizer.ledger(), parameters, kept)

    def _changed(self) -> bool:
        """Whether there is a hook to call, or another layer than there was."""
        if tuple(self._model._modules.values()) != self._children or (
            hooks._global_forward_hooks
            or hooks._global_forward_pre_hooks
            or hooks._global_backward_hooks
            or hooks._global_backward_pre_hooks
        ):
            return True
        for m in (self._model, *self._children):
            if m._forward_hooks or m._forward_pre_hooks:
                return True
            if m._backward_hooks or m._backward_pre_hooks:
                return True
        return False


def _surrounded(x: Tensor) -> bool:
    """Whether autocast, or hooks on saved tensors such as activation checkpointing's, are on;
    and on the meta device, which autocast does not know."""
    return (
        x.device.type == "meta"
        or torch.is_autocast_enabled(x.device.type)
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    )
