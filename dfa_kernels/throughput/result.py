"""The file that `dfa-kernels bench` writes: what was measured, in JSON, and how it is read back.

A file is one `Result`; every nested object is one of the classes here, field by field. Times are
milliseconds, memory is bytes, rates say their unit. What could not be had is null: a figure of a
row that died, a ceiling of a dtype that the device does not multiply, memory where the system
does not tell. Every number that is there is finite.
"""

from __future__ import annotations

import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dfa_kernels.training import InputError

FORMAT = 1

#: What the others of a shape and dtype are divided by.
BASELINE = "bp-compiled"
#: Backpropagation uncompiled.
EAGER = "bp-eager"

FASTER, SLOWER, UNDECIDED = "faster", "slower", "undecided"
VERDICTS = (FASTER, SLOWER, UNDECIDED)

#: What `Row.method` and `Curve.method` say of a contestant.
METHODS = ("bp", "dfa")

#: What `Curve.axis` varies, by its place in a shape.
AXES = ("batch", "depth", "width", "outputs")


@dataclass(frozen=True)
class Ceilings:
    """What the device reached in the same run, each the best of several rounds.

    ``gbps``: of a copy far larger than the caches, bytes read and written; ``tflops``: of a large
    matrix product, by dtype; ``launch_us``: the host's time for the smallest operation.
    """

    gbps: float | None = None
    tflops: dict[str, float] = field(default_factory=dict)
    launch_us: float | None = None


