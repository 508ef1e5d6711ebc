"""A graph whose nodes have features and classes, and what the networks are given of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import degree

#: Features with fewer non-zeros than this share are multiplied as a sparse matrix: from about
#: here on that is faster on a CPU than the dense product (Cora has 1.3 %, PubMed 10 %).
SPARSE = 0.05


class Graph(NamedTuple):
    """N nodes.

    ``x``: (N, F) features. ``edges``: (2, E), both directions of each, no loops, no duplicates.
    ``y``: (N,) classes, −1 where a node has none. ``train``, ``validation``, ``test``: nodes.
    """

    name: str
    x: Tensor
    edges: Tensor
    y: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1

    def describe(self) -> dict[str, int]:
        return {
            "nodes": len(self.x),
            "edges": self.edges.shape[1] // 2,
            "features": self.x.shape[1],
            "classes": self.classes,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }


class Inputs(NamedTuple):
    """What a forward pass takes.

    ``x``: (N, F), sparse where that pays. ``edges``: (2, E), source over target. ``position``:
    (E, 1), the degree of an edge's target over the greatest one: where on its spline an edge is.
    """

    x: Tensor
    edges: Tensor
    position: Tensor


def inputs(graph: Graph, normalised: bool) -> Inputs:
    """``normalised``: the features of each node sum to 1 (those of a node without any to 0)."""
    x = F.normalize(graph.x, p=1) if normalised else graph.x
    if float((x != 0).float().mean()) < SPARSE:
        x = x.to_sparse().coalesce()
    degrees = degree(graph.edges[1], len(graph.x))
    position = degrees[graph.edges[1]] / degrees.max().clamp(min=1)
    return Inputs(x, graph.edges, position[:, None])


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout, of sparse features too: dropping a zero changes nothing."""
    if not x.is_sparse:
        return F.dropout(x, p, training)
    if not training or p == 0:
        return x
    values = F.dropout(x.values(), p)
    return torch.sparse_coo_tensor(
        x.indices(), values, x.shape, is_coalesced=True, check_invariants=False
    )
