"""DFA as one autograd node (Launay et al. 2020, equation 3).

The node takes the output at the error point, the output of every opaque point and the parameters
of every fused layer as its inputs. Its backward returns the error to the output, the projections
to the points and the gradients to the parameters:

    y, p1, …, W1, b1, …  ──►  ErrorNode  ──►  y      backward: e ↦ (e, e·B1, …, dW1, db1, …)

Below it everything is cut, so no Wᵀδ is computed and no state outlives the call.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dfa_kernels import ops
from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.backends.contract import RULES, Layer, LayerUpdate, Point, Segment, Update
from dfa_kernels.feedback import MATRIX, Feedback
from dfa_kernels.pending import LayerPlan, Receiver, Record


class PointPlan(NamedTuple):
    """An opaque point: its name, and where its δh comes from."""

    name: str
    width: int
    stream: int
    rows: int


#: `LayerPlan.saved` of a head whose f′ is read from the error point's tensor; and of one without
#: an activation, which needs nothing and is given the error itself.
OUTPUT, NOTHING = -1, -2


class Plan(NamedTuple):
    """Everything about one forward pass that is not a tensor: constants, for torch.compile.

    ``error_rows``, ``error_width``: N and E of the flattened error. ``parameters``,
    ``chain``, ``states``: how many of each follow the points among the node's tensors.
    ``update``: ``"gradients"`` returns them; ``"backward"``, of a compiled pass, applies ``rule``
    at once, for the optimizer known by ``handle``, whose ``slots`` the parameters are; ``copies``:
    with masters; ``capturable``: whose table is on the device.
    """

    distribution: str
    seed: int
    scale: float
    error_rows: int
    error_width: int
    points: tuple[PointPlan, ...]
    layers: tuple[LayerPlan, ...]
    parameters: int
    chain: int
    update: str = "gradients"
    rule: str = ""
    handle: int = -1
    slots: tuple[int, ...] = ()
    copies: bool = False
    capturable: bool = False

    @property
    def keeps_output(self) -> bool:
        """Whether the head's f′ is read from the output itself."""
        return any(layer.saved == OUTPUT for layer in self.layers)

    def feedback(self, matrix: Tensor | None) -> Feedback:
        if self.distribution == MATRIX:
            return Feedback(MATRIX, values=matrix)
        if torch.compiler.is_compiling():
            return Feedback(self.distribution, self.seed)
        return ops.described(self.distribution, self.seed)


class ErrorNode(torch.autograd.Function):
    """``apply(plan, matrix, output, *points, *parameters, *chain, *rest) -> output``.

    ``chain``: every tensor that a fused layer was given or returned, each once. ``rest``: with
    ``update="backward"``, the optimizer's states and copies; else nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, matrix: Tensor | None, output: Tensor, *tensors: Tensor
    ) -> Tensor:
        points = len(plan.points)
        kept = tensors[points + plan.parameters :]
        ctx.plan = plan
        ctx.points = [(p.shape, p.dtype) for p in tensors[:points]]
        ctx.dtypes = [p.dtype for p in tensors[points : points + plan.parameters]]
        ctx.save_for_backward(matrix, output if plan.keeps_output else None, *kept)
        return _again(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        matrix, output, *kept = _saved(ctx, plan)
        flat = error.reshape(plan.error_rows, plan.error_width)
        feedback = plan.feedback(matrix)
        records = _records(plan, flat, output, kept)
        return (
            None,
            None,
            error if ctx.needs_input_grad[2] else None,
            *_projections(ctx, plan, feedback, flat),
            *_parameters(ctx, plan, feedback, flat, records, kept[plan.chain :]),
            *(None for _ in kept),
        )


class DeferringNode(torch.autograd.Function):
    """`ErrorNode` for a fused update: ``apply(plan, matrix, output, leaf, receiver, parameters,
    chain, *points) -> output``. One `Record` goes to the receiver, whose ``leaf`` is, instead of a
    gradient to each of the ``parameters``, which are a list and so no inputs of the node.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        matrix: Tensor | None,
        output: Tensor,
        leaf: Tensor,
        receiver: Receiver,
        parameters: list[Tensor],
        chain: list[Tensor],
        *points: Tensor,
    ) -> Tensor:
        ctx.plan = plan
        ctx.points = [(p.shape, p.dtype) for p in points]
        ctx.receiver, ctx.parameters = receiver, parameters
        ctx.expected = receiver.expect(parameters)
        ctx.save_for_backward(matrix, output if plan.keeps_output else None, *chain)
        return _again(output)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Any, ...]:
        return (_leave_once if torch.is_grad_enabled() else _leave)(ctx, error)


def _leave(ctx: Any, error: Tensor) -> tuple[Any, ...]:
    """The backward of a `DeferringNode`."""
    plan: Plan = ctx.plan
    matrix, output, *kept = _saved(ctx, plan)
    flat = error.reshape(plan.error_rows, plan.error_width)
    feedback = plan.feedback(matrix)
    if ctx.receiver.wanted():
        inputs, saved = zip(*_matrices(plan, flat, output, kept), strict=True)
        watched: list[Any] = [flat, *kept] if output is None else [flat, *kept, output]
        record = Record(
            plan.layers, plan.scale, feedback, ctx.parameters, flat, inputs, saved, watched
        )
        ctx.receiver.add(record, ctx.expected)
    passed = error if ctx.needs_input_grad[2] else None
    points = _projections(ctx, plan, feedback, flat)
    return None, None, passed, None, None, None, None, *points


