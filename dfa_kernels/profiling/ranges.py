"""Names on what a step runs, put there from outside, and only while it is watched.

A range is ``dfa/PART``, ``dfa/PART/LAYER`` or, around one kernel of a grouped backend,
``dfa/PART#KERNEL``. `watched` wraps the step's parts, the modules' forward passes, the functions of
the chosen backend and what the reference and the launchers call inside, and puts everything back:
a step that nobody watches meets no line of this file. Forward hooks would not do: `Chain` leaves
its short way where it sees one.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import record_function

from dfa_kernels import autocast, autograd, backends, chain, in_backward, pending
from dfa_kernels.backends import reference, steps
from dfa_kernels.module import DFA
from dfa_kernels.profiling.subject import Subject

PREFIX = "dfa/"
STEP = "step"

#: What opens a range: a context manager of its name.
Open = Callable[[str], AbstractContextManager[Any]]

#: What a watcher may want of a call of the backend: its name, its arguments, and layers' names.
Called = Callable[[str, tuple[Any, ...], "Names"], AbstractContextManager[Any]]


class Range(NamedTuple):
    """A range's name, read back."""

    part: str
    layer: str = ""
    kernel: str = ""

    @classmethod
    def read(cls, name: str) -> Range | None:
        """None where it is nobody's of ours."""
        match = re.fullmatch(r"dfa/(\w+)(?:/([^#]*))?(?:#(.*))?", name)
        return None if match is None else cls(match[1], match[2] or "", match[3] or "")

    def __str__(self) -> str:
        layer = f"/{self.layer}" if self.layer else ""
        return f"{PREFIX}{self.part}{layer}" + (f"#{self.kernel}" if self.kernel else "")


@contextmanager
def recorded(name: str) -> Iterator[None]:
    """For torch.profiler's events and, on a GPU, for NVTX."""
    with ExitStack() as stack:
        stack.enter_context(record_function(name))
        if torch.cuda.is_available():
            stack.enter_context(torch.cuda.nvtx.range(name))
        yield


@contextmanager
def watched(
    subject: Subject, open_: Open = recorded, called: Called | None = None
) -> Iterator[None]:
    """Inside, every part, layer and kernel of ``subject``'s step opens its range."""
    names = Names(subject.model())
    layers = _ChainLayers(names, open_)
    with ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(_replaced(owner, name, value))

        for attribute, part in (
            ("clear", "optimizer"), ("forward", "forward"), ("error", "error"),
            ("backward", "backward"), ("apply", "optimizer"), ("step", STEP),
        ):  # fmt: skip
            run = getattr(subject, attribute)
            if attribute == "forward":
                run = layers.closing(run)
            put(subject, attribute, _inside(run, str(Range(part)), open_))
        for name, module in _modules(subject.model()):
            put(module, "forward", _inside(module.forward, str(Range("forward", name)), open_))
        if isinstance(subject.net, DFA) and subject.net._chain is not None:
            put(subject.net._chain, "_own", [])  # these ranges are no forward pass of a user's
        put(chain, "F", layers)
        put(chain, "lowered", layers.lowered)
        put(autograd, "_records", names.of_records(autograd._records))
        for receiver in (pending.Ledger, in_backward.Applied):
            put(receiver, "add", names.of_receiver(receiver.add))
        put(backends, "function", _functions(backends.function, names, open_, called))
        _reference(put, names, open_)
        _launchers(put, open_)
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


_ABSENT = object()


def _inside(run: Callable, name: str, open_: Open) -> Callable:
    @functools.wraps(run)
    def named(*args: Any, **kwargs: Any) -> Any:
        with open_(name):
            return run(*args, **kwargs)

    return named


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module inside whose forward pass may be wrapped: none that is compiled."""
    for name, module in model.named_modules():
        if name and "_orig_mod" not in name and not isinstance(module, torch.jit.ScriptModule):
            yield name, module


class Names:
    """Which layer a parameter, or a fused layer's record, belongs to."""

    def __init__(self, model: nn.Module) -> None:
        self._of_parameter = {
            id(p): name for name, m in model.named_modules() for p in m.parameters(recurse=False)
        }
        self._of_record: dict[int, tuple[str, Any]] = {}  # the record too: its id is its own then

    def of_parameter(self, parameter: Any) -> str:
        return self._of_parameter.get(id(parameter), "")

    def of(self, record: Any) -> str:
        name, known = self._of_record.get(id(record), ("", None))
        return name if known is record else ""

    def _remember(self, name: str, record: Any) -> None:
        self._of_record[id(record)] = (name, record)

    def of_records(self, run: Callable) -> Callable:
        @functools.wraps(run)
        def records(plan: Any, *args: Any) -> Any:
            made = run(plan, *args)
            self._of_record.clear()
            for layer, record in zip(plan.layers, made, strict=True):
                self._remember(layer.name, record)
            return made

        return records

    def of_receiver(self, run: Callable) -> Callable:
        @functools.wraps(run)
        def add(receiver: Any, record: Any, expected: Any) -> None:
            if not getattr(receiver, "records", None):  # else others are there still
                self._of_record.clear()
            for layer in record.layers:
                self._remember(layer.name, layer.segment.layer)
            run(receiver, record, expected)

        return add


