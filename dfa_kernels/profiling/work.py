"""What a step must do at the least: flops and bytes of every part and layer, counted as it runs.

Below the error point they come from the mathematics, whatever the backend: B is made in registers
and δ is written once. Elsewhere a `Counter` watches a step's operations: products by torch's own
formulas, and bytes as if all that a layer does were one kernel, which reads each tensor from
outside once and writes once what outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dfa_kernels.backends.contract import HEAD, Layer, LayerUpdate, Segment, Update
from dfa_kernels.feedback import Feedback
from dfa_kernels.profiling.ranges import Names, Range, watched
from dfa_kernels.profiling.subject import Subject
from dfa_kernels.profiling.trace import Unit


class Work(NamedTuple):
    """Floating-point operations of the products, by the dtype that they multiply; bytes moved."""

    flops: dict[str, int]
    bytes: int

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        flops = dict(self.flops)
        for dtype, count in other.flops.items():
            flops[dtype] = flops.get(dtype, 0) + count
        return Work(flops, self.bytes + other.bytes)

    @property
    def total(self) -> int:
        return sum(self.flops.values())


NONE = Work({}, 0)


def count(subject: Subject) -> dict[Unit, Work]:
    """The work of one step by unit. It makes that step."""
    counter = Counter()
    with watched(subject, counter.open, counter.called), counter:
        subject.step()
        counter.close()
    return counter.works


class Counter(TorchDispatchMode):
    """Counts every operation towards the range that is open, as `ranges.watched` opens them."""

    def __init__(self) -> None:
        super().__init__()
        self.works: dict[Unit, Work] = {}
        self._open: list[Range] = []
        self._made: list[tuple[int, Range]] = []  # from which sequence number on, in which range
        self._kernel = _Kernel(("", ""))
        self._counted = False

    # Ranges -----------------------------------------------------------------------------------

    @contextmanager
    def open(self, name: str) -> Iterator[None]:
        range_ = Range.read(name)
        assert range_ is not None, name
        self._open.append(range_)
        self._mark()
        try:
            yield
        finally:
            self.close()  # while what it returns is still held
            self._open.pop()
            self._mark()

    def _mark(self) -> None:
        if torch._C._current_autograd_node() is None and self._open:
            self._made.append((torch._C._autograd._get_sequence_nr(), self._open[-1]))

    def close(self) -> None:
        """What follows is another kernel."""
        unit, work = self._kernel.unit, self._kernel.work()
        if work != NONE:
            self.works[unit] = self.works.get(unit, NONE) + work
        self._kernel = _Kernel(unit)

    def _unit(self) -> Unit:
        range_ = self._open[-1]
        if range_.part != "backward":
            return range_.part, range_.layer
        node = torch._C._current_autograd_node()
        if node is not None:
            for first, made in reversed(self._made):
                if first <= node._sequence_nr():
                    return ("error", "") if made.part == "error" else ("backward", made.layer)
        return "backward", ""

    # Operations -------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._counted or not self._open or _moves_nothing(func):
            return out
        unit = self._unit()
        if unit != self._kernel.unit:
            self.close()
            self._kernel = _Kernel(unit)
        self._kernel.ran(func, args, kwargs, out)
        return out

    # The backend's functions --------------------------------------------------------------------

    @contextmanager
    def called(self, name: str, given: tuple[Any, ...], names: Names) -> Iterator[None]:
        """A call of the backend: counted from its arguments."""
        before, self._counted = self._counted, True
        try:
            if not before:
                for unit, work in _BY_NAME[name](names, *given):
                    self.works[unit] = self.works.get(unit, NONE) + work
            yield
        finally:
            self._counted = before


# Any operation ----------------------------------------------------------------------------------


def _moves_nothing(func: Any) -> bool:
    """Views, and memory that nobody has written to."""
    name = func._schema.name.removeprefix("aten::")
    if name.startswith(("empty", "new_empty", "_unsafe_view", "_local_scalar", "set_", "is_")):
        return True
    returns = func._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


#: Operations that write over their first argument without reading it.
_OVERWRITES = ("copy_", "fill_", "zero_", "normal_", "uniform_")


class _Kernel:
    """The operations of a unit on end, as if they were one kernel."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._flops: dict[str, int] = {}
        self._read: dict[int, _Storage] = {}
        self._written: dict[int, _Storage] = {}

    def ran(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        returned = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            dtype = str(given[0].dtype).removeprefix("torch.")
            flops = int(formula(*args, **kwargs, out_val=out))
            self._flops[dtype] = self._flops.get(dtype, 0) + flops
        overwrites = func._schema.name.removeprefix("aten::") in _OVERWRITES
        for t in given[1:] if overwrites else given:
            storage = _Storage.of(t)
            if storage is not None and storage.key not in self._written:
                self._read.setdefault(storage.key, storage).touch(t)
        changed = [
            t
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for t in tree_leaves(value)
            if isinstance(t, Tensor)
        ]
        for t in (*changed, *returned):
            storage = _Storage.of(t)
            if storage is not None:
                self._written.setdefault(storage.key, storage).touch(t)

    def work(self) -> Work:
        """What has been written and is gone by now never had to leave the kernel."""
        read = sum(s.bytes for s in self._read.values())
        written = sum(s.bytes for s in self._written.values() if not s.gone)
        return Work(self._flops, read + written)


class _Storage:
    """Memory that an operation touched, and how much of it."""

    def __init__(self, key: int, size: int, held: StorageWeakRef) -> None:
        self.key, self._size, self._held = key, size, held
        self._views: dict[tuple, int] = {}

    @classmethod
    def of(cls, tensor: Tensor) -> _Storage | None:
        """None of what has no memory: wrappers such as pending gradients, and sparse tensors."""
        try:
            storage = tensor.untyped_storage()
            held = StorageWeakRef(storage)
        except (RuntimeError, NotImplementedError):
            return None
        return cls(storage._cdata, storage.nbytes(), held)

    def touch(self, tensor: Tensor) -> None:
        elements = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            elements *= size if stride else min(size, 1)
        key = (tensor.storage_offset(), tensor.shape, tensor.stride())
        if len(self._views) and tuple(reversed(key[1])) in {k[1] for k in self._views}:
            return  # the same, transposed
        self._views[key] = elements * tensor.itemsize

    @property
    def bytes(self) -> int:
        return min(self._size, sum(self._views.values()))

    @property
    def gone(self) -> bool:
        return self._held.expired()


# The three functions of a backend ---------------------------------------------------------------

Counted = Iterator[tuple[Unit, Work]]


def _bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.itemsize for t in tensors if t is not None)


