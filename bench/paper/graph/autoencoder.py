"""The graph autoencoder (Kipf and Welling 2016): which edges were held out?

An encoder gives each node an embedding z, and σ(zᵢ·zⱼ) is the probability of an edge. The decoder
has no parameters, so the error point is z itself: e = dL/dz, as wide as the embedding, and the
decoder above it is differentiated exactly. 5 % of the edges are held out to validate and 10 % to
test, with as many pairs that are no edges; the split is the same in every run. Each step draws its
own pairs that are no edges.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import InnerProductDecoder
from torch_geometric.transforms import RandomLinkSplit

from bench.paper.graph.data import Graph
from bench.paper.graph.problem import GraphProblem, GraphRun, Setting
from bench.paper.task import Metric
from dfa_kernels.alignment import Cosine, alignment

_WIDTH = 16  # of z
_VALIDATION, _TEST = 0.05, 0.1


class AutoencoderRun(GraphRun):
    problem: Autoencoder

    def loss(self) -> Tensor:
        absent = self.problem.absent(self.generator)
        return _loss(self.net(self.problem.inputs), (self.problem.graph.edges, absent))

    def scores(self, split: str) -> dict[str, float]:
        pairs, label = self.problem.held[split]
        found = _decoder(self.outputs(), pairs).numpy()
        if not np.isfinite(found).all():
            return {"AUC": float("nan"), "AP": float("nan")}
        return {
            "AUC": 100 * float(roc_auc_score(label, found)),
            "AP": 100 * float(average_precision_score(label, found)),
        }

    def alignment(self) -> dict[str, Cosine]:
        self.net.eval()
        absent = self.problem.absent(torch.Generator().manual_seed(0))
        pairs = self.problem.graph.edges, absent
        return alignment(self.net, _loss, self.problem.inputs, pairs)


class Autoencoder(GraphProblem):
    """Its graph has the edges to train on alone. ``held``: by split, (2, P) pairs and (P,) labels,
    1 for an edge."""

    metrics = (Metric("AUC", higher_is_better=True), Metric("AP", higher_is_better=True))
    held: dict[str, tuple[Tensor, Tensor]]

    def __init__(self, graph: Graph, setting: Setting) -> None:
        super().__init__(graph, setting)
        source, target = self.graph.edges
        self._known = (source * len(graph.x) + target).sort().values
        self.description |= {split: len(label) for split, (_, label) in self.held.items()}
        self.description["train"] = self.graph.edges.shape[1] // 2

    def visible(self, graph: Graph) -> Graph:
        split = RandomLinkSplit(
            _VALIDATION, _TEST, is_undirected=True, add_negative_train_samples=False
        )
        with torch.random.fork_rng(devices=[]), _python_random(0):
            torch.manual_seed(0)
            train, validation, test = split(Data(graph.x, graph.edges))
        self.held = {
            name: (part.edge_label_index, part.edge_label)
            for name, part in (("validation", validation), ("test", test))
        }
        return graph._replace(edges=train.edge_index)

    def outputs(self) -> int:
        return _WIDTH

    def run(self, method: str, rate: float, seed: int) -> AutoencoderRun:
        return AutoencoderRun(self, method, rate, seed)

    def embedding(self, run: GraphRun) -> Tensor:
        return run.outputs()

    def absent(self, generator: torch.Generator) -> Tensor:
        """About as many pairs as there are edges to train on; none is one of them, or a loop."""
        nodes = len(self.graph.x)
        pairs = torch.randint(nodes, self.graph.edges.shape, generator=generator)
        numbers = pairs[0] * nodes + pairs[1]
        at = torch.searchsorted(self._known, numbers).clamp(max=len(self._known) - 1)
        return pairs[:, (self._known[at] != numbers) & (pairs[0] != pairs[1])]


def _decoder(z: Tensor, pairs: Tensor) -> Tensor:
    return InnerProductDecoder()(z, pairs, sigmoid=False)


def _loss(z: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Binary cross-entropy of the edges, and of the pairs that are none."""
    present, absent = (_decoder(z, each) for each in pairs)
    return F.softplus(-present).mean() + F.softplus(absent).mean()


@contextmanager
def _python_random(seed: int) -> Iterator[None]:
    """torch_geometric draws pairs that are no edges from Python's own generator."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
