"""What classification and the autoencoder share: a network on a graph, full batch, with Adam."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dfa_kernels as dfa
from bench.paper.graph import picture
from bench.paper.graph.data import Graph, inputs
from bench.paper.graph.models import ARCHITECTURES, Network
from bench.paper.task import Problem, Run


class Setting(NamedTuple):
    """``distribution``: of B. ``steps``: of a run."""

    model: str
    variant: str
    distribution: str
    steps: int


#: DFA with its error point at the output, as in the paper.
OUTPUT = "dfa-output"


class GraphRun(Run):
    def __init__(self, problem: GraphProblem, method: str, rate: float, seed: int) -> None:
        super().__init__(seed)
        self.problem = problem
        network = problem.network()
        distribution = problem.setting.distribution
        if method == OUTPUT:
            method, at, feedback = "dfa", None, dfa.Feedback(distribution, seed=seed)
        else:
            at = network.error_at
            feedback = network.feedback(distribution, seed, problem.outputs())
        self.net = dfa.DFA(network, feedback, network.points, error_at=at, method=method)
        self.optimizer = torch.optim.Adam(network.groups(), lr=rate)

    def outputs(self) -> Tensor:
        self.net.eval()
        with torch.no_grad():
            return self.net(self.problem.inputs)


class GraphProblem(Problem):
    """One graph, one architecture, one regularisation of it."""

    keep_best = True
    validate_every = 4

    def __init__(self, graph: Graph, setting: Setting) -> None:
        self.whole, self.graph, self.setting = graph, self.visible(graph), setting
        architecture = ARCHITECTURES[setting.model]
        self.regularisation = architecture.variants[setting.variant]
        self.model, self.data, self.steps = setting.model, graph.name, setting.steps
        self.inputs = inputs(self.graph, architecture.normalised)
        self.description: dict[str, Any] = {
            "architecture": architecture.line,
            **self.graph.describe(),
            "normalised": architecture.normalised,
            "regularisation": setting.variant,
            **self.regularisation._asdict(),
            "optimizer": "Adam",
            "feedback": setting.distribution,
        }
        with torch.random.fork_rng(devices=[]):
            network = self.network()
        self.description["error_at"] = network.error_at or "output"
        if len(network.signs) > 1:
            self.description["signs of B"] = list(network.signs)

    def visible(self, graph: Graph) -> Graph:
        """What of the graph a network is given."""
        return graph

    @abstractmethod
    def outputs(self) -> int:
        """The width of the error."""

    @abstractmethod
    def embedding(self, run: GraphRun) -> Tensor:
        """(N, D): what the picture shows."""

    def network(self) -> Network:
        """A new one, with weights from torch's global generator."""
        build = ARCHITECTURES[self.setting.model].build
        return build(self.inputs.x.shape[1], self.outputs(), self.regularisation)

    def variants(self) -> Mapping[str, Problem]:
        names = ARCHITECTURES[self.setting.model].variants
        return {name: type(self)(self.whole, self.setting._replace(variant=name)) for name in names}

    def described(self, method: str) -> dict[str, Any]:
        if method != OUTPUT:
            return self.description
        whole = {k: v for k, v in self.description.items() if k != "signs of B"}
        return whole | {"error_at": "output"}

    def draw(self, runs: Mapping[str, Run], folder: Path) -> list[Path]:
        path = folder / f"{self.model}-{self.data}.png"
        panels = {}
        for method, run in runs.items():
            assert isinstance(run, GraphRun)
            panels[method] = self.embedding(run), run.scores("test")
        picture.draw(path, f"{self.model} on {self.data}", panels, self.metrics[0], self.shown())
        return [path]

    def shown(self) -> picture.Shown:
        """Nodes whose class no method was shown."""
        return picture.Shown(self.graph.test, self.graph.y)