# backward(create_graph=True)
_leave_once = once_differentiable(_leave)


def _again(output: Tensor) -> Tensor:
    """The same elements as a tensor that may be written to, which no view that a node returns may;
    dynamo takes only the view."""
    return output.view_as(output) if torch.compiler.is_compiling() else output.detach()


def defer(*given: Any) -> Tensor:
    """`DeferringNode.apply`, without what it does for functorch: it refuses to run under that."""
    return (DeferringNode.apply if _transforms() else _apply)(*given)


_transforms = torch._C._are_functorch_transforms_active
_apply = super(torch.autograd.Function, DeferringNode).apply

#: The graph task in which each DFA module's node ran last: activation checkpointing runs parts of
#: a forward pass again after it, and there the points must be cut as they were.
tasks: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def _saved(ctx: Any, plan: Plan) -> tuple[Tensor | None, ...]:
    if not torch.compiler.is_compiling() and hasattr(ctx, "owner"):
        tasks[ctx.owner] = torch._C._current_graph_task_id()
    return unfreed(ctx, len(plan.points), len(plan.layers))


def unfreed(ctx: Any, points: int, layers: int) -> tuple[Any, ...]:
    """What a node saved.

    Raises:
        RuntimeError: a backward pass before this one freed it, or it was changed in place.
    """
    try:
        return ctx.saved_tensors
    except RuntimeError as freed:
        if "second time" not in str(freed):
            raise
        raise RuntimeError(
            f"a second backward reached the error point of {points} points and "
            f"{layers} fused layers, whose records the first one freed: call the "
            "first as backward(retain_graph=True)"
        ) from freed


def _matrices(
    plan: Plan, error: Tensor, output: Any, kept: list[Any]
) -> list[tuple[Tensor, Tensor]]:
    """What each fused layer was given, and what its f′ is read from."""
    made = []
    for layer in plan.layers:
        x, at = kept[layer.inputs], layer.saved
        h = kept[at] if at >= 0 else output if at == OUTPUT else error
        made.append((_rows(x), _rows(h)))
    return made


def _records(plan: Plan, error: Tensor, output: Any, kept: list[Any]) -> list[Layer]:
    """What each fused layer saw."""
    return [
        Layer(x, h, ACTIVATIONS[layer.activation].name, layer.stream, layer.rows)
        for layer, (x, h) in zip(plan.layers, _matrices(plan, error, output, kept), strict=True)
    ]


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def _projections(ctx: Any, plan: Plan, feedback: Feedback, error: Tensor) -> list[Tensor]:
    """δh for every opaque point. Points that want the same get copies of one projection: autograd
    may hand it on as some parameter's gradient, and adds to those in place."""
    if not plan.points:
        return []
    wanted = [
        Point(point.width, point.stream, point.rows, dtype)
        for point, (_, dtype) in zip(plan.points, ctx.points, strict=True)
    ]
    distinct = list(dict.fromkeys(wanted))
    made = dict(zip(distinct, ops.project(error, feedback, plan.scale, distinct), strict=True))
    return [
        (made[point] if wanted.index(point) == i else made[point].clone()).view(shape)
        for i, (point, (shape, _)) in enumerate(zip(wanted, ctx.points, strict=True))
    ]


def _parameters(
    ctx: Any,
    plan: Plan,
    feedback: Feedback,
    error: Tensor,
    records: list[Layer],
    rest: list[Any],
) -> list[Tensor | None]:
    """The gradient of every fused parameter; or none, and the update that it would have fed."""
    slots: list[Tensor | None] = [None] * plan.parameters
    if not plan.layers:
        return slots
    if plan.update == "backward":
        _step(plan, feedback, error, records, rest)
        return slots
    dtype = ctx.dtypes[0]
    for other in ctx.dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    made = ops.gradients(error, feedback, plan.scale, records, dtype)
    for layer, (weight, bias) in zip(plan.layers, made, strict=True):
        for slot, gradient in ((layer.weight, weight), (layer.bias, bias)):
            if slot >= 0:
                gradient = gradient.to(ctx.dtypes[slot])
                before = slots[slot]
                slots[slot] = gradient if before is None else before + gradient
    return slots


def _step(
    plan: Plan, feedback: Feedback, error: Tensor, records: list[Layer], rest: list[Any]
) -> None:
    """Apply the optimizer's rule at once. ``rest``: each parameter, followed by its states, and
    with masters by its copy or None."""
    stride = 1 + len(RULES[plan.rule].states) + plan.copies
    rows = ops.hyper(error, plan.handle, plan.rule, list(plan.slots), plan.capturable)

    def update(slot: int) -> Update:
        parameter, *states = rest[slot * stride : (slot + 1) * stride]
        copy = states.pop() if plan.copies else None
        return Update(parameter, tuple(states), rows[slot], copy)

    updates: list[LayerUpdate] = []
    weights: list[int] = []
    for layer, record in zip(plan.layers, records, strict=True):
        segment = Segment(error, plan.scale, record)
        if layer.weight in weights:
            updates[weights.index(layer.weight)].segments.append(segment)
            continue
        weights.append(layer.weight)
        bias = update(layer.bias) if layer.bias >= 0 else None
        updates.append(LayerUpdate(update(layer.weight), bias, [segment]))
    ops.step_(feedback, plan.rule, updates, plan.capturable)
