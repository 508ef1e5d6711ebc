"""What one forward pass of a `DFA` module collects, and how it becomes one autograd node.

A `Recording` lives from the call of ``DFA.forward`` to its return: points and fused layers add
themselves as the forward pass reaches them, and `Recording.close` at the error point turns all
into a `Plan` and the tensors that go with it. Everything that can be refused is refused here,
before a gradient exists.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dfa_kernels.activation import CODES
from dfa_kernels.autograd import ErrorNode, LayerPlan, Plan, PointPlan
from dfa_kernels.backends.contract import HEAD

if TYPE_CHECKING:
    from dfa_kernels.module import DFA, Linear


class _Active(threading.local):
    recording: Recording | None = None


#: The forward pass under way in this thread.
active = _Active()


class _Point(NamedTuple):
    name: str
    output: Tensor
    cut: Tensor


class _Fused(NamedTuple):
    name: str
    inputs: Tensor
    output: Tensor
    saved: Tensor
    activation: str
    weight: Tensor
    bias: Tensor | None


class Recording:
    """The points and fused layers of one forward pass, in the order in which it reached them."""

    def __init__(self, owner: DFA) -> None:
        self.owner = owner
        self.points: list[_Point] = []
        self.layers: list[_Fused] = []
        self.idle: list[Tensor] = []  # of frozen points: they count for D_max
        self.reached: list[str] = []
        self.closed = False

    # Collecting ---------------------------------------------------------------------------

    def point(self, name: str, output: Tensor) -> Tensor:
        """An opaque point's output, cut: what follows sees it without its graph."""
        if not self._admits(name):
            return output
        if not isinstance(output, Tensor):
            raise TypeError(
                f"point {name!r} returned a {type(output).__name__}, but a point must return one "
                "tensor: name a module inside it"
            )
        _check_real(output, f"point {name!r}")
        if not output.requires_grad:
            self._check_frozen(name)
            self.idle.append(output)
            return output
        cut = output.detach()
        self.points.append(_Point(name, output, cut))
        return cut

    def fuses(self, name: str, layer: Linear, inputs: Tensor) -> bool:
        """Whether ``layer`` can do without an autograd graph; else it is an opaque point.

        It cannot where something trainable stands between the last cut and its input, where only
        one of weight and bias learns, or where the points' features are not its last dimension.
        """
        weight, bias = layer.weight, layer.bias
        return (
            not self.closed
            and not inputs.requires_grad
            and torch.is_grad_enabled()
            and weight.requires_grad
            and (bias is None or bias.requires_grad)
            and _batch_dims(inputs, self.owner.batch_dims) == inputs.dim() - 1
        )

    def fused(
        self, name: str, layer: Linear, inputs: Tensor, output: Tensor, saved: Tensor
    ) -> None:
        """A fused layer's record. FSDP2 swaps parameters: these are the ones its forward saw."""
        self.reached.append(name)
        self.layers.append(
            _Fused(name, inputs, output, saved, layer.activation, layer.weight, layer.bias)
        )

    def _admits(self, name: str) -> bool:
        self.reached.append(name)
        if not torch.is_grad_enabled():
            raise RuntimeError(
                f"point {name!r} ran under torch.no_grad(), as reentrant activation checkpointing "
                "does, and would not learn: use checkpoint(..., use_reentrant=False), or leave it "
                "out of points=..."
            )
        if self.closed and self.owner.explicit:
            raise RuntimeError(
                f"point {name!r} was reached after the error point {self.owner.error_name!r}: "
                "what stands above the error point gets its true gradient and is no point"
            )
        return not self.closed

    def _check_frozen(self, name: str) -> None:
        module = self.owner.module.get_submodule(name)
        trainable = [n for n, p in module.named_parameters() if p.requires_grad]
        if trainable:
            raise RuntimeError(
                f"point {name!r} has {len(trainable)} trainable parameters, but its output has no "
                "graph, as under reentrant activation checkpointing: use checkpoint(..., "
                "use_reentrant=False), or freeze it"
            )

    # Closing ------------------------------------------------------------------------------

    def close(self, output: Tensor) -> Tensor:
        """The error node over everything collected, as a fresh view of ``output``."""
        owner = self.owner
        where = (
            f"the error point {owner.error_name!r}" if owner.error_name else "the model's output"
        )
        if self.closed:
            raise RuntimeError(f"{where} was reached twice in one forward pass")
        self.closed = True
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{where} is a {type(output).__name__}, not one tensor: name the module whose "
                "output the loss is computed from with error_at=..."
            )
        _check_real(output, where)
        if not torch.is_grad_enabled():
            raise RuntimeError(f"{where} is inside no graph: it was computed under torch.no_grad()")
        head = None
        if self.layers and self.layers[-1].output is output:
            head = self.layers.pop()
        elif self.points and self.points[-1].cut is output:
            output = self.points.pop().output
        if head is None and not output.requires_grad:
            self._check_top(where)
        if owner.method == "shallow":
            self.points, self.layers = [], []
        if not self.points and not self.layers and head is None:
            return output
        return self._node(output, head, where)

    def _check_top(self, where: str) -> None:
        """Nothing above the last point learns: right only where that something is frozen."""
        if self.layers or self.points:
            frozen = any(not p.requires_grad for p in self.owner.module.parameters())
            if not frozen:
                last = (self.layers or self.points)[-1].name
                raise RuntimeError(
                    f"no layer would learn from its true gradient: {last!r} is a point, and "
                    f"nothing with parameters stands between it and {where}; give "
                    f"error_at={last!r}"
                )

    def _node(self, output: Tensor, head: _Fused | None, where: str) -> Tensor:
        owner = self.owner
        rows, width = self._rows_and_width(output, where)
        points = tuple(self._point_plan(p, rows) for p in self.points)
        feedback = owner.feedback
        chain: list[Tensor] = []
        parameters: list[Tensor] = []
        layers = []
        widest = 0
        for idle in self.idle:
            widest = max(widest, math.prod(idle.shape[_batch_dims(idle, owner.batch_dims) :]))
        for point in points:
            widest = max(widest, point.width)
        for fused in self.layers:
            k = _ratio(fused.name, math.prod(fused.output.shape[:-1]), rows)
            layers.append(self._layer_plan(fused, k, chain, parameters))
            widest = max(widest, fused.output.shape[-1])
        if head is not None:
            layers.append(self._layer_plan(head, 1, chain, parameters, output))
        self._check(output, width, chain, parameters)
        matrix = owner.feedback_matrix
        for name, features in [(p.name, p.width) for p in points] + [
            (f.name, f.output.shape[-1]) for f in self.layers
        ]:
            feedback.check_shape(width, features, f"point {name!r}")
        plan = Plan(
            feedback.distribution,
            feedback.seed,
            feedback.scale_for(widest),
            rows,
            width,
            points,
            tuple(layers),
            len(parameters),
            len(chain),
        )
        outputs = [p.output for p in self.points]
        plan, rest = owner.plan_update(plan, parameters)
        return ErrorNode.apply(plan, matrix, output, *outputs, *parameters, *chain, *rest)

    def _rows_and_width(self, output: Tensor, where: str) -> tuple[int, int]:
        """N and E of the error."""
        if output.dim() == 0:
            raise ValueError(
                f"{where} is a scalar: does the model return its loss? Name the module whose "
                "output the loss is computed from with error_at=..."
            )
        batch = _batch_dims(output, self.owner.batch_dims)
        return math.prod(output.shape[:batch]), math.prod(output.shape[batch:])

    def _point_plan(self, point: _Point, error_rows: int) -> PointPlan:
        shape = point.output.shape
        batch = _batch_dims(point.output, self.owner.batch_dims)
        rows, width = math.prod(shape[:batch]), math.prod(shape[batch:])
        k = _ratio(point.name, rows, error_rows)
        return PointPlan(point.name, width, self.owner.stream(point.name), k)

    def _layer_plan(
        self,
        fused: _Fused,
        k: int,
        chain: list[Tensor],
        parameters: list[Tensor],
        output: Tensor | None = None,
    ) -> LayerPlan:
        own = output is not None and fused.saved is output
        return LayerPlan(
            fused.name,
            _index(chain, fused.inputs),
            -1 if own else _index(chain, fused.saved),
            CODES[fused.activation],
            HEAD if output is not None else self.owner.stream(fused.name),
            k,
            _index(parameters, fused.weight),
            -1 if fused.bias is None else _index(parameters, fused.bias),
        )

    def _check(
        self, output: Tensor, width: int, chain: list[Tensor], parameters: list[Tensor]
    ) -> None:
        for fused in self.layers:
            if fused.weight.device != output.device:
                raise RuntimeError(
                    f"layer {fused.name!r} has its weight on {fused.weight.device}, but the error "
                    f"point is on {output.device}"
                )

    def finish(self) -> None:
        """After the forward pass: everything that was named must have been reached."""
        owner = self.owner
        if owner.error_name and not self.closed:
            raise RuntimeError(
                f"the forward pass never reached the error point {owner.error_name!r}"
            )
        if owner.explicit:
            missed = [n for n in owner.point_names if n not in self.reached]
            if missed:
                raise RuntimeError(
                    f"the forward pass never reached {len(missed)} of {len(owner.point_names)} "
                    f"points: {', '.join(map(repr, missed))}"
                )


