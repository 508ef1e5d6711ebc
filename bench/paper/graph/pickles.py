"""Planetoid's pickles, read without running anything that they name.

Python 2 wrote them. They hold a numpy array, a scipy matrix of sparse rows, or a dictionary of
lists; each of the six names in them stands for one of the plain holders below, and any other name
is refused. What was held is checked and only then given to numpy or scipy.
"""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from scipy.sparse import csr_matrix

from dfa_kernels.training import InputError


def array(path: Path) -> np.ndarray:
    """Two-dimensional.

    Raises:
        InputError: as for `rows` and `lists`: the file is missing, truncated, names what it must
            not, or holds something else.
    """
    held = _load(path)
    if not isinstance(held, _Array):
        raise InputError(f"{path} holds no numpy array but a {_name(held)}")
    made = held.build(path)
    if made.ndim != 2:
        raise InputError(f"{path} holds an array of {made.ndim} dimensions, not 2")
    return made


def rows(path: Path) -> csr_matrix:
    """Sparse rows of finite numbers."""
    held = _load(path)
    if not isinstance(held, _Rows):
        raise InputError(f"{path} holds no scipy csr_matrix but a {_name(held)}")
    return held.build(path)


def lists(path: Path) -> dict[int, list[int]]:
    """A dictionary from numbers to lists of numbers."""
    held = _load(path)
    if not isinstance(held, dict):
        raise InputError(f"{path} holds no dictionary but a {_name(held)}")
    for key, values in held.items():
        if type(key) is not int or type(values) is not list:
            raise InputError(f"{path}: entry {key!r} is no list of numbers under a number")
        for value in values:
            if type(value) is not int:
                raise InputError(f"{path}: the list of {key} holds {value!r}, which is no number")
    return held


# The holders ------------------------------------------------------------------------------------


class _Dtype:
    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def build(self, path: Path) -> np.dtype:
        if self.code not in ("i4", "i8", "f4", "f8") or self.order not in ("<", ">"):
            raise InputError(f"{path} holds numbers of type {self.order!r}{self.code!r}")
        return np.dtype(self.order + self.code)


class _Array:
    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.by_columns, self.data = state

    def build(self, path: Path) -> np.ndarray:
        try:
            shape = tuple(int(size) for size in self.shape)
            data = self.data.encode("latin1")  # a string of Python 2 is bytes
            dtype = self.dtype.build(path)
        except (AttributeError, TypeError, ValueError) as wrong:
            if isinstance(wrong, InputError):
                raise
            raise InputError(f"{path} holds an incomplete numpy array: {wrong}") from None
        wanted = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or len(data) != wanted:
            raise InputError(f"{path}: an array of shape {shape} has {len(data)} bytes")
        order = "F" if self.by_columns else "C"
        return np.frombuffer(data, dtype).reshape(shape, order=order)


class _Rows:
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state

    def build(self, path: Path) -> csr_matrix:
        try:
            parts = [self.state[name].build(path) for name in ("data", "indices", "indptr")]
            made = csr_matrix(tuple(parts), shape=self.state["_shape"])
            made.check_format(full_check=True)  # indices in range, pointers in order
        except InputError:
            raise
        except Exception as wrong:
            raise InputError(f"{path} holds a broken csr_matrix: {_line(wrong)}") from None
        finite = np.isfinite(made.data)
        if not finite.all():
            row = int(np.searchsorted(made.indptr, int(finite.argmin()), side="right")) - 1
            raise InputError(f"{path}: row {row} holds a number that is not finite")
        return made


def _reconstruct(*_: Any) -> _Array:
    return _Array()


_ADMITTED: dict[tuple[str, str], Any] = {
    ("scipy.sparse.csr", "csr_matrix"): _Rows,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "list"): list,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _Forbidden(f"names {module}.{name}, which no Planetoid file does")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Forbidden(f"refers to an object {pid!r} outside it")


class _Forbidden(Exception):  # noqa: N818  (it becomes an InputError)
    pass


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1", fix_imports=False).load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as failed:
        raise InputError(f"{path} cannot be read: {failed.strerror}") from None
    except _Forbidden as forbidden:
        raise InputError(f"{path} {forbidden}: it is not read") from None
    except EOFError:
        raise InputError(f"{path} is truncated: it ends before its pickle does") from None
    except Exception as broken:  # a damaged pickle may raise anything
        why = _line(broken)
        if "truncated" in why or "exhausted" in why:
            raise InputError(f"{path} is truncated: it ends before its pickle does") from None
        raise InputError(f"{path} is no pickle of Planetoid's: {why}") from None


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _name(held: Any) -> str:
    names = {_Array: "numpy array", _Rows: "csr_matrix"}
    return names.get(type(held), type(held).__name__)
