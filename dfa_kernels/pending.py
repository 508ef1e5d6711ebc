"""Gradients that a fused update never makes, and what stands in their place.

With an optimizer of `dfa_kernels.optim`, a backward pass leaves one `Record` for the whole network
in the optimizer's `Ledger`, or has it applied at once. The `.grad` of each fused parameter is a
`PendingGradient` until the optimizer's step: its elements do not exist, and whatever asks for them
is refused in one sentence, so that nothing (clipping, scaling, averaging) passes over them
silently.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.backends.contract import Layer, Segment
from dfa_kernels.feedback import Feedback

_aten = torch.ops.aten


class LayerPlan(NamedTuple):
    """A fused layer of one forward pass: where its input and what its f′ is read from are among the
    tensors that its node keeps, and its weight and bias among the parameters (a bias of −1: none).
    """

    name: str
    inputs: int
    saved: int
    activation: int
    stream: int
    rows: int
    weight: int
    bias: int


class Recorded(NamedTuple):
    """One fused layer in one backward pass."""

    name: str
    weight: Tensor
    bias: Tensor | None
    segment: Segment


class Record:
    """One backward pass: what B was, the error (N, E) and the scale of its projections, and of each
    fused layer what ``plans`` says, what it was given and what its f′ is read from (N·k, features).

    ``plans``: the same object where another pass had the same layers in the same dtypes, which
    are by the error's; ``parameters``: of all; ``watched``: the error and what else others see
    too, and may write to.
    """

    def __init__(
        self,
        plans: Sequence[LayerPlan],
        scale: float,
        feedback: Feedback,
        parameters: list[Tensor],
        error: Tensor,
        inputs: Sequence[Tensor],
        saved: Sequence[Tensor],
        watched: Sequence[Tensor],
    ) -> None:
        self.plans, self.scale, self.feedback = plans, scale, feedback
        self.parameters, self.error = parameters, error
        self.inputs, self.saved = tuple(inputs), tuple(saved)
        self._layers: list[Recorded] | None = None
        self._watched, self._versions = watched, [t._version for t in watched]

    @property
    def layers(self) -> list[Recorded]:
        """Made where somebody asks, which a step that repeats another does not."""
        if self._layers is None:
            self._layers = self._make_layers()
        return self._layers

    def _make_layers(self) -> list[Recorded]:
        made, parameters = [], self.parameters
        for (name, _, _, activation, stream, k, weight, bias), x, h in zip(
            self.plans, self.inputs, self.saved, strict=True
        ):
            layer = Layer(x, h, ACTIVATIONS[activation].name, stream, k)
            own = None if bias < 0 else parameters[bias]
            segment = Segment(self.error, self.scale, layer)
            made.append(Recorded(name, parameters[weight], own, segment))
        return made

    def check(self) -> None:
        """A step reads what the backward pass has seen.

        Raises:
            RuntimeError: somebody has written to it since.
        """
        for tensor, version in zip(self._watched, self._versions):  # noqa: B905 (a step's time)
            if tensor._version != version:
                what = "the error" if tensor is self._watched[0] else "a layer's input or output"
                raise RuntimeError(
                    f"{what} of shape {tuple(tensor.shape)}, or what it is a view of, was changed "
                    "in place between backward() and step(), which reads it: give every backward "
                    'pass tensors of its own, or construct the optimizer with update="backward"'
                )

    def dropped(self, number: int) -> bool:
        """Whether none of its parameters has a gradient that this record, the ledger's
        ``number``, is part of."""
        for p in self.parameters:
            pending = p.grad
            if type(pending) is PendingGradient and pending.start <= number:
                return False
        return True

    def name_of(self, parameter: Tensor) -> str:
        """The name of the layer whose parameter it is."""
        for name, weight, bias, _ in self.layers:
            if weight is parameter or bias is parameter:
                return name
        raise KeyError(f"a parameter of shape {tuple(parameter.shape)} is of none of its layers")


class PendingGradient(torch.Tensor):
    """A fused parameter's `.grad`: what the ledger's records since ``start`` sum to, and the
    ``dense`` gradient beside them where autograd brought one (another use of a tied weight,
    another method's backward)."""

    layer: str
    ledger: weakref.ref[Ledger]
    start: int
    dense: Tensor | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, parameter: Tensor, layer: str, ledger: Ledger) -> Any:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, parameter.shape, dtype=parameter.dtype, device=parameter.device
        )
        made.layer, made.start, made.dense = layer, 0, None
        made.ledger = weakref.ref(ledger)
        return made

    # What would reach for its memory, of which there is none, without asking for an operation.

    def share_memory_(self) -> Any:
        raise _refusal("share_memory_", [self.layer])

    def __dlpack__(self, **_: Any) -> Any:
        raise _refusal("__dlpack__", [self.layer])

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return (
            f"PendingGradient({self.layer!r}, shape={tuple(self.shape)}: never made, the update is "
            "fused)"
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        left = args[0]
        if func is _aten.add_.Tensor and type(left) is cls and type(args[1]) in _ADDED:
            alpha = (kwargs or {}).get("alpha", 1)
            more = torch.as_tensor(args[1], dtype=left.dtype, device=left.device) * alpha
            more = more.expand(left.shape).contiguous()
            left.dense = more if left.dense is None else left.dense + more
            if (ledger := left.ledger()) is not None:
                ledger.plain = False
            return left
        flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        raise _refusal(func.name(), [a.layer for a in flat if isinstance(a, cls)])


# What a gradient may be added to by hand.
_ADDED = (Tensor, torch.nn.Parameter, int, float)


def _refusal(operation: str, layers: Sequence[str]) -> RuntimeError:
    names = ", ".join(dict.fromkeys(map(repr, layers)))
    if operation in _CASTS:
        return RuntimeError(
            f"{operation} asked for the gradient of {names}, which a fused update never makes: "
            "step() and zero_grad() before the model is cast, moved or shared"
        )
    return RuntimeError(
        f"{operation} asked for the gradient of {names}, which a fused update never makes: leave "
        "clipping, scaling, averaging and logging of gradients to a torch.optim optimizer, or keep "
        "these parameters out of the dfa_kernels.optim one"
    )


_CASTS = ("aten::_to_copy", "share_memory_")


_hooks_of, _later_hooks_of = map(attrgetter, ("_backward_hooks", "_post_accumulate_grad_hooks"))


def hooked(parameters: Sequence[Tensor]) -> bool:
    """Whether anybody waits for the gradient of one of them."""
    return any(map(_hooks_of, parameters)) or any(map(_later_hooks_of, parameters))


def check_unhooked(parameters: Sequence[Tensor]) -> None:
    """An eager forward pass makes gradients where somebody waits for them; what comes after it, and
    a compiled one, cannot.

    Raises:
        RuntimeError: somebody waits.
    """
    if hooked(parameters):
        shape = next(tuple(p.shape) for p in parameters if hooked([p]))
        raise RuntimeError(
            f"a parameter of shape {shape} has a hook, but a fused update makes no gradient for it "
            "to see: register hooks before an uncompiled forward pass, which makes it then, or use "
            "torch.optim"
        )


class Receiver:
    """Where the nodes of eager forward passes leave their records.

    ``leaf`` is an input of every such node: the node's output then requires a gradient, and where
    autograd would give the leaf none (``backward(inputs=...)``, ``autograd.grad``), there is
    nothing to record.
    """

    def __init__(self) -> None:
        self.leaf = torch.zeros((), requires_grad=True)
        self._accumulates = get_gradient_edge(self.leaf).node

    def wanted(self) -> bool:
        """Whether the backward pass under way accumulates gradients."""
        return torch._C._will_engine_execute_node(self._accumulates)

    def expect(self, parameters: list[Tensor]) -> Any:
        """A forward pass with these parameters is made. What its node hands to `add`."""

    def add(self, record: Record, expected: Any) -> None:
        """Leave the record of a backward pass."""
        raise NotImplementedError


class Ledger(Receiver):
    """What backward passes left since `zero_grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []
        self._pending: dict[int, PendingGradient] = {}
        # Whether each of them counts from the first record on, and has no dense gradient beside.
        self.plain = True

    def add(self, record: Record, expected: None) -> None:
        """Leave a record. A parameter whose `.grad` is none, or somebody else's, counts records
        from here on; `.grad` then says that it is pending.

        Raises:
            RuntimeError: a parameter has got a hook since the forward pass.
        """
        check_unhooked(record.parameters)
        # Cleared by somebody else's zero_grad.
        if all(held.dropped(i) for i, held in enumerate(self.records)):
            self.records.clear()
        held, plain = len(self.records), self.plain
        for p in record.parameters:
            if type(gradient := p.grad) is PendingGradient:
                if gradient.ledger() is self:
                    continue
                gradient = gradient.dense
            made = self.put(p, record.name_of)
            if held or gradient is not None:
                self.plain = False
            if not self.plain:
                made.start, made.dense = held, gradient
        if not plain and not held:
            self.plain = all(m.start == 0 and m.dense is None for m in self._pending.values())
        self.records.append(record)

    def put(self, parameter: Tensor, name_of: Callable[[Tensor], str]) -> PendingGradient:
        """Say by the parameter's `.grad` that it is pending; ``name_of``: its layer."""
        made = self._pending.get(id(parameter))
        try:
            parameter.grad = made
        except RuntimeError:  # the parameter was moved or cast since
            made = None
        if made is None:
            made = self._pending[id(parameter)] = PendingGradient.of(
                parameter, name_of(parameter), self
            )
            parameter.grad = made
        return made
