"""`Linear`, a linear layer and its activation in one; and `fuse`, which makes a model's layers so.

Inside the forward pass of a `DFA` such a layer builds no autograd graph; see `recording`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfa_kernels import activation as activations
from dfa_kernels.autocast import autocast_dtype
from dfa_kernels.hooks import dead
from dfa_kernels.recording import Fused, Recording, active, versions_of
from dfa_kernels.replay import Replay


class Linear(nn.Linear):
    """Linear + activation in one layer: h = f(x·Wᵀ + b).

    Inside the forward pass of a `DFA` that has it as a point it builds no autograd graph: it
    leaves x and h behind, and its dW = δᵀ·x, db = Σₙ δ come from one grouped call for all such
    layers. Anywhere else it is an ordinary linear layer with an activation.

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`.
        activation: None or ``"identity"``, ``"relu"``, ``"tanh"``, ``"sigmoid"``, ``"gelu"``,
            ``"gelu_tanh"`` or ``"silu"``.

    Shape: (…, in_features) → (…, out_features).

    Raises:
        ValueError: an unknown activation, an input of another width.
        TypeError: an input that is not of a real floating dtype.
        RuntimeError: an input on another device, or of another dtype, than the weight.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_activation(activation)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.code = activations.CODES[activation or "identity"]

    @classmethod
    def from_linear(cls, linear: nn.Linear, activation: str | None = None) -> Linear:
        """A fused layer around the very parameters of ``linear``."""
        _check_activation(activation)
        fused = cls.__new__(cls)
        nn.Module.__init__(fused)
        fused.in_features, fused.out_features = linear.in_features, linear.out_features
        fused.weight = linear.weight
        fused.register_parameter("bias", linear.bias)
        fused.code = activations.CODES[activation or "identity"]
        fused.train(linear.training)
        return fused

    def forward(self, input: Tensor) -> Tensor:
        # FSDP2 swaps parameters, torch.nn.utils computes some, as attributes: each is read once.
        own: dict[str, Any] = self._parameters
        weight: Tensor = own["weight"] if "weight" in own else self.weight  # noqa: SIM401
        bias: Tensor | None = own["bias"] if "bias" in own else self.bias  # noqa: SIM401
        dtype = autocast_dtype(input)
        if (
            input.dim() == 0
            or input.size(-1) != self.in_features
            or input.device != weight.device
            or not (input.is_floating_point() or weight.is_complex())
            or (dtype is None and input.dtype != weight.dtype)
        ):
            raise self._unfit(input)
        recording = active.recording or Replay.of_layer(self)
        name = None if recording is None else recording.owner.name_of(self)
        if recording is None or name is None:
            return self._plain(input, weight, bias)
        if recording.fuses(input, weight, bias):
            return self._fused(recording, name, input, weight, bias, dtype)
        output = self._plain(input, weight, bias)
        return output if recording.owner.cuts(name) else recording.point(name, self, output)

    def _plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return activations.differentiable(self.activation)(F.linear(input, weight, bias))

    def _fused(
        self,
        recording: Recording,
        name: str,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """``dtype``: autocast's, if there is one."""
        f = activations.ACTIVATIONS[self.code]
        if dtype is None and not torch.compiler.is_compiling():
            torch._C._set_grad_enabled(False)  # for less than detached operands take
            try:
                saved = F.linear(input, weight, bias)
                output = f.forward_(saved)
            finally:
                torch._C._set_grad_enabled(True)
        else:
            if dtype is not None and input.dtype is not dtype:
                input = input.to(dtype)
            w = recording.operand(weight, dtype)
            b = None if bias is None else recording.operand(bias, dtype)
            saved = F.linear(input, w, b)
            output = f.forward_(saved)
        kept = saved if f.from_preactivations else output
        versions = versions_of(input, kept, self.code)
        recording.fused(Fused(name, input, output, kept, self.code, weight, bias, versions))
        return output

    def _unfit(self, input: Tensor) -> Exception:
        layer = f"Linear({self.in_features}, {self.out_features})"
        if input.device != self.weight.device:
            return RuntimeError(
                f"{layer} has its weight on {self.weight.device}, but was given an input on "
                f"{input.device}"
            )
        if not input.is_floating_point():
            return TypeError(
                f"{layer} was given an input of {input.dtype}, but needs a real floating dtype"
            )
        if input.dim() and input.size(-1) == self.in_features:
            weight, given = (str(t.dtype).removeprefix("torch.") for t in (self.weight, input))
            return RuntimeError(
                f"{layer} has its weight in {weight}, but was given an input in {given}: cast one "
                "of them, or use autocast"
            )
        return ValueError(
            f"{layer} was given an input of shape {tuple(input.shape)}, whose last dimension "
            f"should be {self.in_features}"
        )

    @property
    def activation(self) -> str:
        return activations.ACTIVATIONS[self.code].name

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


def _check_activation(activation: str | None) -> None:
    if activation is not None and activation not in activations.CODES:
        known = ", ".join(activations.CODES)
        raise ValueError(f"unknown activation {activation!r}: known are {known}")


class Passed(nn.Identity):
    """Where an activation stood that its linear layer now computes: keeps `state_dict` keys."""


def fuse(model: nn.Module) -> nn.Module:
    """Turn each `nn.Linear` → activation pair of every `nn.Sequential` in ``model`` into a
    `Linear`, and the `nn.Linear` that ends ``model`` too where it is a Sequential itself.

    Parameters are shared and `state_dict` keys kept; ``model`` itself is left as it is. What has
    hooks, a ``forward`` of its own, or parameters and buffers that its class has not, stays too.

    Returns:
        A structure that shares the parameters of ``model``.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse needs a module, got a {type(model).__name__}")
    return _fused_copy(model, outermost=True)


def _fused_copy(module: nn.Module, outermost: bool) -> nn.Module:
    children = list(module.named_children())
    if not children:
        return module
    copy = module.__class__.__new__(module.__class__)
    copy.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in module.__dict__.items()}
    named = list(module._modules)
    last = named[-1]
    skip = False
    for position, name in enumerate(named):
        child = module._modules[name]
        if child is None:
            continue
        if skip:
            copy._modules[name], skip = Passed(), False
            continue
        if is_chain(module) and type(child) is nn.Linear and not _changed(child):
            after = None if name == last else module._modules[named[position + 1]]
            f = None if after is None or _changed(after) else activations.of_module(after)
            if f is not None or (outermost and name == last):
                copy._modules[name], skip = Linear.from_linear(child, f), f is not None
                continue
        inner = outermost and name == last and is_chain(module)
        copy._modules[name] = _fused_copy(child, inner)
    return copy


def is_chain(module: nn.Module) -> bool:
    """A Sequential whose children follow each other, and nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _changed(module: nn.Module) -> bool:
    """Whether somebody has added to a module what a fused layer would lose: hooks, a forward of its
    own, parameters, buffers."""
    others = [hook for hook in module._forward_hooks.values() if not dead(hook)]
    hooks = (
        others, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
    )  # fmt: skip
    more = set(module._parameters) - {"weight", "bias"}
    return any(hooks) or "forward" in module.__dict__ or bool(more or module._buffers)