def _product(error: Tensor, feedback: Feedback, widths: dict[int, int], dtype: torch.dtype) -> Work:
    """e·B for every stream, as wide as its widest reader; a B that was given is read."""
    rows, width = error.shape
    columns = sum(widths.values())
    given = 0 if feedback.values is None else width * max(widths.values()) * dtype.itemsize
    flops = {str(dtype).removeprefix("torch."): 2 * rows * width * columns} if columns else {}
    return Work(flops, _bytes(error) + given)


def _project(
    names: Names, error: Tensor, feedback: Feedback, scale: float, points: Sequence[Any]
) -> Counted:
    widths: dict[int, int] = {}
    for p in points:
        widths[p.stream] = max(p.width, widths.get(p.stream, 0))
    written = sum(error.shape[0] * p.rows * p.width * p.dtype.itemsize for p in points)
    if points:
        work = _product(error, feedback, widths, error.dtype)
        yield ("projection", ""), Work(work.flops, work.bytes + written)


def _deltas(feedback: Feedback, segments: Sequence[Segment]) -> Counted:
    """δ = (e·B·scale) ⊙ f′ of the layers below the error point: reads h, writes δ."""
    errors: dict[int, tuple[Tensor, dict[int, int], list[Tensor]]] = {}
    for error, _, layer in segments:
        if layer.stream != HEAD:
            _, widths, saved = errors.setdefault(id(error), (error, {}, []))
            widths[layer.stream] = max(layer.saved.shape[1], widths.get(layer.stream, 0))
            saved.append(layer.saved)
    for error, widths, saved in errors.values():
        work = _product(error, feedback, widths, saved[0].dtype)
        yield ("projection", ""), Work(work.flops, work.bytes + 2 * _bytes(*saved))


def _weight(segment: Segment, elements: int) -> Work:
    """δᵀ·x: reads both."""
    layer = segment.layer
    rows = layer.inputs.shape[0]
    delta = rows * layer.saved.shape[1] * layer.saved.itemsize
    dtype = str(layer.saved.dtype).removeprefix("torch.")
    return Work({dtype: 2 * rows * elements}, _bytes(layer.inputs) + delta)


def _gradients(
    names: Names, error: Tensor, feedback: Feedback, scale: float,
    layers: Sequence[Layer], dtype: torch.dtype,
) -> Counted:  # fmt: skip
    segments = [Segment(error, scale, layer) for layer in layers]
    yield from _deltas(feedback, segments)
    for segment in segments:
        height, width = segment.layer.saved.shape[1], segment.layer.inputs.shape[1]
        work = _weight(segment, height * width)
        made = height * (width + 1) * dtype.itemsize
        yield ("update", names.of(segment.layer)), Work(work.flops, work.bytes + made)


def _step(names: Names, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]) -> Counted:
    yield from _deltas(feedback, [s for u in updates for s in u.segments])
    for weight, bias, segments in updates:
        work = Work({}, _stepped(weight) + (0 if bias is None else _stepped(bias)))
        for segment in segments:
            work += _weight(segment, weight.parameter.numel())
        yield ("update", names.of(segments[0].layer)), work


def _stepped(given: Update) -> int:
    """The parameter and each of its states are read and written; its copy is written."""
    return 2 * _bytes(given.parameter, *given.states) + _bytes(given.copy)


_BY_NAME: dict[str, Callable[..., Counted]] = {
    "project": _project,
    "gradients": _gradients,
    "step_": _step,
}
