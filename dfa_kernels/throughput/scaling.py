"""Time and memory along depth, width, batch and error width, and what follows from them: exponents,
the cost model's constants, and where DFA starts to pay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dfa_kernels.throughput import cost
from dfa_kernels.throughput.cost import Constants, Sample
from dfa_kernels.throughput.job import Job
from dfa_kernels.throughput.memory import Memory
from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.result import EAGER, Crossover, Curve, Point, Prediction
from dfa_kernels.throughput.spread import spread

#: What everything but the axis is, by the device's type.
BASE = {"cpu": Shape(256, 4, 512, 10), "cuda": Shape(4096, 8, 1024, 10)}
#: The places on each axis.
VALUES: dict[str, dict[str, tuple[int, ...]]] = {
    "cpu": {
        "depth": (1, 2, 4, 8, 16),
        "width": (64, 128, 256, 512, 1024, 2048, 4096),
        "batch": (16, 64, 256, 1024, 2048),
        "outputs": (10, 100, 1000, 10000, 50000),
    },
    "cuda": {
        "depth": (1, 2, 4, 8, 16, 32),
        "width": (128, 256, 512, 1024, 2048, 4096),
        "batch": (256, 1024, 4096, 16384, 65536),
        "outputs": (10, 100, 1000, 10000, 50000),
    },
}
#: Where a crossover is looked for: as far as the model can be believed a little beyond the places.
_BEYOND = 4
#: Visits to every place, and the rounds of one at the least: a shared machine's minute is not
#: another's, and what disturbs it for one must not be what is known of a place.
VISITS, LEAST = 3, 3


class Place(NamedTuple):
    """One shape, on as many axes as it lies."""

    shape: Shape
    axes: tuple[str, ...]


def places(kind: str) -> list[Place]:
    """``kind``: of device. The smallest first; the base lies on every axis, and is there once."""
    found: dict[Shape, list[str]] = {}
    for axis, values in VALUES[kind].items():
        for value in values:
            found.setdefault(BASE[kind]._replace(**{axis: value}), []).append(axis)
    made = [Place(shape, tuple(axes)) for shape, axes in found.items()]
    return sorted(made, key=lambda p: _size(p.shape))


def _size(shape: Shape) -> float:
    return cost.units(shape, "bp", "float32").gflop


def jobs(job: Job, kind: str, others: Sequence[Shape] = ()) -> list[Job]:
    """``job`` at every place, and among them at ``others``: what the model is held against must be
    of the same minutes. One visit, with its share of the job's time."""
    shapes = {place.shape for place in places(kind)} | set(others)
    own = replace(job, least=LEAST, seconds=job.seconds / VISITS)
    return [replace(own, shape=shape) for shape in sorted(shapes, key=_size)]


class Scaling(NamedTuple):
    """What was measured: by (contestant, shape), the samples of all visits in milliseconds, memory,
    a death."""

    samples: dict[tuple[str, Shape], list[float]]
    memory: dict[tuple[str, Shape], int | None]
    errors: dict[tuple[str, Shape], str]

    @classmethod
    def empty(cls) -> Scaling:
        return cls({}, {}, {})

    def take(self, shape: tuple[int, int, int, int], event: Mapping[str, Any]) -> None:
        """An event of `turns`."""
        key = event["contestant"], Shape(*shape)
        if event["event"] == "measured" and event["samples_ms"]:
            self.samples.setdefault(key, []).extend(event["samples_ms"])
        elif event["event"] == "died":
            self.errors[key] = event["why"]

    def held_out(self, kind: str) -> dict[tuple[str, Shape], float]:
        """Milliseconds by contestant and shape, of shapes that are no places on an axis."""
        on_axes = {place.shape for place in places(kind)}
        return {
            key: spread(samples).median
            for key, samples in self.samples.items()
            if key[1] not in on_axes and key not in self.errors
        }

    def weigh(self, found: Memory) -> None:
        self.memory[found.contestant, Shape(*found.shape)] = found.peak


def curves(found: Scaling, methods: Mapping[str, str], job: Job, kind: str) -> list[Curve]:
    """A curve for each contestant along each axis."""
    made = []
    for axis in VALUES[kind]:
        for name, method in methods.items():
            points = [
                _point(found, name, place.shape, axis)
                for place in places(kind)
                if axis in place.axes
                and ((name, place.shape) in found.samples or (name, place.shape) in found.errors)
            ]
            points.sort(key=lambda p: p.value)
            if points:
                made.append(
                    Curve(
                        name, method, axis, BASE[kind], job.precision, job.device, tuple(points),
                        exponent([(p.value, p.ms) for p in points]),
                        exponent([(p.value, p.peak_memory_bytes) for p in points]),
                    )
                )  # fmt: skip
    return made


