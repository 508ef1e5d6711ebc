"""The registry: which backend runs the three operations, and why.

An automatic choice takes the first of `PREFERENCE` that can run on the tensors' device and takes
their dtype; a backend named by `use`, or by the environment variable DFA_KERNELS_BACKEND, must run
there or raises. "triton+cuda" is both: CUDA's kernels for calls of little work,
Triton's for the others (see `by_work`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dfa_kernels.backends.by_work import ByWork
from dfa_kernels.backends.contract import Backend
from dfa_kernels.backends.cuda import CUDA
from dfa_kernels.backends.reference import Reference
from dfa_kernels.backends.triton import Triton
from dfa_kernels.backends.variable import Variable

#: Tried in this order where nobody named a backend.
PREFERENCE = ("triton+cuda", "triton", "cuda", "reference")

VARIABLE = "DFA_KERNELS_BACKEND"
_variable = Variable(VARIABLE)

_triton, _cuda, _reference = Triton(), CUDA(), Reference()
_registered: dict[str, Backend] = {
    "triton": _triton,
    "cuda": _cuda,
    "triton+cuda": ByWork(light=("cuda", _cuda), heavy=("triton", _triton)),
    "reference": _reference,
}
_named: str | None = None
# What `function` found, by all that it was chosen from: a step asks again and again.
_found: dict[tuple, Callable] = {}


def register(name: str, backend: Backend) -> None:
    """Offer ``backend`` under ``name``, for `use` and DFA_KERNELS_BACKEND.

    Raises:
        ValueError: the name is taken.
        TypeError: it lacks ``project``, ``unavailable`` or ``describe``.
    """
    if name in _registered:
        raise ValueError(f"a backend named {name!r} is registered already")
    if not isinstance(backend, Backend):
        raise TypeError(
            f"backend {name!r} ({type(backend).__name__}) must offer project(), unavailable() "
            "and describe(): see dfa_kernels.backends.contract.Backend"
        )
    _registered[name] = backend
    _found.clear()


def unregister(name: str) -> None:
    """Withdraw a backend that `register` offered.

    Raises:
        ValueError: unknown, or the reference.
    """
    global _named
    if name == "reference":
        raise ValueError("the reference backend cannot be unregistered: the others fall back to it")
    _lookup(name)
    del _registered[name]
    _found.clear()
    if _named == name:
        _named = None


def available(device: torch.device | str | None = None) -> dict[str, str | None]:
    """Every registered backend, with the reason why it cannot run on ``device``, or None.

    ``device`` None: "cuda" where torch finds a GPU, else "cpu".

    Raises:
        RuntimeError: torch's own, of a device that it does not know.
    """
    device = torch.device(device or _default_device())
    return {name: backend.unavailable(device) for name, backend in _registered.items()}


def get(name: str) -> Backend:
    """The backend registered under ``name``.

    Raises:
        ValueError: nothing is.
    """
    return _lookup(name)


class use:  # noqa: N801 (called like a function)
    """Run every operation on the named backend from now on, or inside a ``with`` block.

    ``None`` goes back to the automatic choice.

    Raises:
        ValueError: an unknown name.
        RuntimeError: at the operation, where the backend cannot run on its device.
    """

    def __init__(self, name: str | None) -> None:
        global _named
        if name is not None:
            _lookup(name)
        self._before, _named = _named, name

    def __enter__(self) -> use:
        return self

    def __exit__(self, *_: object) -> None:
        global _named
        _named = self._before


def chosen(device: torch.device, dtype: torch.dtype | None = None) -> tuple[str, str]:
    """The backend for tensors of ``dtype`` on ``device``, and why it was chosen. An automatic
    choice passes over what does not take ``dtype``; None: it is not asked.

    Raises:
        ValueError: an unknown name in DFA_KERNELS_BACKEND.
        RuntimeError: a named backend cannot run there.
    """
    named, by = _named, "dfa_kernels.backends.use"
    if named is None:
        named, by = _variable.get() or None, VARIABLE
    if named is not None:
        reason = _lookup(named).unavailable(device)
        if reason is not None:
            raise RuntimeError(
                f"backend {named!r}, named by {by}, cannot run on {device}: {reason}"
            )
        return named, f"named by {by}"
    refused: list[str] = []
    for name in PREFERENCE:
        backend = _registered[name]
        reason = backend.unavailable(device)
        takes = getattr(backend, "dtypes", None)
        if reason is None and dtype is not None and takes is not None and dtype not in takes:
            reason = f"it does not take {str(dtype).removeprefix('torch.')}"
        if reason is None:
            return name, "; ".join(["chosen automatically", *refused])
        refused.append(f"{name}: {reason}")
    raise AssertionError("the reference runs everywhere")


def function(name: str, device: torch.device, dtype: torch.dtype | None = None) -> Callable:
    """The chosen backend's ``name``, or the reference's where it has none. Whether a backend can
    run is asked once for a device and dtype, not at every step."""
    key = name, device, dtype, _named, _variable.held()
    run = _found.get(key)
    if run is None:
        backend = _registered[chosen(device, dtype)[0]]
        run = getattr(backend, name, None) or getattr(_reference, name)
        _found[key] = run
    return run


def repeated(step: Callable) -> Callable | None:
    """What the backend whose ``step_`` this is offers for steps that repeat each other: see
    `contract.Backend`. None where it offers nothing, or ``step`` is somebody's who watches it."""
    return getattr(getattr(step, "__self__", None), "repeated", None)


def _lookup(name: str) -> Backend:
    if name not in _registered:
        known = ", ".join(_registered)
        raise ValueError(f"unknown backend {name!r}: registered are {known}")
    return _registered[name]


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
