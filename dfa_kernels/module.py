"""`DFA`, the module that trains a model by direct feedback alignment; `Linear` and `fuse`.

    net = DFA(fuse(model), feedback=Feedback("rademacher", seed=0))
    loss = F.cross_entropy(net(x), y); loss.backward()

Launay et al. 2020, section 2: every layer learns from one projection of the error at the output,
not from its successor. The layers above the error point get their true gradient.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfa_kernels import activation as activations
from dfa_kernels.autocast import autocast_dtype
from dfa_kernels.chain import Chain
from dfa_kernels.feedback import MATRIX, Feedback
from dfa_kernels.names import resolve, resolve_one
from dfa_kernels.planned import Planned
from dfa_kernels.recording import Fused, Recording, Replay, active, versions_of

if TYPE_CHECKING:
    from dfa_kernels.fused_update import FusedUpdate

METHODS = ("dfa", "bp", "shallow")

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.RReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Tanh, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish,
    nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.GLU,
)  # fmt: skip


class Linear(nn.Linear):
    """Linear + activation in one layer: h = f(x·Wᵀ + b).

    Inside the forward pass of a `DFA` that has it as a point it builds no autograd graph: it
    leaves x and h behind, and its dW = δᵀ·x, db = Σₙ δ come from one grouped call for all such
    layers. Anywhere else it is an ordinary linear layer with an activation.

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`.
        activation: None, ``"relu"``, ``"tanh"``, ``"sigmoid"``, ``"gelu"``, ``"gelu_tanh"`` or
            ``"silu"``.

    Shape: (…, in_features) → (…, out_features).

    Raises:
        ValueError: an unknown activation, an input of another width.
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
        if (
            input.dim() == 0
            or input.size(-1) != self.in_features
            or input.device != weight.device
            or not (input.is_floating_point() or weight.is_complex())
        ):
            raise self._unfit(input)
        recording = active.recording or Replay.of_layer(self)
        name = None if recording is None else recording.owner.name_of(self)
        if recording is None or name is None:
            return self._plain(input, weight, bias)
        if recording.fuses(input, weight, bias):
            return self._fused(recording, name, input, weight, bias)
        output = self._plain(input, weight, bias)
        return output if recording.owner.cuts(name) else recording.point(name, output)

    def _plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return activations.differentiable(self.activation)(F.linear(input, weight, bias))

    def _fused(
        self,
        recording: Recording,
        name: str,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        dtype = autocast_dtype(input)
        if dtype is not None:
            input = input.to(dtype)
        w = recording.operand(weight, dtype)
        b = None if bias is None else recording.operand(bias, dtype)
        saved = F.linear(input, w, b)
        f = activations.ACTIVATIONS[self.code]
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


class _Passed(nn.Identity):
    """Where an activation stood that its linear layer now computes: keeps `state_dict` keys."""


def fuse(model: nn.Module) -> nn.Module:
    """Turn each `nn.Linear` → activation pair of every `nn.Sequential` in ``model`` into a
    `Linear`, and the `nn.Linear` that ends ``model`` too where it is a Sequential itself.

    Parameters are shared and `state_dict` keys kept; ``model`` itself is left as it is, and a
    structure that shares its parameters is returned.
    """
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
            copy._modules[name], skip = _Passed(), False
            continue
        if _is_chain(module) and type(child) is nn.Linear and not _hooked(child):
            after = None if name == last else module._modules[named[position + 1]]
            f = None if after is None or _hooked(after) else activations.of_module(after)
            if f is not None or (outermost and name == last):
                copy._modules[name], skip = Linear.from_linear(child, f), f is not None
                continue
        inner = outermost and name == last and _is_chain(module)
        copy._modules[name] = _fused_copy(child, inner)
    return copy


def _is_chain(module: nn.Module) -> bool:
    """A Sequential whose children follow each other, and nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


class DFA(nn.Module):
    """Train ``model`` by direct feedback alignment, by backpropagation, or its top alone.

    Args:
        model: any module whose output, or whose ``error_at`` module's output, is one tensor.
        feedback: what B is.
        points: where the projected error enters: modules, names, or globs such as
            ``"encoder.layers.*"``. None: every `Linear` and every activation below the error
            point. A point's output is cut from what follows it.
        error_at: the module, or its name, whose output is the error point. None: the model's
            output. A layer whose output is the error point gets its true gradient.
        batch_dims: how many leading dimensions of the error and of every point are rows, the
            rest being features. None: all but the last, and one where there are four or more
            (images: C·H·W features). A point may have k rows for each row of the error, in
            row-major order: the projection is repeated over them and divided by √k.
        method: ``"dfa"``, ``"bp"`` (plain autograd) or ``"shallow"`` (points get no gradient).
            May be set at any time.

    ``net.module`` is the model, with its own parameters and keys. The `state_dict` of the wrapper
    adds the feedback's description, and loading another one raises.

    Raises:
        ValueError: an unknown method or name, a glob that matches nothing, a `DFA` in the model.
        TypeError: a point that is neither a module nor a string.
    """

    feedback_matrix: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        feedback: Feedback | None = None,
        points: Iterable[nn.Module | str] | nn.Module | str | None = None,
        error_at: nn.Module | str | None = None,
        batch_dims: int | None = None,
        method: str = "dfa",
    ) -> None:
        super().__init__()
        if any(isinstance(m, DFA) for m in model.modules()):
            raise ValueError("the model already holds a DFA module: wrap it once")
        if batch_dims is not None and batch_dims < 0:
            raise ValueError(f"batch_dims must be None or at least 0, got {batch_dims}")
        names = {name: m for name, m in model.named_modules() if name}
        error_name = None if error_at is None else resolve_one(names, error_at)
        self.explicit = points is not None
        found = _default_points(names) if points is None else resolve(names, points)
        self.point_names = tuple(n for n in found if n != error_name)
        self.error_name = error_name
        self.batch_dims = batch_dims
        self.method = method
        self.feedback = feedback if feedback is not None else Feedback()
        self.module = model
        self.register_buffer("feedback_matrix", self.feedback.values)
        self._streams = {n: self.feedback.stream(i) for i, n in enumerate(self.point_names)}
        self._optimizer: weakref.ref[FusedUpdate] | None = None
        # A fused layer asks for its name: those that are points, and those that may be the head.
        head = error_name or _last_of_sequential(model)
        fused = (*self.point_names, head) if head else self.point_names
        self._fused = {names[n]: n for n in fused if isinstance(names[n], Linear)}
        owned = [p for layer in self._fused for p in layer.parameters()]
        self.tied = len(set(owned)) < len(owned)
        self._chain = self._as_chain()
        self.planned: Planned | None = None  # of the last forward pass with a fused optimizer
        self._cuts: dict[str, tuple[nn.Module, int]] = {}
        for name in self.point_names:
            if not isinstance(names[name], Linear):
                self._cut_last(name, names[name])
        if error_name is not None:
            names[error_name].register_forward_hook(partial(_closes, self))
        self.register_load_state_dict_pre_hook(_check_feedback)

    # Properties -----------------------------------------------------------------------------

    @property
    def method(self) -> str:
        return self._method

    @method.setter
    def method(self, method: str) -> None:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: known are {', '.join(METHODS)}")
        self._method = method

    def extra_repr(self) -> str:
        at = self.error_name or "the output"
        return (
            f"method={self.method!r}, feedback={self.feedback}, points={len(self.point_names)}, "
            f"error_at={at}"
        )

    # The forward pass -----------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._method == "bp" or not torch.is_grad_enabled():
            return self.module(*args, **kwargs)
        if not torch.compiler.is_compiling():
            if self._chain is not None and self._method == "dfa":
                output = self._chain.run(args, kwargs)
                if output is not None:
                    return output
            self._keep_cuts_last()
        recording = Recording(self)
        before, active.recording = active.recording, recording
        try:
            output = self.module(*args, **kwargs)
        finally:
            active.recording = before
        if self.error_name is None:
            output = recording.close(output)
        recording.finish()
        return output

    def _as_chain(self) -> Chain | None:
        model = self.module
        if self.explicit or self.error_name or self.batch_dims is not None or self.tied:
            return None
        if not _is_chain(model) or not model._modules:
            return None
        layers = [(n, m) for n, m in model._modules.items() if isinstance(m, Linear)]
        for module in model._modules.values():
            if type(module) not in (Linear, _Passed):
                return None
        for (_, below), (_, above) in itertools.pairwise(layers):
            if below.out_features != above.in_features:
                return None
        return Chain(self, cast(nn.Sequential, model), layers)

    def name_of(self, layer: Linear) -> str | None:
        """The name of a fused layer that is one of this module's points, or may be its head."""
        return self._fused.get(layer)

    def cuts(self, name: str) -> bool:
        """Whether a forward hook cuts the output of this layer where it is not fused."""
        return name in self._cuts

    def _cut_last(self, name: str, module: nn.Module) -> None:
        """Cut a point's output after every other forward hook: FSDP2's looks there for the graph
        whose backward pass needs the weights again, and a user's may replace the output."""
        if name not in self._cuts:
            handle = module.register_forward_hook(partial(_reached, self, name))
            self._cuts[name] = module, handle.id
        hooks, key = module._forward_hooks, self._cuts[name][1]
        if next(reversed(hooks)) != key:
            hooks[key] = hooks.pop(key)

    def _keep_cuts_last(self) -> None:
        for layer, name in self._fused.items():
            if layer._forward_hooks and name in self._streams:
                self._cut_last(name, layer)
        for name, (module, _) in self._cuts.items():
            self._cut_last(name, module)

    def stream(self, name: str) -> int:
        """The stream of a point."""
        if name not in self._streams:
            raise RuntimeError(
                f"layer {name!r} ended the model when DFA was constructed and no longer does: wrap "
                "the changed model again"
            )
        return self._streams[name]

    def placed_feedback(self) -> Feedback:
        """The feedback with a user's matrix where this module's parameters are."""
        if self.feedback_matrix is None:
            return self.feedback
        return Feedback(MATRIX, values=self.feedback_matrix)

    def stepping_optimizer(self) -> FusedUpdate | None:
        """The optimizer that claimed this module's fused layers, if it updates in `step`."""
        optimizer = None if self._optimizer is None else self._optimizer()
        return optimizer if optimizer is not None and optimizer.update == "step" else None

    def optimizer_of(self, parameters: list[Tensor]) -> FusedUpdate | None:
        """The optimizer that updates these parameters of fused layers without their gradients."""
        optimizer = None if self._optimizer is None else self._optimizer()
        return optimizer if optimizer is not None and optimizer.claims(parameters) else None

    def claim(self, optimizer: FusedUpdate) -> None:
        """From now on ``optimizer`` steps the fused layers."""
        self._optimizer = weakref.ref(optimizer)

    def fused_layers(self) -> dict[Linear, str]:
        """The layers that are, or may be, fused, and their names."""
        return self._fused

    # State ----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to no optimizer."""
        return {**self.__dict__, "_optimizer": None, "planned": None}

    def get_extra_state(self) -> dict[str, object]:
        return self.feedback.describe()

    def set_extra_state(self, state: Mapping[str, object]) -> None:
        """Checked by `_check_feedback`, before anything is loaded."""


def _reached(owner: DFA, name: str, module: nn.Module, args: Any, output: Any) -> Any:
    recording = active.recording or Replay.of(owner)
    if recording is None or recording.owner is not owner:
        return output
    if recording.layers and recording.layers[-1].name == name:
        return output  # fused: cut already
    return recording.point(name, output)


def _closes(owner: DFA, module: nn.Module, args: Any, output: Any) -> Any:
    recording = active.recording
    if recording is None or recording.owner is not owner:
        return output
    return recording.close(output)


def _check_feedback(module: DFA, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    stored = state_dict.get(prefix + "_extra_state")
    ours = module.get_extra_state()
    if stored is not None and dict(stored) != ours:
        changed = [k for k in ours if stored.get(k) != ours[k]]
        raise ValueError(
            "the checkpoint was trained with another feedback: "
            + ", ".join(f"{k} {stored.get(k)!r}, here {ours[k]!r}" for k in changed)
        )
    matrix = state_dict.get(prefix + "feedback_matrix")
    mine = module.feedback_matrix
    if (
        matrix is not None
        and mine is not None
        and not (matrix.shape == mine.shape and torch.equal(matrix.to(mine), mine))
    ):
        raise ValueError(
            f"the checkpoint was trained with another feedback matrix: {tuple(matrix.shape)}, "
            f"here {tuple(mine.shape)}" + ("" if matrix.shape != mine.shape else ", other values")
        )


# Names ------------------------------------------------------------------------------------------


def _default_points(names: Mapping[str, nn.Module]) -> list[str]:
    return [n for n, m in names.items() if isinstance(m, (Linear, *_ACTIVATIONS))]


def _last_of_sequential(model: nn.Module, prefix: str = "") -> str | None:
    """The name of the layer that ends a (nested) Sequential."""
    if not _is_chain(model) or not model._modules:
        return None
    name, last = list(model._modules.items())[-1]
    if last is not None and _is_chain(last):
        return _last_of_sequential(last, f"{prefix}{name}.")
    return prefix + name
