"""What `dfa-kernels train` can be asked for: parsed, completed with defaults, and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any

import torch
from torch import nn

from dfa_kernels.feedback import DISTRIBUTIONS
from dfa_kernels.module import METHODS
from dfa_kernels.training import InputError
from dfa_kernels.training.device import usable

#: The data sets, and the defaults that suit each.
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"hidden": (256, 256), "epochs": 40, "batch": 64, "seeds": 5},
    "fashion-mnist": {"hidden": (1024,) * 4, "epochs": 10, "batch": 128, "seeds": 3},
}

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

#: Optimizers, with the learning rate where none is given.
LEARNING_RATES = {"adamw": 1e-3, "sgd": 0.05}

#: The learning rate's factor when a share of the run is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
}

#: Of weights and data. bfloat16: the forward pass under autocast, everything kept in float32.
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.float32,
}


@dataclass(frozen=True)
class Options:
    """Everything that a run's numbers depend on, but for where the files of ``data`` lie.

    ``hidden``: widths, input side first. ``lr``: by method, at the start of ``schedule``.
    ``batch``: rows of a minibatch.
    ``seeds``: how many, the first being ``seed``; each decides the split of `digits`, the initial
    weights, the order of the data and the feedback. ``fused``: `dfa_kernels.optim` for dfa.

    Raises:
        InputError: naming the option, what was given and what is known.
    """

    data: str
    method: tuple[str, ...]
    hidden: tuple[int, ...]
    activation: str
    optimizer: str
    lr: dict[str, float]
    schedule: str
    epochs: int
    batch: int
    seed: int
    seeds: int
    distribution: str
    dtype: str
    device: str
    compile: bool
    fused: bool

    @classmethod
    def resolve(cls, given: Mapping[str, Any]) -> Options:
        """``given``, completed. Its ``lr`` may hold ``""``: the rate of methods not named."""
        options = {
            "data": "digits",
            "method": METHODS,
            "activation": "tanh",
            "optimizer": "adamw",
            "lr": {},
            "schedule": "constant",
            "seed": 0,
            "distribution": "rademacher",
            "dtype": "float32",
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "compile": False,
            "fused": True,
            **given,
        }
        check_known("data", options["data"], DEFAULTS)
        options = {**DEFAULTS[options["data"]], **options}
        for method in options["method"]:
            check_known("method", method, METHODS)
        check_known("optimizer", options["optimizer"], LEARNING_RATES)
        options["method"] = tuple(m for m in METHODS if m in options["method"])
        rates, default = options["lr"], LEARNING_RATES[options["optimizer"]]
        for method in rates:
            if method:
                check_known("lr", method, options["method"])
        options["lr"] = {m: rates.get(m, rates.get("", default)) for m in options["method"]}
        return cls(**options)

    def __post_init__(self) -> None:
        check_known("activation", self.activation, ACTIVATIONS)
        check_known("schedule", self.schedule, SCHEDULES)
        check_known("distribution", self.distribution, DISTRIBUTIONS)
        check_known("dtype", self.dtype, DTYPES)
        for name in ("epochs", "batch", "seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed <= 2**63 - self.seeds:
            raise InputError(f"--seed must be in [0, 2**63 − {self.seeds}], got {self.seed}")
        if not self.method:
            raise InputError(f"--method needs at least one of {', '.join(METHODS)}")
        for method, rate in self.lr.items():
            if not (math.isfinite(rate) and rate > 0):
                raise InputError(f"--lr of {method} must be finite and above 0, got {rate}")
        check_device(self.device)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def resumed(self, given: Mapping[str, Any], where: str) -> Options:
        """These options, those of a checkpoint at ``where``, unless ``given`` differs from them."""
        asked = Options.resolve({**self.as_dict(), **given})
        for field in fields(self):
            ours, theirs = getattr(asked, field.name), getattr(self, field.name)
            if ours != theirs:
                raise InputError(
                    f"--{field.name} {shown(ours)} differs from {shown(theirs)}, with which the "
                    f"run in {where} was begun: leave it out to resume, or give another --out"
                )
        return asked

    def sizes(self, features: int, classes: int) -> tuple[int, ...]:
        """The widths of the network, from input to output."""
        return (features, *self.hidden, classes)


def shown(value: Any) -> str:
    """An option's value as a person would type it."""
    if isinstance(value, Mapping):
        return " ".join(f"{k}={v:g}" for k, v in value.items())
    if not isinstance(value, (list, tuple)):
        return str(value)
    if value and isinstance(value[0], str):
        return " ".join(value)
    runs = [(width, len(list(same))) for width, same in groupby(value)]
    return ",".join(str(width) if n == 1 else f"{width}x{n}" for width, n in runs)


def parse_hidden(text: str) -> tuple[int, ...]:
    """``"1024x4"`` or ``"512,256"`` (or both: ``"512x2,128"``) → widths."""
    widths: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d*)(?:x([1-9]\d*))?\s*", part)
        if match is None:
            raise InputError(
                f"--hidden {text!r} is not a list of widths: give WIDTHxLAYERS such as 256x2, or "
                "widths such as 512,256"
            )
        widths += [int(match[1])] * int(match[2] or 1)
    return tuple(widths)


def parse_lr(texts: Sequence[str]) -> dict[str, float]:
    """``["1e-3", "bp=3e-4"]`` → ``{"": 1e-3, "bp": 3e-4}``."""
    rates: dict[str, float] = {}
    for text in texts:
        method, _, number = text.rpartition("=")
        try:
            rate = float(number)
        except ValueError:
            raise InputError(
                f"--lr {text!r} is not a learning rate: give a number, or METHOD=NUMBER"
            ) from None
        if method in rates:
            raise InputError(
                f"--lr gives {method or 'every method'} two rates, the second {text!r}"
            )
        rates[method] = rate
    return rates


def check_known(option: str, value: str, known: Any) -> None:
    """That ``value`` is one of ``known``, or an `InputError`."""
    if value not in known:
        raise InputError(f"--{option} {value!r} is unknown: known are {', '.join(known)}")


def check_device(name: str) -> None:
    """That numbers can be kept on the device, or an `InputError`."""
    if usable(name).type == "meta":
        raise InputError("--device 'meta' holds no numbers: nothing can be trained there")
