"""What one forward pass of a `DFA` module collects, and how it becomes one autograd node.

A `Recording` lives from the call of ``DFA.forward`` to its return: points and fused layers add
themselves as the forward pass reaches them, and `Recording.close` at the error point turns all
into a `Plan` and the tensors that go with it. Everything that can be refused is refused here,
before a gradient exists.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from dfa_kernels.activation import CODES
from dfa_kernels.autograd import (
    NOTHING,
    OUTPUT,
    ErrorNode,
    LayerPlan,
    Plan,
    PointPlan,
    defer,
)
from dfa_kernels.backends.contract import HEAD
from dfa_kernels.planned import Planned

if TYPE_CHECKING:
    from dfa_kernels.fused_update import FusedUpdate
    from dfa_kernels.module import DFA


class _Active(threading.local):
    def __init__(self) -> None:
        # In every thread's own dict from the start: torch.compile guards on its being there.
        self.recording: Recording | None = None


#: The forward pass under way in this thread.
active = _Active()


class RecordedPoint(NamedTuple):
    name: str
    output: Tensor
    cut: Tensor


class Fused(NamedTuple):
    """What a fused layer leaves behind: ``saved`` is ``output``, or its preactivations."""

    name: str
    inputs: Tensor
    output: Tensor
    saved: Tensor
    activation: int
    weight: Tensor
    bias: Tensor | None
    versions: tuple[int, int] | None


class Recording:
    """The points and fused layers of one forward pass, in the order in which it reached them."""

    def __init__(self, owner: DFA) -> None:
        self.owner = owner
        self.points: list[RecordedPoint] = []
        self.layers: list[Fused] = []
        self.idle: list[Tensor] = []  # of frozen points: they count for D_max
        self.reached: list[str] = []
        self.closed = False
        # Whether a parameter may come twice: a layer called again, or a tied weight.
        self.repeats = owner.tied
        self.checkpoint = _checkpoint()
        self._low: dict[int, Tensor] | None = None

    # Collecting ---------------------------------------------------------------------------

    def point(self, name: str, module: nn.Module, output: Tensor) -> Tensor:
        """The output of an opaque point, which is ``module``, cut: what follows sees it without
        its graph."""
        if not self._admits(name):
            return output
        if not isinstance(output, Tensor):
            raise TypeError(
                f"point {name!r} returned a {type(output).__name__}, but a point must return one "
                "tensor: name a module inside it"
            )
        check_real(output, f"point {name!r}")
        if not output.requires_grad:
            self._check_frozen(name, module)
            self.idle.append(output)
            return output
        cut = output.detach()
        self.points.append(RecordedPoint(name, output, cut))
        return cut

    def fuses(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether a layer can do without an autograd graph; else it is an opaque point.

        It cannot where something trainable stands between the last cut and its input, where only
        one of weight and bias learns, or where the points' features are not its last dimension.
        """
        return (
            not self.closed
            and not inputs.requires_grad
            and torch.is_grad_enabled()
            and weight.requires_grad
            and (bias is None or bias.requires_grad)
            and _batch_dims(inputs, self.owner.batch_dims) == inputs.dim() - 1
        )

    def operand(self, parameter: Tensor, dtype: torch.dtype | None) -> Tensor:
        """A layer's weight or bias without a graph, in autocast's ``dtype`` if there is one: those
        of all layers that the last forward pass reached are cast at once, and each is let go when
        it is used."""
        if dtype is None:
            return parameter.detach()
        if self._low is None:
            planned = None if torch.compiler.is_compiling() else self.owner.planned
            self._low = {} if planned is None else planned.lowered(dtype)
        made = self._low.pop(id(parameter), None)
        if made is None or made is parameter or made.dtype is not dtype:
            return parameter.detach()
        return made

    def fused(self, layer: Fused) -> None:
        check_real(layer.output, f"layer {layer.name!r}")
        self.repeats = self.repeats or layer.name in self.reached
        self.reached.append(layer.name)
        self.layers.append(layer)

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

    def _check_frozen(self, name: str, module: nn.Module) -> None:
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
        check_real(output, where)
        if not torch.is_grad_enabled():
            raise RuntimeError(f"{where} is inside no graph: it was computed under torch.no_grad()")
        checkpoint = _checkpoint()
        if checkpoint is not self.checkpoint and _UNKNOWN not in (checkpoint, self.checkpoint):
            raise RuntimeError(
                f"{where} is inside a checkpointed region, which would run it again: checkpoint "
                "the modules below and above it, or the DFA module as a whole"
            )
        head = None
        for i, layer in enumerate(self.layers):
            if layer.output is output:
                head = self.layers.pop(i)
                break
        for i, point in enumerate(self.points):
            if point.cut is output:
                output = self.points.pop(i).output
                break
        self.idle = [t for t in self.idle if t is not output]
        if head is None and not output.requires_grad:
            self._check_top(where)
        if owner.method == "shallow":
            self.points, self.layers = [], []
        if not self.points and not self.layers and head is None:
            return output
        return self._node(output, head, where)

    def _check_top(self, where: str) -> None:
        """Nothing above the last point learns: right only where that something is frozen."""
        if not self.layers and not self.points:
            return
        last = (self.layers or self.points)[-1].name
        passed = frozen = False
        for name, module in self.owner.module.named_modules():
            passed = passed or name == last
            own = module.parameters(recurse=False)
            frozen = frozen or (passed and any(not p.requires_grad for p in own))
        if not frozen:
            raise RuntimeError(
                f"no layer would learn from its true gradient: {last!r} is a point, and nothing "
                f"with parameters stands between it and {where}; give error_at={last!r}"
            )

    def _node(self, output: Tensor, head: Fused | None, where: str) -> Tensor:
        owner, feedback = self.owner, self.owner.feedback
        batch, width = self._error_shape(output, where)
        chain: list[Tensor] | None
        parameters: list[Tensor]
        if owner.planned is not None and not torch.compiler.is_compiling():
            chain = owner.planned.follow(self, head, batch, width)
            if chain is not None:
                known, parameters, _ = owner.planned
                plan = known._replace(error_rows=math.prod(batch))
                optimizer = owner.optimizer_of(parameters)
                if optimizer is not None:
                    return self._deferring(plan, output, optimizer, parameters, chain, [])
        for point in self.points:
            if point.output.device != output.device:
                raise _other_device(f"point {point.name!r}", point.output, output)
        if output.dim() == 1:
            self._check_flat()
        points = tuple([self._point_plan(p, batch) for p in self.points])
        widths = [math.prod(t.shape[_batch_dims(t, owner.batch_dims) :]) for t in self.idle]
        widths += [p.width for p in points]
        chain, parameters = [], []
        layers = []
        for fused in self.layers:
            k = _ratio(fused.name, fused.output.shape[:-1], batch)
            stream = owner.stream(fused.name)
            layers.append(self._layer_plan(fused, stream, k, output, chain, parameters))
            widths.append(fused.output.shape[-1])
        if head is not None:
            layers.append(self._layer_plan(head, HEAD, 1, output, chain, parameters))
        if feedback.values is not None:
            feedback.check_shape(width, max(widths, default=0), "the widest point")
        plan = Plan(
            feedback.distribution,
            feedback.seed,
            feedback.scale_for(max(widths) if widths else 1),
            math.prod(batch),
            width,
            points,
            tuple(layers),
            len(parameters),
            len(chain),
        )
        outputs = [p.output for p in self.points]
        optimizer = owner.optimizer_of(parameters)
        plain = not points and not self.idle and not self.repeats and feedback.values is None
        if optimizer is not None and plain and not torch.compiler.is_compiling():
            every = self.layers if head is None else [*self.layers, head]
            dtypes = [(fused.inputs.dtype, fused.saved.dtype) for fused in every]
            owner.planned = Planned(plan, parameters, dtypes)
        if optimizer is not None:
            optimizer.check_plan(plan)
            if not torch.compiler.is_compiling():
                return self._deferring(plan, output, optimizer, parameters, chain, outputs)
        return self._erring(plan, output, optimizer, parameters, chain, outputs)

    def _erring(
        self,
        plan: Plan,
        output: Tensor,
        optimizer: FusedUpdate | None,
        parameters: list[Tensor],
        chain: list[Tensor],
        points: list[Tensor],
    ) -> Tensor:
        rest: list[Tensor | None] = []
        if optimizer is not None:
            plan, rest = optimizer.plan(plan, parameters)
        matrix = self.owner.feedback_matrix
        return self._owned(
            ErrorNode.apply(plan, matrix, output, *points, *parameters, *chain, *rest)
        )

    def _deferring(
        self,
        plan: Plan,
        output: Tensor,
        optimizer: FusedUpdate,
        parameters: list[Tensor],
        chain: list[Tensor],
        points: list[Tensor],
    ) -> Tensor:
        optimizer.check_alone()
        receiver = optimizer.receiver
        return self._owned(
            defer(
                plan, self.owner.feedback_matrix, output, receiver.leaf, receiver, parameters,
                chain, *points,
            )
        )  # fmt: skip

    def _owned(self, made: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            node: Any = made.grad_fn
            node.owner = self.owner
        return made

    def _error_shape(self, output: Tensor, where: str) -> tuple[torch.Size, int]:
        """The batch dimensions of the error, and its width E."""
        if output.dim() == 0:
            raise ValueError(
                f"{where} is a scalar: does the model return its loss? Name the module whose "
                "output the loss is computed from with error_at=..."
            )
        batch = _batch_dims(output, self.owner.batch_dims)
        return output.shape[:batch], math.prod(output.shape[batch:])

    def _check_flat(self) -> None:
        """Beside an error of one dimension: is that rows or features?"""
        for point in self.points:
            if point.output.dim() == 1 and self.owner.batch_dims is None:
                raise ValueError(
                    f"point {point.name!r} and the error have one dimension, the point of "
                    f"{len(point.output)} elements: batch_dims=0 says that they are features of "
                    "one input, batch_dims=1 that each is a row"
                )

    def _point_plan(self, point: RecordedPoint, error_batch: torch.Size) -> PointPlan:
        shape = point.output.shape
        batch = _batch_dims(point.output, self.owner.batch_dims)
        k = _ratio(point.name, shape[:batch], error_batch)
        width = math.prod(shape[batch:])
        return PointPlan(point.name, width, self.owner.stream(point.name), k)

    def _layer_plan(
        self,
        fused: Fused,
        stream: int,
        k: int,
        output: Tensor,
        chain: list[Tensor],
        parameters: list[Tensor],
    ) -> LayerPlan:
        """Where the layer's tensors are among the node's: ``chain`` and ``parameters`` grow."""
        name, inputs, _, saved, activation, weight, bias, versions = fused
        if weight.device != output.device:
            raise _other_device(f"layer {name!r}", weight, output)
        # None: it ran compiled in a forward pass that is not, or the other way round.
        now = versions_of(inputs, saved, activation)
        if versions is not None and now is not None and versions != now:
            raise RuntimeError(
                f"layer {name!r}: its input or output was changed in place after it ran, but its "
                "update reads both: use the operation that returns a new tensor"
            )
        at = _index(chain, inputs)
        if stream == HEAD and activation == CODES["identity"]:
            kept = NOTHING
        elif saved is output:
            kept = OUTPUT
        else:  # no other layer has returned it before: nothing to look for
            kept = len(chain)
            chain.append(saved)
        w = self._parameter_index(parameters, weight)
        b = -1 if bias is None else self._parameter_index(parameters, bias)
        return LayerPlan(name, at, kept, activation, stream, k, w, b)

    def _parameter_index(self, parameters: list[Tensor], parameter: Tensor) -> int:
        if self.repeats:
            return _index(parameters, parameter)
        parameters.append(parameter)
        return len(parameters) - 1

    def finish(self) -> None:
        """After the forward pass: everything that was named must have been reached."""
        owner = self.owner
        if owner.error_name and not self.closed:
            raise RuntimeError(
                f"the forward pass never reached the error point {owner.error_name!r}"
            )
        if len(set(self.reached)) < len(owner.point_names) or owner.explicit:
            self._check_reached()

    def _check_reached(self) -> None:
        owner, reached = self.owner, set(self.reached)
        missed = [n for n in owner.point_names if n not in reached]
        if missed and (owner.explicit or not reached):
            raise RuntimeError(
                f"the forward pass never reached {len(missed)} of {len(owner.point_names)} "
                f"points: {', '.join(map(repr, missed))}"
            )
        if torch.compiler.is_compiling():
            return
        for name in missed:
            if owner.replaced(name):
                raise RuntimeError(
                    f"point {name!r} was replaced after DFA was constructed, and what stands there "
                    "now is no point: wrap the changed model again"
                )


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


def _ratio(name: str, batch: torch.Size, error_batch: torch.Size) -> int:
    """k, the rows of a point for each row of the error: in row-major order, or not at all."""
    if batch == error_batch or (0 in batch and 0 in error_batch):
        return 1
    rows, error_rows = math.prod(batch), math.prod(error_batch)
    if error_rows == 0 or rows % error_rows:
        raise ValueError(
            f"point {name!r} has {rows} rows, which the error's {error_rows} rows do not divide: "
            "batch_dims says which leading dimensions are rows"
        )
    leading = [i for i in range(1, len(batch) + 1) if math.prod(batch[:i]) == error_rows]
    flat = len(batch) == 1 or any(
        len(error_batch) == 1 or i == 1 or batch[:i] == error_batch for i in leading
    )
    if not flat:
        raise ValueError(
            f"point {name!r} has rows of shape {tuple(batch)}, which do not begin with the "
            f"error's {tuple(error_batch)}: put the batch dimension of both first"
        )
    return rows // error_rows


def check_real(tensor: Tensor, where: str) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{where} is {tensor.dtype}, but DFA needs a real floating dtype")


def _other_device(what: str, tensor: Tensor, output: Tensor) -> RuntimeError:
    return RuntimeError(f"{what} is on {tensor.device}, but the error point is on {output.device}")


def versions_of(inputs: Tensor, saved: Tensor, activation: int) -> tuple[int, int] | None:
    """How often x and, where f′ is read from it, h were written. torch.compile cannot say."""
    if torch.compiler.is_compiling():
        return None
    return inputs._version, saved._version if activation else 0


# Where a frame is compiled alone, which another's knows nothing of.
_UNKNOWN = "unknown"


def _checkpoint() -> object:
    """The innermost non-reentrant activation checkpoint under way, or None."""
    if torch.compiler.is_compiling():
        return _UNKNOWN
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    inside = hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
    return hooks[0] if inside else None