class Observation(Recording):
    """A forward pass that cuts nothing: for measuring beside backpropagation."""

    error: Tensor

    def fuses(self, name: str, layer: Linear, inputs: Tensor) -> bool:
        return False

    def point(self, name: str, output: Tensor) -> Tensor:
        if self._admits(name):
            _check_real(output, f"point {name!r}")
            if not output.requires_grad:
                output.requires_grad_()
            self.points.append(_Point(name, output, output))
        return output

    def close(self, output: Tensor) -> Tensor:
        self.closed = True
        if self.points and self.points[-1].output is output:
            self.points.pop()
        self.error = output
        return output

    def plans(self) -> tuple[list[PointPlan], int, int]:
        """Every point, and N and E of the error."""
        rows, width = self._rows_and_width(self.error, "the error point")
        return [self._point_plan(p, rows) for p in self.points], rows, width


def _index(tensors: list[Tensor], tensor: Tensor) -> int:
    """The position of ``tensor``, appended where it is new: torch.compile refuses to see one
    tensor twice among a node's inputs. Layers follow each other, so look from the end."""
    for i in range(len(tensors) - 1, -1, -1):
        if tensors[i] is tensor:
            return i
    tensors.append(tensor)
    return len(tensors) - 1


def _batch_dims(tensor: Tensor, given: int | None) -> int:
    """How many leading dimensions are rows: see `DFA`, ``batch_dims``."""
    if given is not None:
        return given
    if tensor.dim() >= 4:
        return 1
    return max(tensor.dim() - 1, min(tensor.dim(), 1))


def _ratio(name: str, rows: int, error_rows: int) -> int:
    """k, the rows of a point for each row of the error."""
    if rows == error_rows:
        return 1
    if error_rows == 0 or rows % error_rows:
        raise ValueError(
            f"point {name!r} has {rows} rows, which the error's {error_rows} rows do not divide: "
            "batch_dims says which leading dimensions are rows"
        )
    return rows // error_rows


def _check_real(tensor: Tensor, where: str) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{where} is {tensor.dtype}, but DFA needs a real floating dtype")