@dataclass(frozen=True)
class Row:
    """One contestant's training step at one shape in one dtype.

    ``shape``: batch, hidden layers, width, outputs. ``dtype``: a name of torch's, such as
    "float32". ``method``: of `METHODS`. ``ms`` and ``quartiles``: median, lower and upper quartile
    of the rounds in ``samples_ms``; a round is a turn of every contestant, so the n-th samples of
    two rows of a shape and dtype belong together. ``processes``: how many of them each process
    measured that timed the row, in their order; empty where that is not known. ``ratio`` and
    ``ratio_quartiles``: of this time by that of `BASELINE` in the same round: less than 1 is
    faster. ``verdict``: of `VERDICTS`, undecided where the quartiles straddle 1; null for the
    baseline itself and what died.
    ``flops`` and ``bytes``: what the step must do and move at the least, counted from the
    mathematics, and ``tflops`` and ``gbps`` with them; ``launches``: operations that PyTorch hands
    to the device in a step. The percentages are of `Ceilings`, the last that of the time which
    launching so many takes.
    ``peak_memory_bytes``: of what the step has in use, weights and optimizer state among it.
    ``feedback_bytes``: held for B. ``error``: a sentence where it died, else null; what was
    measured before stays.
    """

    contestant: str
    method: str
    shape: tuple[int, int, int, int]
    dtype: str
    device: str
    ms: float | None = None
    quartiles: tuple[float, float] | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    verdict: str | None = None
    samples_per_s: float | None = None
    flops: int | None = None
    bytes: int | None = None
    launches: int | None = None
    tflops: float | None = None
    gbps: float | None = None
    percent_of_matrix_rate: float | None = None
    percent_of_bandwidth: float | None = None
    percent_of_launches: float | None = None
    peak_memory_bytes: int | None = None
    feedback_bytes: int | None = None
    rounds: int = 0
    samples_ms: tuple[float, ...] = ()
    processes: tuple[int, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Point:
    """A place on a `Curve`: the axis's value, and time and memory there."""

    value: int
    ms: float | None
    quartiles: tuple[float, float] | None
    peak_memory_bytes: int | None
    error: str | None = None


@dataclass(frozen=True)
class Curve:
    """A contestant's step along one of `AXES`, everything else being that of ``shape``.

    ``ms_exponent`` and ``memory_exponent``: p of the least-squares fit c·valueᵖ to the points'
    logarithms, null with fewer than three; each with its standard error.
    """

    contestant: str
    method: str
    axis: str
    shape: tuple[int, int, int, int]
    dtype: str
    device: str
    points: tuple[Point, ...]
    ms_exponent: tuple[float, float] | None = None
    memory_exponent: tuple[float, float] | None = None


@dataclass(frozen=True)
class Crossover:
    """Where DFA starts to pay along an axis: from ``value`` on ``dfa`` takes less time than ``bp``
    (``until`` true: up to there), or null where one of them is the faster everywhere that was
    looked. ``sentence`` says it in words."""

    axis: str
    dfa: str
    bp: str
    shape: tuple[int, int, int, int]
    dtype: str
    device: str
    value: float | None
    until: bool
    sentence: str


@dataclass(frozen=True)
class Prediction:
    """The cost model's time for a step, and the measured one where there is one.

    ``fitted``: the shape was among those that the model's constants come from.
    """

    contestant: str
    method: str
    shape: tuple[int, int, int, int]
    dtype: str
    device: str
    predicted_ms: float
    measured_ms: float | None = None
    fitted: bool = False


@dataclass(frozen=True)
class Result:
    """A whole run. ``environment``: the machine and the software by name, nothing that names the
    machine itself. ``notes``: sentences for a reader, such as why a contestant is missing."""

    environment: dict[str, str | int | float]
    ceilings: Ceilings = field(default_factory=Ceilings)
    rows: tuple[Row, ...] = ()
    scaling: tuple[Curve, ...] = ()
    crossovers: tuple[Crossover, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    notes: tuple[str, ...] = ()


def write(path: Path, result: Result) -> None:
    """Write beside ``path``, then move there: an interruption leaves the old file or the new.

    Raises:
        InputError: it cannot be written there.
    """
    text = json.dumps({"format": FORMAT, **asdict(result)}, indent=1, allow_nan=False) + "\n"
    beside = path.with_name(path.name + ".partial")
    try:
        beside.write_text(text)
        os.replace(beside, path)
    except OSError as refused:
        raise InputError(f"{path} cannot be written: {refused.strerror}") from None


def read(path: Path) -> Result:
    """What `write` wrote.

    Raises:
        InputError: there is no such file, it is damaged, or of another format.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as refused:
        why = getattr(refused, "strerror", None) or "it is not text"
        raise InputError(f"{path} cannot be read: {why}") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Result:
    """`read` of a file's text; ``where``: the file's name in what is raised."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as broken:
        raise InputError(
            f"{where} is not a result of dfa-kernels bench: line {broken.lineno}: {broken.msg}"
        ) from None
    if not isinstance(found, dict) or "format" not in found:
        raise InputError(f"{where} is not a result of dfa-kernels bench: it names no format")
    if found["format"] != FORMAT:
        raise InputError(
            f"{where} is a result of format {found['format']!r}, and this reads {FORMAT}: measure "
            "again, or read it with the version that wrote it"
        )
    return checked(Result, {k: v for k, v in found.items() if k != "format"}, where)


def checked(cls: Any, found: Any, where: str) -> Any:
    """A dataclass of this module's kind from JSON.

    Raises:
        InputError: a field does not fit its annotation, naming it; ``where``: the file's name.
    """
    try:
        return _made(cls, found, "")
    except _WrongError as wrong:
        raise InputError(f"{where} is damaged: {wrong}") from None


class _WrongError(Exception):
    """What does not fit, and where in the file."""


def _made(cls: type, found: Any, place: str) -> Any:
    """A dataclass of the JSON object, its fields checked against their annotations."""
    if not isinstance(found, Mapping):
        raise _WrongError(f"{place or 'it'} is not an object")
    known = {f.name for f in fields(cls)}
    for name in found:
        if name not in known:
            raise _WrongError(f"{place}{'.' if place else ''}{name} is not a field of this format")
    hints = typing.get_type_hints(cls)
    given = {
        name: _value(hints[name], value, f"{place}{'.' if place else ''}{name}")
        for name, value in found.items()
    }
    try:
        return cls(**given)
    except TypeError:
        required = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]
        lacking = ", ".join(name for name in required if name not in given)
        raise _WrongError(f"{place or 'it'} lacks {lacking}") from None


def _value(hint: Any, value: Any, place: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for one in inner:
            try:
                return _value(one, value, place)
            except _WrongError:
                continue
    elif hint is types.NoneType:
        if value is None:
            return None
    elif origin is tuple and isinstance(value, list):
        wanted = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(wanted) == len(value):
            each = zip(wanted, value, strict=True)
            return tuple(_value(h, v, f"{place}[{i}]") for i, (h, v) in enumerate(each))
    elif origin is dict and isinstance(value, dict):
        return {k: _value(inner[1], v, f"{place}.{k}") for k, v in value.items()}
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    elif hasattr(hint, "__dataclass_fields__"):
        return _made(hint, value, place)
    raise _WrongError(f"{place} is {json.dumps(value)[:60]}")
