"""The networks of the paper's geometric learning: one definition of each, for every method.

Each has ``points``, the activations to which DFA hands the projected error; ``head``, the layer
above the last of them; and `embed`, the output of that last activation. They keep what they compute
of a graph alone (its normalisation): one graph a network.

``error_at``: a graph layer is a linear map of each node, and then the graph mixes nodes. Only the
labelled nodes have an error at the output. The error point stands below the head's mixing, at its
linear map: there the neighbours of labelled nodes have their part of the error too, as they have in
backpropagation, and still no weight is transported (what is differentiated above the error point is
a fixed average, or GAT's attention). The paper has it at the output: that is the control
``dfa-output``.

``signs``: where the head's linear map has several parts, one for each way of mixing them, B is the
same for all, times the sign with which the mixing of alike neighbours counts. Independent rows of B
would have a labelled node and its neighbours pull a hidden unit in unrelated directions, which no
learned head does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import dfa_kernels as dfa
from bench.paper.graph.data import Inputs, drop
from bench.paper.graph.layers import ChebConv, DNAConv, SplineConv


class Regularisation(NamedTuple):
    """Dropout of the features, of the last hidden state and of attention; weight decay (L2 in
    Adam, as is usual on these graphs) below the head and in it."""

    input: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    decay: float = 0.0
    decay_head: float = 0.0


class Network(nn.Module):
    points: ClassVar[tuple[str, ...]] = ("hidden",)
    error_at: ClassVar[str | None] = "head.lin"
    signs: ClassVar[tuple[int, ...]] = (1,)
    width: int = 16  # of the last of the points
    head: nn.Module

    def __init__(self, regularisation: Regularisation) -> None:
        super().__init__()
        self.regularisation = regularisation

    def embed(self, given: Inputs) -> Tensor:
        raise NotImplementedError

    def top(self, hidden: Tensor, given: Inputs) -> Tensor:
        return self.head(hidden, given.edges)

    def forward(self, given: Inputs) -> Tensor:
        return self.top(self._drop_hidden(self.embed(given)), given)

    def _drop_input(self, x: Tensor) -> Tensor:
        return drop(x, self.regularisation.input, self.training)

    def _drop_hidden(self, hidden: Tensor) -> Tensor:
        return drop(hidden, self.regularisation.hidden, self.training)

    def feedback(self, distribution: str, seed: int, outputs: int) -> dfa.Feedback:
        """B for an error point of ``len(signs)`` parts, each ``outputs`` wide."""
        one = dfa.Feedback(distribution, seed=seed)
        if len(self.signs) == 1:
            return one
        part = one.matrix(outputs, self.width)
        matrix = torch.cat([sign * part for sign in self.signs])
        return dfa.Feedback.from_matrix(matrix, scale=one.scale_for(self.width))

    def groups(self) -> list[dict[str, object]]:
        """The parameters for an optimizer, each with its weight decay."""
        head = list(self.head.parameters())
        below = [p for p in self.parameters() if all(p is not q for q in head)]
        r = self.regularisation
        return [
            {"params": below, "weight_decay": r.decay},
            {"params": head, "weight_decay": r.decay_head},
        ]


class ChebNet(Network):
    """Defferrard et al. 2016; polynomials of order 1 (two terms)."""

    error_at = "head.projected"
    signs = (1, -1)  # Tₖ(L̂) ≈ Tₖ(−1) = (−1)ᵏ where neighbours are alike

    def __init__(
        self, features: int, classes: int, regularisation: Regularisation, width: int = 16
    ) -> None:
        super().__init__(regularisation)
        self.width = width
        self.first = ChebConv(features, width, K=2)
        self.hidden = nn.ReLU()
        self.head = ChebConv(width, classes, K=2)

    def embed(self, given: Inputs) -> Tensor:
        return self.hidden(self.first(self._drop_input(given.x), given.edges))


class GCN(Network):
    """Kipf and Welling 2017."""

    def __init__(
        self, features: int, outputs: int, regularisation: Regularisation, width: int = 16
    ) -> None:
        super().__init__(regularisation)
        self.first = pyg.GCNConv(features, width, cached=True)
        self.hidden = nn.ReLU()
        self.head = pyg.GCNConv(width, outputs, cached=True)

    def embed(self, given: Inputs) -> Tensor:
        return self.hidden(self.first(self._drop_input(given.x), given.edges))


class Encoder(GCN):
    """The autoencoder's (Kipf and Welling 2016): z itself is the error point, where every node has
    an error."""

    error_at = None

    def __init__(self, features: int, outputs: int, regularisation: Regularisation) -> None:
        super().__init__(features, outputs, regularisation, width=2 * outputs)


class SplineNet(Network):
    """Fey et al. 2018; an edge's place on its spline is the degree of its target."""

    error_at = "head.projected"
    signs = (1, 1, 1)

    def __init__(self, features: int, classes: int, regularisation: Regularisation) -> None:
        super().__init__(regularisation)
        self.first = SplineConv(features, 16)
        self.hidden = nn.ELU()
        self.head = SplineConv(16, classes)

    def embed(self, given: Inputs) -> Tensor:
        x = self._drop_input(given.x)
        return self.hidden(self.first(x, given.edges, given.position))

    def top(self, hidden: Tensor, given: Inputs) -> Tensor:
        return self.head(hidden, given.edges, given.position)


