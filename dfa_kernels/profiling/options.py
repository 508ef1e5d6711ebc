"""What `dfa-kernels profile` can be asked for: parsed, completed with defaults, and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch

from dfa_kernels import backends
from dfa_kernels.module import METHODS
from dfa_kernels.throughput.contestants import PRECISIONS
from dfa_kernels.training import InputError
from dfa_kernels.training.options import LEARNING_RATES, check_device, check_known

#: Features of the built-in network's input.
INPUTS = 784


class Shape(NamedTuple):
    """A batch through ``depth`` hidden layers of ``width`` tanh units to ``outputs`` logits."""

    batch: int = 512
    depth: int = 4
    width: int = 1024
    outputs: int = 10


class Input(NamedTuple):
    """One positional argument of the network: random normal numbers of ``shape``, or integers
    below ``below``."""

    shape: tuple[int, ...]
    below: int | None = None

    def __str__(self) -> str:
        dims = ",".join(map(str, self.shape))
        return dims if self.below is None else f"{dims}:{self.below}"


@dataclass(frozen=True)
class Options:
    """Everything that a profile depends on.

    ``module``: ``package.module:factory`` of a user's own network, whose arguments are ``batch``;
    None: the built-in one of ``shape``. ``backend``: None for the automatic choice. ``fused``:
    `dfa_kernels.optim` for dfa. ``steps``: how many are profiled.

    Raises:
        InputError: naming the option, what was given and what is known.
    """

    module: str | None = None
    batch: tuple[Input, ...] = ()
    shape: Shape = field(default_factory=Shape)
    method: tuple[str, ...] = ("dfa",)
    backend: str | None = None
    optimizer: str = "sgd"
    fused: bool = True
    dtype: str = "float32"
    device: str = ""
    steps: int = 20
    seed: int = 0

    @classmethod
    def resolve(cls, given: Mapping[str, Any]) -> Options:
        """``given``, completed."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if "shape" in given and "module" in given:
            raise InputError("--shape is of the built-in network: leave it out beside --module")
        if "batch" in given and "module" not in given:
            raise InputError(
                "--batch is the shape of what --module's network is given: for the built-in one "
                "give --shape BATCH,DEPTH,WIDTH,OUTPUTS"
            )
        if "module" in given and "batch" not in given:
            raise InputError(f"--module {given['module']} needs --batch, such as --batch 128,784")
        return cls(**{"device": device, **given})

    def __post_init__(self) -> None:
        for method in self.method:
            check_known("method", method, METHODS)
        check_known("optimizer", self.optimizer, LEARNING_RATES)
        check_known("dtype", self.dtype, PRECISIONS)
        if self.steps < 1:
            raise InputError(f"--steps must be at least 1, got {self.steps}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be in [0, 2**63), got {self.seed}")
        check_device(self.device)
        object.__setattr__(self, "method", tuple(dict.fromkeys(self.method)))
        try:
            with backends.use(self.backend):
                backends.chosen(torch.device(self.device), PRECISIONS[self.dtype])
        except ValueError as refused:
            raise InputError(str(refused)) from None
        except RuntimeError as refused:
            why = str(refused).replace("dfa_kernels.backends.use", "--backend")
            raise InputError(why) from None

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "shape": None if self.module else list(self.shape),
            "batch": [str(one) for one in self.batch],
        }

    def subject(self) -> str:
        """What is profiled, in a few words."""
        if self.module:
            return f"{self.module} on {' and '.join(map(str, self.batch))}"
        batch, depth, width, outputs = self.shape
        return f"{depth} × {width} tanh, {outputs} outputs, batch {batch}"


def parse_shape(text: str) -> Shape:
    """``"512,4,1024,10"``."""
    numbers = [int(n) for n in text.split(",")] if re.fullmatch(r"\d+(,\d+)*", text) else []
    if len(numbers) != 4 or 0 in (numbers[0], *numbers[2:]):
        raise InputError(
            f"--shape {text!r} is not BATCH,DEPTH,WIDTH,OUTPUTS, four numbers such as 512,4,1024,10"
        )
    return Shape(*numbers)


def parse_batch(texts: Sequence[str]) -> tuple[Input, ...]:
    """``["128,784", "8,128:1000"]``: an input of normal numbers, one of integers below 1000."""
    inputs = []
    for text in texts:
        match = re.fullmatch(r"([1-9]\d*(?:,[1-9]\d*)*)(?::([1-9]\d*))?", text)
        if match is None:
            raise InputError(
                f"--batch {text!r} is not a shape: give numbers such as 128,784, and SHAPE:BELOW "
                "such as 8,128:1000 for integers below 1000"
            )
        shape = tuple(int(n) for n in match[1].split(","))
        if math.prod(shape) > 1 << 34:
            raise InputError(f"--batch {text!r} would be {math.prod(shape):,} numbers")
        inputs.append(Input(shape, match[2] and int(match[2])))
    return tuple(inputs)
