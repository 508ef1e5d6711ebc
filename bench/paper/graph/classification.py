"""Semi-supervised classification: cross-entropy on a few nodes, accuracy on others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.paper.graph.problem import GraphProblem, GraphRun
from bench.paper.task import Metric
from dfa_kernels.alignment import Cosine, alignment


class ClassificationRun(GraphRun):
    def loss(self) -> Tensor:
        return self._loss(self.net(self.problem.inputs), self.problem.graph.train)

    def _loss(self, logits: Tensor, nodes: Tensor) -> Tensor:
        return F.cross_entropy(logits[nodes], self.problem.graph.y[nodes])

    def scores(self, split: str) -> dict[str, float]:
        graph = self.problem.graph
        nodes = getattr(graph, split)
        right = self.outputs()[nodes].argmax(dim=1) == graph.y[nodes]
        return {"accuracy": 100 * int(right.sum()) / len(nodes)}

    def alignment(self) -> dict[str, Cosine]:
        self.net.eval()
        return alignment(self.net, self._loss, self.problem.inputs, self.problem.graph.train)


class Classification(GraphProblem):
    metrics = (Metric("accuracy", higher_is_better=True),)

    def outputs(self) -> int:
        return self.graph.classes

    def run(self, method: str, rate: float, seed: int) -> ClassificationRun:
        return ClassificationRun(self, method, rate, seed)

    def embedding(self, run: GraphRun) -> Tensor:
        """The last hidden state."""
        run.net.eval()
        with torch.no_grad():
            return run.net.module.embed(self.inputs)
