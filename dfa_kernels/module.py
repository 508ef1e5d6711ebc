"""`DFA`, the module that trains a model by direct feedback alignment.

    net = DFA(fuse(model), feedback=Feedback("rademacher", seed=0))
    loss = F.cross_entropy(net(x), y); loss.backward()

Launay et al. 2020, section 2: every layer learns from one projection of the error at the output,
not from its successor. The layers above the error point get their true gradient.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from dfa_kernels.chain import Chain
from dfa_kernels.feedback import MATRIX, Feedback
from dfa_kernels.hooks import Hooked, Owner, closes, hangs, reached
from dfa_kernels.linear import Linear, Passed, is_chain
from dfa_kernels.names import resolve, resolve_one
from dfa_kernels.planned import Planned
from dfa_kernels.recording import Recording, active

if TYPE_CHECKING:
    from dfa_kernels.fused_update import FusedUpdate

METHODS = ("dfa", "bp", "shallow")

# What traces whatever is called, where torch.compile gave a caller up; None elsewhere.
_compiler = torch._C._dynamo.eval_frame.get_eval_frame_callback
# There is nothing in a chain that it could compile.
_untraced = _disable_dynamo(Chain.run)

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.RReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Tanh, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish,
    nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.GLU,
)  # fmt: skip


class DFA(nn.Module):
    """Train ``model`` by direct feedback alignment, by backpropagation, or its top alone.

    Args:
        model: any module whose output, or whose ``error_at`` module's output, is one tensor.
        feedback: what B is. None: `Feedback()`.
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
        ValueError: an unknown method or name, a glob that matches nothing, a `DFA` in the model;
            ``points`` None and none found in a model of several layers, which would train by
            backpropagation; a negative ``batch_dims``.
        TypeError: a point that is neither a module nor a string, and whatever else is of another
            type than it should be.
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
        if not isinstance(model, nn.Module):
            raise TypeError(f"DFA trains a module, got a {type(model).__name__}")
        if feedback is not None and not isinstance(feedback, Feedback):
            raise TypeError(
                f"feedback must be a dfa_kernels.Feedback, got {feedback!r}: give "
                f"Feedback({feedback!r})"
            )
        if any(isinstance(m, DFA) for m in model.modules()):
            raise ValueError("the model already holds a DFA module: wrap it once")
        if batch_dims is not None and not isinstance(batch_dims, int):
            raise TypeError(f"batch_dims must be None or an int, got {batch_dims!r}")
        if batch_dims is not None and batch_dims < 0:
            raise ValueError(f"batch_dims must be None or at least 0, got {batch_dims}")
        names = {name: m for name, m in model.named_modules() if name}
        error_name = None if error_at is None else resolve_one(names, error_at)
        self.explicit = points is not None
        found = _default_points(names) if points is None else resolve(names, points)
        self.point_names = tuple(n for n in found if n != error_name)
        if points is None and not self.point_names:
            _check_shallow(model)
        self.error_name = error_name
        self.batch_dims = batch_dims
        self.method = method
        self._feedback = feedback if feedback is not None else Feedback()
        self.module = model
        self.register_buffer("feedback_matrix", self.feedback.values)
        self._streams = {n: self.feedback.stream(i) for i, n in enumerate(self.point_names)}
        self._optimizer: weakref.ref[FusedUpdate] | None = None
        # A fused layer asks for its name: those that are points, and those that may be the head.
        head = error_name or _last_of_sequential(model)
        fused = (*self.point_names, head) if head else self.point_names
        self._fused = {n: m for n in fused if isinstance(m := names[n], Linear)}
        self._names = self._by_id()
        owned = [p for layer in self._fused.values() for p in layer.parameters()]
        self.tied = len(set(owned)) < len(owned)
        self._chain: Any = self._as_chain()
        self.planned: Planned | None = None  # of the last forward pass with a fused optimizer
        # Hooks, each with its module and its key there.
        self._owner = Owner()
        self._owner.of = weakref.ref(self)
        self._closing: Hooked | None = None
        self._cuts: dict[str, Hooked] = {}
        for name in self.point_names:
            if not isinstance(names[name], Linear):
                self._cut_last(name, names[name])
        if error_name is not None:
            self._closing = self._hook(names[error_name], partial(closes, self._owner))
        self.register_load_state_dict_pre_hook(_check_feedback)

    # Properties -----------------------------------------------------------------------------

    @property
    def feedback(self) -> Feedback:
        """What B is, from the construction on."""
        return self._feedback

    @feedback.setter
    def feedback(self, feedback: Feedback) -> None:
        raise AttributeError(
            f"what B is ({self._feedback}) is chosen when a DFA module is constructed: wrap its "
            "`module` again for another"
        )

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
        """What the model returns. Its gradients are DFA's where the method is ``"dfa"``, whether
        they are made or an optimizer of `dfa_kernels.optim` steps without them.

        Raises:
            RuntimeError, TypeError, ValueError: a forward pass that DFA cannot be right for: a
                point that was not reached, comes after the error point, returns no real tensor,
                or has rows that the error's do not divide.
        """
        if self._method == "bp" or not torch.is_grad_enabled():
            return self.module(*args, **kwargs)
        if not torch.compiler.is_compiling():
            if self._chain is False:  # of a copy, whose model is whole by now
                self._chain = self._as_chain()
            if self._chain is not None and self._method == "dfa":
                run = _untraced if _compiler() is not None else Chain.run
                output = run(self._chain, args, kwargs)
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
        if not is_chain(model) or not model._modules:
            return None
        layers = [(n, m) for n, m in model._modules.items() if isinstance(m, Linear)]
        for module in model._modules.values():
            if type(module) not in (Linear, Passed):
                return None
        if len({layer for _, layer in layers}) < len(layers):
            return None  # one that runs twice
        for (_, below), (_, above) in itertools.pairwise(layers):
            if below.out_features != above.in_features:
                return None
        return Chain(self, cast(nn.Sequential, model), layers)

    def replaced(self, name: str) -> bool:
        """Whether the point of this name is another module now."""
        was = self._cuts[name][0] if name in self._cuts else self._fused[name]
        try:
            now = self.module.get_submodule(name)
        except AttributeError:  # nothing is there now, or it was wrapped
            return False
        return all(inside is not was for inside in now.modules())

    def name_of(self, layer: Linear) -> str | None:
        """The name of a fused layer that is one of this module's points, or may be its head."""
        return self._names.get(id(layer))

    def _by_id(self) -> dict[int, str]:
        """The fused layers' names. Of a layer that is a dictionary's key, torch.compile would guard
        nothing but its parameters' being the same objects."""
        return {id(layer): name for name, layer in self._fused.items()}

    def cuts(self, name: str) -> bool:
        """Whether a forward hook cuts the output of this layer where it is not fused."""
        return name in self._cuts

    def _cut_last(self, name: str, module: nn.Module) -> None:
        """Cut a point's output after every other forward hook: FSDP2's looks there for the graph
        whose backward pass needs the weights again, and a user's may replace the output."""
        known = self._cuts.get(name)
        if known is None or not hangs(known):
            self._cuts[name] = self._hook(module, partial(reached, self._owner, name))
        elif next(reversed(module._forward_hooks)) != known[1]:
            hooks = module._forward_hooks
            hooks[known[1]] = hooks.pop(known[1])

    def _hook(self, module: nn.Module, hook: Callable[..., Any]) -> Hooked:
        """Lives as long as this module does, which other wrappers of the model may outlive."""
        handle = module.register_forward_hook(hook)
        weakref.finalize(self, handle.remove).atexit = False
        return module, handle.id, hook

    def _keep_cuts_last(self) -> None:
        for name, layer in self._fused.items():
            if layer._forward_hooks and name in self._streams:
                self._cut_last(name, layer)
        for name, (module, _, _) in self._cuts.items():
            self._cut_last(name, module)
        if self._closing is not None and not hangs(self._closing):
            module, _, hook = self._closing
            self._closing = self._hook(module, hook)

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

    def claimant(self) -> FusedUpdate | None:
        """The optimizer that claimed this module's fused layers."""
        return None if self._optimizer is None else self._optimizer()

    def optimizer_of(self, parameters: list[Tensor]) -> FusedUpdate | None:
        """The optimizer that updates these parameters of fused layers without their gradients."""
        optimizer = self.claimant()
        return optimizer if optimizer is not None and optimizer.claims(parameters) else None

    def claim(self, optimizer: FusedUpdate) -> None:
        """From now on ``optimizer`` steps the fused layers."""
        self._optimizer = weakref.ref(optimizer)

    def fused_layers(self) -> dict[str, Linear]:
        """The layers that are, or may be, fused, by their names."""
        return self._fused

    # State ----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to no optimizer."""
        return {**self.__dict__, "_optimizer": None, "planned": None, "_chain": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._names = self._by_id()
        self._owner.of = weakref.ref(self)

    def get_extra_state(self) -> dict[str, object]:
        return self.feedback.describe()

    def set_extra_state(self, state: Mapping[str, object]) -> None:
        """Checked by `_check_feedback`, before anything is loaded."""


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


def _check_shallow(model: nn.Module) -> None:
    """No point was found: right only where there is no layer below another.

    Raises:
        ValueError: there is.
    """
    layers = 0
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and p.dim() > 1]
        layers += bool(own) and not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    if layers > 1:
        raise ValueError(
            f"no point was found in {type(model).__name__}, whose {layers} layers would all train "
            "by backpropagation: where its activations are functions and no modules, give "
            "points=... (modules, names or globs), or points=[] for none"
        )


def _last_of_sequential(model: nn.Module, prefix: str = "") -> str | None:
    """The name of the layer that ends a (nested) Sequential."""
    if not is_chain(model) or not model._modules:
        return None
    name, last = list(model._modules.items())[-1]
    if last is not None and is_chain(last):
        return _last_of_sequential(last, f"{prefix}{name}.")
    return prefix + name
