"""The compiled extension `_core`: what its build left on record, and the module itself.

`setup.py` writes `_build.json` beside it, whether it was built or why not. A module without a
record that says it was built, or of another version of the package, is not imported.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from dfa_kernels.version import __version__

RECORD = Path(__file__).with_name("_build.json")


class Record(NamedTuple):
    """Of a build: ``architectures`` as 80, 90, …, the last of them as ``ptx`` too; ``reason``: why
    there is no extension, None where there is one."""

    version: str
    nvcc: str | None
    architectures: tuple[int, ...]
    ptx: int | None
    reason: str | None


@functools.cache
def record() -> Record | None:
    """What the build left, or None."""
    try:
        found = json.loads(RECORD.read_text())
        return Record(**found | {"architectures": tuple(found["architectures"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as bad:
        return Record(__version__, None, (), None, f"its record {RECORD.name} is unreadable: {bad}")


@functools.cache
def missing() -> str | None:
    """Why there is no extension to run, in one sentence; None where there is one."""
    built = record()
    if built is None:
        return "its extension is not built: this package was not installed by pip"
    if built.reason is not None:
        return f"its extension is not built: {built.reason}"
    if built.version != __version__:
        return (
            f"its extension was built for dfa_kernels {built.version}, and this is {__version__}: "
            "install again"
        )
    try:
        _module()
    except ImportError as failed:
        return f"its extension cannot be loaded: {failed}"
    return None


def load() -> Any:
    """The module.

    Raises:
        RuntimeError: there is none.
    """
    reason = missing()
    if reason is not None:
        raise RuntimeError(f"the CUDA backend cannot run: {reason}")
    return _module()


@functools.cache
def _module() -> Any:
    core = importlib.import_module("dfa_kernels.backends.cuda._core")
    if core.version != __version__:
        raise ImportError(f"it is of dfa_kernels {core.version}, and this is {__version__}")
    return core


def unsuited(capability: tuple[int, int], device: str) -> str | None:
    """Why a device of this compute capability cannot run what was built; None where it can.

    Machine code runs on its own generation from its own minor version on, PTX on whatever is newer.
    """
    has = 10 * capability[0] + capability[1]
    if has < 80:
        return f"it needs compute capability 8.0, and {device} has {_dotted(has)}"
    built = record()
    assert built is not None
    if _has_machine_code(built, capability) or (built.ptx is not None and built.ptx <= has):
        return None
    return (
        f"it was built for compute capability {_listed(built)}, and {device} has {_dotted(has)}: "
        f"install with DFA_KERNELS_CUDA_ARCHS={has}"
    )


def outdated(capability: tuple[int, int]) -> str | None:
    """Why the driver cannot run what was built for a device of this compute capability; None where
    it can. A driver runs machine code of every CUDA of its major version, PTX of none newer than
    itself, and from 12.1 on kernels of as many parameters as these."""
    core, built = load(), record()
    assert built is not None
    driver, runtime = core.driver(), core.runtime
    needed = max(_WIDE_PARAMETERS, runtime // 1000 * 1000)
    if not _has_machine_code(built, capability):
        needed = max(needed, runtime)
    if driver >= needed:
        return None
    found = f"this one is of {_release(driver)}" if driver else "there is none"
    return (
        f"it was built by CUDA {_release(runtime)} and needs a driver of CUDA {_release(needed)}, "
        f"and {found}: update the driver, or install with an older nvcc"
    )


#: The first CUDA whose kernels take more than 4096 bytes of parameters.
_WIDE_PARAMETERS = 12010


def _release(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _has_machine_code(built: Record, capability: tuple[int, int]) -> bool:
    has = 10 * capability[0] + capability[1]
    return any(a // 10 == capability[0] and a <= has for a in built.architectures)


def describe() -> str:
    """What was built, for ``dfa-kernels info``."""
    built = record()
    return "" if built is None else f"built by nvcc {built.nvcc} for {_listed(built)}"


def _listed(built: Record) -> str:
    shown = ", ".join(map(_dotted, built.architectures))
    return shown if built.ptx is None else f"{shown} and newer than {_dotted(built.ptx)}"


def _dotted(architecture: int) -> str:
    return f"{architecture // 10}.{architecture % 10}"
