"""Gradients that a fused update never makes, and what stands in their place.

With an optimizer of `dfa_kernels.optim`, a backward pass leaves one `Record` for the whole network
in the optimizer's `Ledger`. The `.grad` of each fused parameter is a `PendingGradient`: its
elements do not exist, and whatever asks for them is refused in one sentence, so that nothing
(clipping, scaling, averaging) passes over them silently.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    are by the error's; ``parameters``: of all.
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
    ) -> None:
        self.plans, self.scale, self.feedback = plans, scale, feedback
        self.parameters, self.error = parameters, error
        self.inputs, self.saved = tuple(inputs), tuple(saved)
        self._layers: list[Recorded] | None = None

    @property
    def layers(self) -> list[Recorded]:
        """Made where somebody asks, which a step that repeats another does not."""
        if self._layers is None:  # dynamo knows no functools.cached_property
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

    def dropped(self) -> bool:
        """Whether none of its parameters has a gradient."""
        return all(p.grad is None for p in self.parameters)

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
    start: int
    dense: Tensor | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, parameter: Tensor, layer: str) -> Any:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, parameter.shape, dtype=parameter.dtype, device=parameter.device
        )
        made.layer, made.start, made.dense = layer, 0, None
        return made

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
        if func is _aten.add_.Tensor and type(left) is cls and not isinstance(args[1], cls):
            left.dense = args[1].clone() if left.dense is None else left.dense + args[1]
            return left
        flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        names = dict.fromkeys(repr(a.layer) for a in flat if isinstance(a, cls))
        raise RuntimeError(
            f"{func.name()} asked for the gradient of {', '.join(names)}, which a fused update "
            "never makes: leave clipping, scaling, averaging and logging of gradients to a "
            "torch.optim optimizer, or keep these parameters out of the dfa_kernels.optim one"
        )


class Hidden:
    """Within, an optimizer's pending gradients are None: torch.optim passes over them."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        every = [p for group in groups for p in group["params"]]
        self._hidden = [(p, p.grad) for p in every if type(p.grad) is PendingGradient]

    def __enter__(self) -> None:
        for p, _ in self._hidden:
            p.grad = None

    def __exit__(self, *_: object) -> None:
        for p, gradient in self._hidden:
            p.grad = gradient


class Ledger:
    """What backward passes left since `zero_grad`.

    ``leaf`` is an input of every node that leaves records: the node's output then requires a
    gradient, and where autograd would give the leaf none (``backward(inputs=...)``,
    ``autograd.grad``), there is nothing to record.
    """

    def __init__(self) -> None:
        self.leaf = torch.zeros((), requires_grad=True)
        self.records: list[Record] = []
        self._accumulates = get_gradient_edge(self.leaf).node
        self._pending: dict[int, PendingGradient] = {}

    def wanted(self) -> bool:
        """Whether the backward pass under way accumulates gradients."""
        return torch._C._will_engine_execute_node(self._accumulates)

    def add(self, record: Record) -> None:
        """Leave a record. A parameter whose `.grad` is none, or somebody else's, counts records
        from here on; `.grad` then says that it is pending."""
        if all(held.dropped() for held in self.records):  # cleared by somebody else's zero_grad
            self.records.clear()
        held = len(self.records)
        for p in record.parameters:
            if type(gradient := p.grad) is PendingGradient:
                continue
            made = self._pending.get(id(p))
            try:
                p.grad = made
            except RuntimeError:  # the parameter was moved or cast since
                made = None
            if made is None:
                made = self._pending[id(p)] = PendingGradient.of(p, record.name_of(p))
                p.grad = made
            made.start, made.dense = held, gradient
        self.records.append(record)
