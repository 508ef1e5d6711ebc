"""The result file: a list with one object a row, (task, model, data, method, metric)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.grid import Choice, is_outermost
from dfa_kernels.training import InputError

#: Marks a rate at the edge of its grid.
EDGE = "†"
FIELDS = ("task", "model", "data", "method", "metric")


@dataclass
class Row:
    """A figure of merit over seeds, and what it took.

    ``mean``, ``std`` (sample, over ``seeds`` runs; 0 for one): on the test split. ``step_ms``: the
    median training step; ``step_ratio``: median and quartiles of its ratio to backpropagation's
    over interleaved rounds. ``feedback_bytes``: held for B. ``alignment``: per point, the mean
    cosine, averaged over seeds. ``variant``: of the problem, where it has several. ``grid``: rate
    (and variant) → the validation score of the first seed.
    """

    task: str
    model: str
    data: str
    method: str
    metric: str
    mean: float
    std: float
    seeds: int
    step_ms: float | None = None
    feedback_bytes: int = 0
    values: list[float] = field(default_factory=list)
    higher_is_better: bool = True
    digits: int = 2
    lr: float | None = None
    variant: str = ""
    grid: dict[str, float] = field(default_factory=dict)
    step_ratio: list[float] | None = None
    alignment: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    parameters: int = 0
    description: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    quick: bool = False

    @property
    def at_the_edge(self) -> bool:
        """Whether its rate is the first or the last of the grid: a wider one may have a better."""
        if self.lr is None:
            return False
        own = Choice.of(Choice(self.lr, self.variant).label)  # of as many digits as the grid's
        return is_outermost(own, map(Choice.of, self.grid))

    @property
    def score(self) -> str:
        """For a table."""
        said = f"{self.mean:.{self.digits}f} ± {self.std:.{self.digits}f}"
        return said + EDGE * self.at_the_edge

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(getattr(self, name) for name in FIELDS)


def over_seeds(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for one value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def write(path: Path, rows: Iterable[Row]) -> None:
    """``rows`` into the file, whole or not at all; others that it holds already stay.

    Raises:
        InputError: the file holds something else, or cannot be written.
    """
    kept = {row.key: row for row in read(path)} if path.exists() else {}
    kept.update({row.key: row for row in rows})
    beside = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps([asdict(row) for row in kept.values()], indent=1) + "\n")
        os.replace(beside, path)
    except OSError as failed:
        raise InputError(f"{path} cannot be written: {failed.strerror}") from None


def read(path: Path) -> list[Row]:
    """What `write` wrote.

    Raises:
        InputError: it is something else.
    """
    try:
        return [Row(**row) for row in json.loads(path.read_text())]
    except OSError as failed:
        raise InputError(f"{path} cannot be read: {failed.strerror}") from None
    except (ValueError, TypeError) as wrong:
        raise InputError(f"{path} is no result file of bench.paper: {wrong}") from None
