"""A network of nothing but fused layers, one after another, with a fused optimizer: in one go.

What `Recording` collects layer by layer is known here before the forward pass, so it makes no
module calls and plans nothing: the same products and the same records from one node, for less
Python, which on small layers is what a step waits for. Whatever is unusual (hooks, frozen
parameters, an input that is not a plain matrix) takes the general way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from dfa_kernels.activation import ACTIVATIONS, CODES
from dfa_kernels.autocast import autocast_dtype, lowered
from dfa_kernels.autograd import unfreed
from dfa_kernels.backends.contract import HEAD
from dfa_kernels.feedback import MATRIX, Feedback
from dfa_kernels.pending import LayerPlan, Receiver, Record

if TYPE_CHECKING:
    from dfa_kernels.linear import Linear
    from dfa_kernels.module import DFA

_IDENTITY = CODES["identity"]


class Chain:
    """The layers of a `DFA` with its default points and error point, whose ``model`` is a
    Sequential of fused layers alone; ``layers``: with their names, the last being the head."""

    def __init__(self, owner: DFA, model: nn.Sequential, layers: list[tuple[str, Linear]]) -> None:
        self._owner, self._model = owner, model
        self._modules, self._children = model._modules, tuple(model._modules.values())
        self._hooks = [
            hooks
            for m in (model, *self._children)
            for hooks in (
                m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks,
            )
        ]  # fmt: skip
        self._own = [m.__dict__ for m in (model, *self._children)]
        self._parameters = [layer._parameters for _, layer in layers]
        self._shapes = [(layer.out_features, layer.in_features) for _, layer in layers]
        _, head = layers[-1]
        plans = []
        for i, (name, layer) in enumerate(layers):
            stream = HEAD if layer is head else owner.stream(name)
            plans.append(LayerPlan(name, i, i, layer.code, stream, 1, 2 * i, 2 * i + 1))
        self.plans = tuple(plans)
        self.activations = [layer.code for _, layer in layers]
        self.feedback = owner.feedback
        self._outputs = head.out_features
        self._widest = max((layer.out_features for _, layer in layers[:-1]), default=1)
        self.scale = self.feedback.scale_for(self._widest)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The network's output; None where the general way must be taken."""
        optimizer = self._owner.claimant()
        if optimizer is None or len(args) != 1 or kwargs:
            return None
        if any(self._hooks) or any(_global_hooks):
            return None
        if self._owner._modules["module"] is not self._model:
            return None
        if tuple(self._modules.values()) != self._children:
            return None
        for own in self._own:
            if "forward" in own or "_compiled_call_impl" in own:
                return None  # called, a module does more than its class says
        x = args[0]
        if type(x) is not Tensor or x.dim() != 2 or x.requires_grad or x.is_meta:
            return None
        if _transforms() or _packing(True) or _DDP._active_ddp_module is not None:
            return None
        dtype = autocast_dtype(x)
        parameters: list[Any] = []
        for own in self._parameters:
            weight, bias = own.get("weight"), own.get("bias")
            if weight is None or bias is None:
                return None
            if not (weight.requires_grad and bias.requires_grad):
                return None
            parameters += (weight, bias)
        if [weight.shape for weight in parameters[0::2]] != self._shapes:
            return None
        first = parameters[0]
        if first.device != x.device or first.shape[1] != x.shape[1]:
            return None
        if dtype is None:
            if first.dtype != x.dtype:
                return None
        elif x.dtype not in _CAST or any(p.dtype not in _CAST for p in parameters):
            return None
        else:
            x = x.to(dtype)
        if not optimizer.claims_eager(parameters):
            return None
        receiver = optimizer.receiver
        matrix = self._owner._buffers["feedback_matrix"]
        if matrix is not None:
            self.feedback.check_shape(self._outputs, self._widest, "the widest point")
        return _apply(self, matrix, x, receiver.leaf, receiver, parameters, dtype)


class ChainNode(torch.autograd.Function):
    """``apply(chain, matrix, x, leaf, receiver, parameters, dtype) -> output``: the whole forward
    pass, of which autograd sees none, and in the backward its record for the receiver, whose
    ``leaf`` is.

    ``parameters``: every layer's weight and bias, in turn; ``dtype``: what autocast computes their
    products in, if it does, and that of x. Nothing below asks for a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chain: Chain,
        matrix: Tensor | None,
        x: Tensor,
        leaf: Tensor,
        receiver: Receiver,
        parameters: list[Tensor],
        dtype: torch.dtype | None,
    ) -> Tensor:
        inputs, saved = [x], []
        of = iter(parameters if dtype is None else lowered(parameters, dtype))
        for activation, weight, bias in zip(chain.activations, of, of, strict=True):
            saved.append(F.linear(inputs[-1], weight, bias))
            inputs.append(ACTIVATIONS[activation].forward_(saved[-1]))
        output, last = inputs.pop(), saved.pop()
        # Autograd watches over what others see and may write to: nobody sees the rest.
        ctx.save_for_backward(matrix, x, None if activation == _IDENTITY else last)
        ctx.hidden = inputs[1:], saved
        ctx.chain, ctx.receiver, ctx.parameters = chain, receiver, parameters
        ctx.expected = receiver.expect(parameters)
        return output

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[None, ...]:
        chain: Chain = ctx.chain
        matrix, given, last = unfreed(ctx, 0, len(chain.plans))
        inputs, saved = ctx.hidden
        if not _keeps_graph():
            ctx.hidden = None
        if error.requires_grad:  # backward(create_graph=True)
            error = error.detach()
        # the head's f′ is read from the output, whose graph is this node
        watched = (error, given) if last is None else (error, given, last)
        last = error if last is None else last.detach()
        feedback = chain.feedback if matrix is None else Feedback(MATRIX, values=matrix)
        kept = (given, *inputs), (*saved, last)
        record = Record(chain.plans, chain.scale, feedback, ctx.parameters, error, *kept, watched)
        ctx.receiver.add(record, ctx.expected)
        return None, None, None, None, None, None, None


# Looked up once: what a small network's step waits for is mostly the reading of cold memory.
_global_hooks = (
    global_hooks._global_forward_hooks,
    global_hooks._global_forward_pre_hooks,
    global_hooks._global_backward_hooks,
    global_hooks._global_backward_pre_hooks,
)
# What autocast casts.
_CAST = (torch.float32, torch.bfloat16, torch.float16)
# Whoever looks at every operation or saved tensor: hooks such as activation checkpointing's;
# functorch. And whoever needs gradients.
_packing = torch._C._autograd._top_saved_tensors_default_hooks
_transforms = torch._C._are_functorch_transforms_active
_DDP = torch.nn.parallel.DistributedDataParallel
# Whether the backward pass under way may come once more.
_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph
# `Function.apply` without its look at functorch's transforms, under which `run` does not come here.
_apply = super(torch.autograd.Function, ChainNode).apply
