"""What `dfa-kernels bench` can be asked to measure: parsed and checked before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dfa_kernels.throughput import lineup
from dfa_kernels.throughput.contestants import PRECISIONS, RULES
from dfa_kernels.throughput.job import Job
from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.result import BASELINE
from dfa_kernels.training import InputError, folders
from dfa_kernels.training.device import usable

#: Where no shape is given. On a CPU from what Python binds to what arithmetic and outputs do.
SHAPES = {
    "cpu": (
        Shape(128, 3, 256, 10),
        Shape(512, 4, 1024, 10),
        Shape(512, 8, 2048, 10),
        Shape(64, 8, 512, 10),
        Shape(256, 4, 1024, 10000),
    ),
    "cuda": (Shape(256, 8, 256, 10), Shape(8192, 8, 4096, 1000), Shape(4096, 4, 1024, 10000)),
}
BATCH, OUTPUTS = 512, 10
FILE = "throughput.json"


@dataclass(frozen=True)
class Options:
    """``asked``: whether the contestants were named. ``seconds``: for each shape in each dtype, by
    so many ``processes``, each after 9 rounds. ``notes``: sentences on who cannot take part."""

    contestants: tuple[str, ...]
    asked: bool
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    device: str
    optimizer: str
    seconds: float
    processes: int
    threads: int
    modules: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def resolve(cls, given: Mapping[str, Any]) -> Options:
        """``given``, completed.

        Raises:
            InputError: naming the option, what was given and what is known.
        """
        modules = tuple(given.get("modules", ()))
        notes = lineup.bring(modules)
        device = device_of(given.get("device"))
        names = list(given.get("contestant", ()))
        for name in names:
            lineup.named(name)
        if not names:
            names, refused = lineup.usual(device)
            notes += refused
        elif BASELINE not in names:
            names.insert(0, BASELINE)
        texts = given.get("shape", ())
        default = SHAPES["cuda" if device.type == "cuda" else "cpu"]
        options = cls(
            contestants=tuple(dict.fromkeys(names)),
            asked=bool(given.get("contestant")),
            shapes=tuple(dict.fromkeys(map(parse_shape, texts))) or default,
            dtypes=tuple(dict.fromkeys(given.get("dtype", ()))) or ("float32",),
            device=str(device),
            optimizer=given.get("optimizer", "sgd"),
            seconds=given.get("seconds", 20.0),
            processes=given.get("processes", 6),
            threads=given.get("threads", torch.get_num_threads()),
            modules=modules,
            notes=tuple(notes),
        )
        options._check()
        for name in given.get("contestant", ()):
            reason = lineup.refusal(name, device, options.dtypes)
            if reason is not None:
                raise InputError(f"--contestant {name} cannot run on {device}: {reason}")
        return options

    def _check(self) -> None:
        for dtype in self.dtypes:
            if dtype not in PRECISIONS:
                raise InputError(f"--dtype {dtype!r} is unknown: known are {', '.join(PRECISIONS)}")
        if self.optimizer not in RULES:
            raise InputError(
                f"--optimizer {self.optimizer!r} is unknown: known are {', '.join(RULES)}"
            )
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise InputError(f"--seconds must be finite and at least 0, got {self.seconds}")
        for name in ("threads", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}")

    def job(self, shape: Shape, dtype: str) -> Job:
        return Job(
            contestants=self.contestants,
            shape=shape,
            precision=dtype,
            device=self.device,
            rule=self.optimizer,
            seconds=self.seconds / self.processes,
            threads=self.threads,
            modules=self.modules,
        )

    def jobs(self) -> list[Job]:
        """What one process is asked for; the first dtype of every shape first."""
        return [self.job(shape, dtype) for dtype in self.dtypes for shape in self.shapes]

    def of(self, contestants: Sequence[str], seconds: float) -> Options:
        """The same for others, by one process, in another time."""
        return replace(self, contestants=tuple(contestants), seconds=seconds, processes=1)


def parse_shape(text: str) -> Shape:
    """``"512,4,1024,10"``, or ``"mlp:4x1024"`` with ``,batch=512`` and ``,outputs=10`` behind it.

    Raises:
        InputError: neither.
    """
    plain = re.fullmatch(r"(\d{1,12}),(\d{1,12}),(\d{1,12}),(\d{1,12})", text)
    written = re.fullmatch(r"mlp:(\d{1,12})x(\d{1,12})((?:,(?:batch|outputs)=\d{1,12})*)", text)
    if plain:
        shape = Shape(*map(int, plain.groups()))
    elif written:
        extra = dict(part.split("=") for part in written[3].split(",") if part)
        batch, outputs = int(extra.get("batch", BATCH)), int(extra.get("outputs", OUTPUTS))
        shape = Shape(batch, int(written[1]), int(written[2]), outputs)
    else:
        raise InputError(
            f"{text!r} is not a shape: give BATCH,LAYERS,WIDTH,OUTPUTS such as 512,4,1024,10, or "
            "mlp:LAYERSxWIDTH such as mlp:32x8192,batch=512,outputs=10"
        )
    if min(shape) < 1:
        raise InputError(f"{text!r} is not a shape: each of its numbers must be at least 1")
    return shape


def device_of(name: str | None) -> torch.device:
    """A GPU if there is one, where none is named.

    Raises:
        InputError: it cannot be used here.
    """
    device = usable(name)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name!r} is timed by no clock here: known are cpu and cuda")
    return device


def prepare(folder: Path, overwrite: bool) -> Path:
    """The file to write in ``folder``, which is made.

    Raises:
        InputError: it cannot be made or written to, or holds a result that somebody may want.
    """
    path = folder / FILE
    folders.check(folder)
    if path.is_dir():
        raise InputError(f"{path}, the file to write, is a folder: give another --out")
    if path.exists() and not overwrite:
        raise InputError(
            f"{folder} holds a result ({FILE}): replace it with --overwrite, or give another --out"
        )
    folders.make(folder)
    return path
