"""`dfa-kernels bench --predict` and `--calibrate`: the cost model on devices that were measured.

A device is a file in `devices/`, in the package: the constants of each contestant's `cost` model,
fitted to a result with scaling curves, and how far they were off where they had not been fitted.
`--calibrate` writes one. Nothing is predicted for a device without a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfa_kernels.throughput import cost, result, scaling, table
from dfa_kernels.throughput.cost import Constants
from dfa_kernels.throughput.environment import slug
from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.options import parse_shape
from dfa_kernels.throughput.result import Prediction, Result
from dfa_kernels.training import InputError

FORMAT = 1
DEVICES = Path(__file__).with_name("devices")


@dataclass(frozen=True)
class Model:
    """A contestant's constants. ``off``: of each shape that they were not fitted to and that was
    measured, predicted time by measured."""

    contestant: str
    method: str
    dtype: str
    constants: dict[str, float]
    off: dict[str, float]


@dataclass(frozen=True)
class Device:
    """``environment``: of the result that the models come from."""

    name: str
    environment: dict[str, Any]
    models: list[Model]


def run(text: str, device: str | None) -> int:
    """Print what a step of the shape is predicted to take.

    Raises:
        InputError: no shape, or no measurement of such a device.
    """
    shape = parse_shape(text)
    found = named(device)
    env = found.environment
    console = table.console()
    console.print(
        f"Predicted for {env['device']}, {env['threads']} threads, torch {env['torch']}, "
        f"{env['optimizer']}, from what was measured on {env['date']}; not measured.",
        highlight=False,
    )
    made = [
        Prediction(m.contestant, m.method, shape, m.dtype, found.name,
                   cost.predict(Constants(**m.constants), shape, m.method, m.dtype))
        for m in found.models
    ]  # fmt: skip
    base = next((p.predicted_ms for p in made if p.method == "bp"), None)
    shown = table.plain(f"{shape}: a step")
    for head in ("contestant", "dtype", "ms", "÷ backpropagation", "off elsewhere by"):
        shown.add_column(head, justify="left" if head in ("contestant", "dtype") else "right")
    for prediction, model in zip(made, found.models, strict=True):
        shown.add_row(
            prediction.contestant,
            prediction.dtype,
            table.figure(prediction.predicted_ms),
            "–" if base is None else f"{prediction.predicted_ms / base:.2f}",
            f"{100 * max(abs(v - 1) for v in model.off.values()):.0f} % at most"
            if model.off
            else "not checked",
        )
    console.print(shown)
    return 0


def calibrate(path: Path, name: str | None, out: Path | None) -> int:
    """Fit the cost model to a result and write the device's file.

    Raises:
        InputError: the result cannot be read or has too few places, or the file cannot be written.
    """
    found = result.read(path)
    device = fitted(found, name)
    if not device.models:
        raise InputError(
            f"{path} has no scaling curves with {len(Constants._fields)} places or more: measure "
            "with --scaling"
        )
    folder = out or Path()
    target = folder / f"{device.name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, **asdict(device)}, indent=1, ensure_ascii=False)
        target.write_text(text + "\n")
    except OSError as refused:
        raise InputError(f"{target} cannot be written: {refused.strerror}") from None
    for model in device.models:
        worst = max((abs(v - 1) for v in model.off.values()), default=None)
        checked = "not checked" if worst is None else f"off by {100 * worst:.0f} % at most"
        print(f"{model.contestant}: {checked} at {len(model.off)} shapes that it was not fitted to")
    print(target)
    return 0


def fitted(found: Result, name: str | None) -> Device:
    """The device of a result."""
    constants = scaling.constants(found.scaling)
    held_out = {
        (p.contestant, Shape(*p.shape)): p.measured_ms
        for p in found.predictions
        if p.measured_ms and not p.fitted
    }
    predicted = scaling.predictions(constants, found.scaling, held_out)
    models = []
    for contestant, model in constants.items():
        own = [p for p in predicted if p.contestant == contestant]
        off = {
            ",".join(map(str, p.shape)): round(p.predicted_ms / p.measured_ms, 3)
            for p in own
            if p.measured_ms and not p.fitted
        }
        models.append(Model(contestant, own[0].method, own[0].dtype, model._asdict(), off))
    return Device(name or name_of(found.environment), dict(found.environment), models)


def name_of(environment: Mapping[str, Any]) -> str:
    """Of a device: "NVIDIA H200" is nvidia-h200; of a CPU its threads count too."""
    name = str(environment["device"])
    if name == environment.get("processor"):
        name = f"cpu {name} {environment['threads']} threads"
    return slug(name)


def named(asked: str | None) -> Device:
    """The device whose name has all the words of ``asked``: "h200" is nvidia-h200.

    Raises:
        InputError: none or several have.
    """
    names = sorted(path.stem for path in DEVICES.glob("*.json"))
    known = ", ".join(names) or "none"
    if asked is None:
        raise InputError(f"--predict needs --device: measured are {known}")
    words = set(slug(asked).split("-"))
    found = [n for n in names if n == slug(asked)] or [
        n for n in names if words <= set(n.split("-"))
    ]
    if not found:
        raise InputError(
            f"no measurement of {asked!r} is packaged, so nothing is predicted for it: measured "
            f"are {known}"
        )
    if len(found) > 1:
        raise InputError(f"--device {asked!r} may be {' or '.join(found)}: name one of them")
    return read(DEVICES / f"{found[0]}.json")


def read(path: Path) -> Device:
    """What `calibrate` wrote.

    Raises:
        InputError: it is damaged, or of another format.
    """
    try:
        given = json.loads(path.read_text())
        if given.pop("format") != FORMAT:
            raise InputError(f"{path.name} is not a device's file of format {FORMAT}")
        models = [Model(**model) for model in given.pop("models")]
        if any(set(model.constants) != set(Constants._fields) for model in models):
            raise InputError(f"{path.name} holds other constants than this version's")
        return Device(models=models, **given)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as broken:
        if isinstance(broken, InputError):
            raise
        raise InputError(f"{path.name} cannot be read: {broken}") from None