class GAT(Network):
    """Veličković et al. 2018; 8 heads of 8."""

    def __init__(self, features: int, classes: int, regularisation: Regularisation) -> None:
        super().__init__(regularisation)
        attention = regularisation.attention
        self.first = pyg.GATConv(features, 8, heads=8, dropout=attention)
        self.hidden = nn.ELU()
        self.head = pyg.GATConv(64, classes, dropout=attention)

    def embed(self, given: Inputs) -> Tensor:
        return self.hidden(self.first(self._drop_input(given.x), given.edges))


class DNANet(Network):
    """Fey 2019: every layer attends to all states before it. 5 layers of 128 in the paper."""

    points = ("states.*",)
    error_at = None  # the head is a linear map alone

    def __init__(
        self,
        features: int,
        classes: int,
        regularisation: Regularisation,
        width: int = 128,
        layers: int = 5,
    ) -> None:
        super().__init__(regularisation)
        r = regularisation
        self.first = nn.Linear(features, width)
        self.convolutions = nn.ModuleList(
            DNAConv(width, heads=8, groups=16, dropout=r.attention) for _ in range(layers)
        )
        self.states = nn.ModuleList(nn.ReLU() for _ in range(1 + layers))
        self.head = nn.Linear(width, classes)

    def embed(self, given: Inputs) -> Tensor:
        state = self.states[0](self.first(self._drop_input(given.x)))
        history = self._drop_hidden(state).unsqueeze(1)
        for convolution, activation in zip(self.convolutions, self.states[1:], strict=True):
            state = activation(convolution(history, given.edges))
            history = torch.cat([history, state.unsqueeze(1)], dim=1)
        return state

    def top(self, hidden: Tensor, given: Inputs) -> Tensor:
        return self.head(hidden)


class Architecture(NamedTuple):
    """``normalised``: whether the features of a node sum to 1. ``variants``: the regularisations
    that the grid offers to each method. ``steps``: of a run; ``quick``: of one with --quick."""

    line: str
    build: Callable[[int, int, Regularisation], Network]
    variants: dict[str, Regularisation]
    normalised: bool = True
    steps: int = 300
    quick: int = 60


def _wide_cheb(features: int, classes: int, regularisation: Regularisation) -> ChebNet:
    return ChebNet(features, classes, regularisation, width=64)


def _small_dna(features: int, classes: int, regularisation: Regularisation) -> DNANet:
    return DNANet(features, classes, regularisation, width=64, layers=3)


# "strong" is what the architectures were published with for backpropagation. "light" is what the
# paper found DFA to want: weight decay 1e-4 and little dropout. "inputs" drops features too.
_HIDDEN = {
    "strong": Regularisation(hidden=0.5, decay=5e-4),
    "light": Regularisation(hidden=0.1, decay=1e-4),
    "inputs": Regularisation(input=0.5, hidden=0.5, decay=5e-4),
}
_DNA = {
    "strong": Regularisation(0, 0.5, 0.8, 5e-4, 5e-4),
    "light": Regularisation(0, 0.1, 0.1, 1e-4, 1e-4),
}
ARCHITECTURES = {
    "gcn": Architecture("graph convolutions, 16 hidden", GCN, _HIDDEN),
    "cheb": Architecture("Chebyshev polynomials of two terms, 16 hidden", ChebNet, _HIDDEN),
    "cheb-wide": Architecture("the same, 64 hidden", _wide_cheb, _HIDDEN),
    "spline": Architecture(
        "splines of one dimension, 16 hidden",
        SplineNet,
        {
            "strong": Regularisation(0.5, 0.5, 0, 5e-3, 5e-3),
            "light": Regularisation(0.1, 0.1, 0, 1e-3, 1e-3),
        },
        normalised=False,
    ),
    "gat": Architecture(
        "graph attention, 8 heads of 8",
        GAT,
        {
            "strong": Regularisation(0.6, 0.6, 0.6, 5e-4, 5e-4),
            "light": Regularisation(0.1, 0.1, 0.1, 1e-4, 1e-4),
        },
    ),
    "dna": Architecture(
        "dynamic neighbourhood aggregation, 5 layers of 128", DNANet, _DNA, False, quick=12
    ),
    "dna-small": Architecture("the same, 3 layers of 64", _small_dna, _DNA, False, steps=100),
    "gae": Architecture(
        "graph autoencoder, 32 hidden and 16 in its embedding",
        Encoder,
        {"plain": Regularisation(), "light": Regularisation(hidden=0.1, decay=1e-4)},
    ),
}