def _point(found: Scaling, name: str, shape: Shape, axis: str) -> Point:
    key = name, shape
    told = spread(found.samples[key]) if key in found.samples else None
    return Point(
        value=getattr(shape, axis),
        ms=told and told.median,
        quartiles=told and (told.low, told.high),
        peak_memory_bytes=found.memory.get(key),
        error=found.errors.get(key),
    )


def exponent(points: Sequence[tuple[float, float | None]]) -> tuple[float, float] | None:
    """p of c·valueᵖ by least squares of the logarithms, and its standard error."""
    import numpy as np

    known = [(x, y) for x, y in points if y]
    if len(known) < 3:
        return None
    x, y = (np.log(column) for column in zip(*known, strict=True))
    apart = x - x.mean()
    slope = float(apart @ y / (apart @ apart))
    rest = y - y.mean() - slope * apart
    error = math.sqrt(float(rest @ rest) / (len(known) - 2) / float(apart @ apart))
    return slope, error


def times(curves: Sequence[Curve], contestant: str) -> dict[Shape, float]:
    """Milliseconds of a contestant wherever it lived on its curves."""
    return {
        Shape(*curve.shape)._replace(**{curve.axis: point.value}): point.ms
        for curve in curves
        for point in curve.points
        if curve.contestant == contestant and point.ms and not point.error
    }


def constants(curves: Sequence[Curve]) -> dict[str, Constants]:
    """The cost model's, of each contestant with enough places."""
    fitted = {}
    for name, method, dtype in dict.fromkeys((c.contestant, c.method, c.dtype) for c in curves):
        samples = [Sample(shape, ms) for shape, ms in times(curves, name).items()]
        made = cost.fit(samples, method, dtype)
        if made is not None:
            fitted[name] = made
    return fitted


def predictions(
    fitted: Mapping[str, Constants],
    curves: Sequence[Curve],
    held_out: Mapping[tuple[str, Shape], float],
) -> list[Prediction]:
    """Of what was held out of the fit; and of the places, whose times the constants come from."""
    made = []
    for curve in {c.contestant: c for c in curves if c.contestant in fitted}.values():
        name, dtype = curve.contestant, curve.dtype
        at = times(curves, name)
        held = {shape: ms for (contestant, shape), ms in held_out.items() if contestant == name}
        for shape, ms in {**held, **at}.items():
            predicted = cost.predict(fitted[name], shape, curve.method, dtype)
            made.append(
                Prediction(name, curve.method, shape, dtype, curve.device, predicted, ms,
                           shape in at)
            )  # fmt: skip
    return made


def crossovers(
    fitted: Mapping[str, Constants], methods: Mapping[str, str], job: Job, kind: str
) -> list[Crossover]:
    """Of every DFA contestant with backpropagation, along every axis, by the cost model."""
    made = []
    for name, model in fitted.items():
        if methods[name] != "dfa" or EAGER not in fitted:
            continue
        for axis, values in VALUES[kind].items():

            def difference(value: int, axis: str = axis, model: Constants = model) -> float:
                shape = BASE[kind]._replace(**{axis: value})
                theirs = cost.predict(fitted[EAGER], shape, "bp", job.precision)
                return cost.predict(model, shape, "dfa", job.precision) - theirs

            low, high = max(1, values[0] // _BEYOND), values[-1] * _BEYOND
            found = cost.crossing(difference, low, high)
            made.append(
                Crossover(
                    axis, name, EAGER, BASE[kind], job.precision, job.device,
                    None if found is None else found[0], found is not None and found[1],
                    _sentence(axis, name, kind, found, difference(high) < 0, low, high),
                )
            )  # fmt: skip
    return made


def _sentence(
    axis: str,
    name: str,
    kind: str,
    found: tuple[int, bool] | None,
    faster: bool,
    low: int,
    high: int,
) -> str:
    others = ", ".join(
        f"{value:,} {other}" for other, value in BASE[kind]._asdict().items() if other != axis
    )
    where = f"Along {axis} (at {others})"
    if found is None:
        least = "less" if faster else "more"
        return (
            f"{where}, {name} is predicted to take {least} time than {EAGER} everywhere "
            f"from {low:,} to {high:,}."
        )
    side = "up to" if found[1] else "from"
    return (
        f"{where}, {name} is predicted to take less time than {EAGER} {side} about "
        f"{found[0]:,}{'' if found[1] else ' on'}."
    )