class _ChainLayers:
    """torch.nn.functional for `chain`, whose layers are no module calls: each begins with its
    product, and ends where the next begins."""

    def __init__(self, names: Names, open_: Open) -> None:
        self._names, self._open = names, open_
        self._cast: list[tuple[Any, str]] = []
        self._under_way: AbstractContextManager[Any] | None = None

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        self.close()
        cast = [name for low, name in self._cast if low is weight]
        name = cast[0] if cast else self._names.of_parameter(weight)
        self._under_way = self._open(str(Range("forward", name)))
        self._under_way.__enter__()
        return F.linear(x, weight, bias)

    def lowered(self, parameters: Any, dtype: Any) -> Any:
        made = autocast.lowered(parameters, dtype)
        of_parameter = self._names.of_parameter
        self._cast = [(low, of_parameter(p)) for low, p in zip(made, parameters, strict=True)]
        return made

    def close(self) -> None:
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.__exit__(None, None, None)

    def closing(self, run: Callable) -> Callable:
        @functools.wraps(run)
        def forward(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            finally:
                self.close()
                self._cast.clear()

        return forward


#: The part that each function of a backend is, but for what opens a range of its own inside.
_PART = {"project": "projection", "gradients": "update", "step_": "update"}


def _functions(find: Callable, names: Names, open_: Open, called: Called | None) -> Callable:
    @functools.wraps(find)
    def function(name: str, *args: Any) -> Callable:
        run = find(name, *args)

        @functools.wraps(run)
        def named(*given: Any) -> Any:
            with ExitStack() as stack:
                stack.enter_context(open_(str(Range(_PART[name]))))
                if called is not None:
                    stack.enter_context(called(name, given, names))
                return run(*given)

        return named

    return function


def _reference(put: Callable[[Any, str, Any], None], names: Names, open_: Open) -> None:
    """The reference's δ, and its update of each layer."""
    delta, product, add = reference._delta, steps.product, steps.Step.add
    layer = ""

    def named_delta(segment: Any, projections: Any) -> Any:
        nonlocal layer
        layer = names.of(segment.layer)
        with open_(str(Range("projection", layer))):
            return delta(segment, projections)

    def named_product(*args: Any) -> Any:
        with open_(str(Range("update", layer))):
            return product(*args)

    def named_add(*args: Any) -> None:  # just after its own δ
        with open_(str(Range("update", layer))):
            add(*args)

    put(reference, "_delta", named_delta)
    put(steps, "product", named_product)
    put(steps.Step, "add", named_add)


def _launchers(put: Callable[[Any, str, Any], None], open_: Open) -> None:
    """Each launch of a grouped backend that is in use: `project` and `update` are the whole
    network's, so no layer is named."""
    for backend in ("cuda", "triton"):
        module = sys.modules.get(f"dfa_kernels.backends.{backend}.launch")
        if module is None:
            continue
        run = module.Launcher.run

        def one_by_one(launcher: Any, launches: Any, device: Any, run: Callable = run) -> None:
            for launch in launches:
                kernel = _kernel(launch.kernel)
                part = "projection" if "project" in kernel else "update"
                with open_(str(Range(part, kernel=kernel))):
                    run(launcher, [launch], device)

        put(module.Launcher, "run", one_by_one)


def _kernel(kernel: Any) -> str:
    if isinstance(kernel, str):
        return kernel
    return getattr(getattr(kernel, "fn", kernel), "__name__", type(kernel).__name__)
