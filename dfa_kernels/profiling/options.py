"""What `dfa-kernels profile` can be asked for: parsed, completed with defaults, and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dfa_kernels import backends
from dfa_kernels.module import METHODS
from dfa_kernels.throughput import lineup
from dfa_kernels.throughput.contestants import PRECISIONS
from dfa_kernels.throughput.networks import Shape
from dfa_kernels.training import InputError
from dfa_kernels.training.options import LEARNING_RATES, check_device, check_known, shown

#: Of the built-in network where none is given.
SHAPE = Shape(512, 4, 1024, 10)


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
    `dfa_kernels.optim` for dfa. ``steps``: how many are
    profiled. ``threads``: of a CPU. ``modules``: imported first, for they register backends.

    Raises:
        InputError: naming the option, what was given and what is known.
    """

    module: str | None = None
    batch: tuple[Input, ...] = ()
    shape: Shape = SHAPE
    method: tuple[str, ...] = ("dfa",)
    backend: str | None = None
    optimizer: str = "sgd"
    fused: bool = True
    dtype: str = "float32"
    device: str = ""
    steps: int = 20
    threads: int = 1
    seed: int = 0
    modules: tuple[str, ...] = ()

    @classmethod
    def resolve(cls, given: Mapping[str, Any]) -> Options:
        """``given``, completed."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        lineup.bring(given.get("modules", ()))
        if "shape" in given and "module" in given:
            raise InputError("--shape is of the built-in network: leave it out beside --module")
        if "batch" in given and "module" not in given:
            raise InputError(
                "--batch is the shape of what --module's network is given: for the built-in one "
                "give --shape BATCH,LAYERS,WIDTH,OUTPUTS"
            )
        if "module" in given and "batch" not in given:
            raise InputError(f"--module {given['module']} needs --batch, such as --batch 128,784")
        return cls(**{"device": device, "threads": torch.get_num_threads(), **given})

    def __post_init__(self) -> None:
        for method in self.method:
            check_known("method", method, METHODS)
        check_known("optimizer", self.optimizer, LEARNING_RATES)
        check_known("dtype", self.dtype, PRECISIONS)
        for name in ("steps", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}")
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

    def as_dict(self) -> dict[str, str]:
        """As they would be typed, those of the other kind of network left out."""
        other = ("shape",) if self.module else ("module", "batch")
        given = {name: value for name, value in vars(self).items() if name not in other}
        texts = {"shape": str(self.shape), "batch": " ".join(map(str, self.batch))}
        return {
            name: texts.get(name) or shown(value)
            for name, value in given.items()
            if value is not None and value != ()
        }

    def subject(self) -> str:
        """What is profiled, in a few words."""
        if self.module:
            return f"{self.module} on {' and '.join(map(str, self.batch))}"
        batch, depth, width, outputs = self.shape
        return f"{depth} × {width} tanh, {outputs} outputs, batch {batch}"


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
        inputs.append(Input(shape, int(match[2]) if match[2] else None))
    return tuple(inputs)
