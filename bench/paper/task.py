"""What a task offers to the study: options, a problem, and the runs that solve it.

A task names its models and data sources. `Task.problem` loads and checks everything, so that bad
input is one sentence before any training; a problem makes runs, one for each (method, rate, seed);
a run is one network on its way, which can be stepped, scored, and stopped anywhere.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dfa_kernels as dfa
from dfa_kernels.alignment import Cosine


class Metric(NamedTuple):
    """A figure of merit, as `Run.scores` returns it."""

    name: str
    higher_is_better: bool
    digits: int = 2  # after the point, in tables

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` beats ``b``; NaN beats nothing."""
        return b != b or (a > b if self.higher_is_better else a < b)


class Run(ABC):
    """One network in training.

    A subclass sets ``net``, ``optimizer`` and, where the rate changes, ``scheduler`` (stepped once
    a training step), and defines `loss` and `scores`. All its randomness comes from ``generator``
    and from torch's global generator, which the constructor seeds: both are in the checkpoint.
    """

    net: dfa.DFA
    optimizer: Any
    scheduler: Any = None

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)

    @abstractmethod
    def loss(self) -> Tensor:
        """The loss of the next minibatch, which ``generator`` draws."""

    @abstractmethod
    def scores(self, split: str) -> dict[str, float]:
        """Every metric on ``"validation"`` or ``"test"``, of the weights as they are."""

    def step(self) -> float:
        """One training step; its loss."""
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return float(loss.detach())

    def alignment(self) -> dict[str, Cosine]:
        """Per point: the cosine between DFA's gradient and backpropagation's; {} where it has no
        meaning. Leaves the run as it was."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a run of the same problem needs to go on from here with the same bits."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])


class Problem(ABC):
    """One model on one data set, loaded and checked.

    ``model``, ``data``: their names in the rows. ``metrics``: the first one, on the validation
    split, chooses among learning rates. ``steps``: of a run. ``validate_every``: steps between
    validations; with ``keep_best`` the weights of the best one are tested, else the last ones.
    ``description``: what else decides the outcome (sizes, schedules), for the JSON.
    """

    model: str
    data: str
    metrics: tuple[Metric, ...]
    steps: int
    validate_every: int
    keep_best: bool = False
    description: dict[str, Any]

    @abstractmethod
    def run(self, method: str, rate: float, seed: int) -> Run:
        """A fresh run. The initial weights and the minibatches are functions of the seed alone."""

    def variants(self) -> Mapping[str, Problem]:
        """By name, problems of the same data, metrics and steps that differ in what a method may
        need otherwise (weight decay, dropout): the grid crosses them with the rates, and each
        method gets its best."""
        return {"": self}

    def described(self, method: str) -> dict[str, Any]:
        """``description``, as far as it holds for ``method``."""
        return self.description

    def draw(self, runs: Mapping[str, Run], folder: Path) -> list[Path]:
        """Pictures of the first seed's finished runs, by method, side by side."""
        return []


class Task(ABC):
    """``name``, ``models`` (name → one line), ``methods`` beyond dfa, bp, shallow: controls."""

    name: str
    models: dict[str, str]
    data: dict[str, str]  # name → one line; the first one is embedded and needs no files
    controls: tuple[str, ...] = ()

    def add_options(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027
        """The task's own options, beside those that `options` gives to all."""

    @abstractmethod
    def problem(self, options: argparse.Namespace) -> Problem:
        """Load and check.

        Raises:
            InputError: the data or an option is wrong; one sentence with the file and the line.
        """

    @abstractmethod
    def rates(self, options: argparse.Namespace) -> tuple[float, ...]:
        """The learning rates that each method is given alike where --lr is not; beyond them the
        grid goes on while its edge is the best (`grid`)."""
