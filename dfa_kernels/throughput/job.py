"""What a process that measures is asked for: contestants on one shape in one dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dfa_kernels.throughput import lineup
from dfa_kernels.throughput.contestants import Setting
from dfa_kernels.throughput.networks import MLP, Shape


@dataclass(frozen=True)
class Job:
    """``shape``: a `Shape`. ``seconds``: for all rounds, after the first ``least``. ``modules``:
    imported first, for the backends that they register."""

    contestants: tuple[str, ...]
    shape: tuple[int, int, int, int]
    precision: str = "float32"
    device: str = "cpu"
    rule: str = "sgd"
    seconds: float = 0.0
    least: int = 9
    threads: int = 1
    modules: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Job:
        """From its fields, as JSON holds them."""
        fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return cls(**fields)

    @property
    def where(self) -> str:
        return f"{Shape(*self.shape)} {self.precision}"

    @property
    def task(self) -> MLP:
        return MLP.of(self.shape)

    @property
    def setting(self) -> Setting:
        return Setting(torch.device(self.device), self.precision, self.rule)


@contextmanager
def ready(job: Job) -> Iterator[None]:
    """The threads and backends that the job names."""
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    lineup.bring(job.modules)
    try:
        yield
    finally:
        torch.set_num_threads(before)
