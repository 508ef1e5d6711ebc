"""Three of torch_geometric's layers, so arranged that a CPU can train with them.

They compute the same functions from the same parameters. What is linear is done before edges are
gathered and not after: Cora has 1433 features and gathering them for its 10,556 edges costs ninety
times what gathering 16 hidden ones does. ``projected`` is an identity that sees what a layer makes
of each node before the graph mixes it: where an error point can stand.
"""

from __future__ import annotations

import math

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.nn.conv.dna_conv import restricted_softmax
from torch_geometric.nn.conv.gcn_conv import gcn_norm


class ChebConv(pyg.ChebConv):
    """out = Σₖ Tₖ(L̂)·x·Wₖ + b (Defferrard et al. 2016), by Clenshaw's recurrence over x·Wₖ:

        cₖ = x·Wₖ + 2·L̂·cₖ₊₁ − cₖ₊₂        out = x·W₀ + L̂·c₁ − c₂ + b

    The normalised Laplacian L̂ is made once, of the first graph seen.
    """

    _laplacian: tuple[Tensor, Tensor] | None = None

    def __init__(self, in_channels: int, out_channels: int, K: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, K, bias=bias)
        self.projected = nn.Identity()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self._laplacian is None:
            self._laplacian = self.__norm__(
                edge_index, x.size(0), None, self.normalization, dtype=x.dtype
            )
        edges, norm = self._laplacian
        nodes = self.projected(torch.cat([lin(x) for lin in self.lins], dim=1))
        terms = nodes.split(self.out_channels, dim=1)
        above: Tensor | None = None  # cₖ₊₁
        second: Tensor | None = None  # cₖ₊₂
        for k in reversed(range(len(terms))):
            here = terms[k]
            if above is not None:
                spread = self.propagate(edges, x=above, norm=norm)
                here = here + (spread if k == 0 else 2 * spread)
            if second is not None:
                here = here - second
            above, second = here, above
        assert above is not None
        return above if self.bias is None else above + self.bias


class SplineConv(pyg.MessagePassing):
    """SplineCNN's layer (Fey et al. 2018) for one dimension, two knots and degree 1:

        out_i = mean over edges j→i of x_j·((1 − u)·W₀ + u·W₁)  +  x_i·R + b

    with u ∈ [0, 1] where the edge is on its spline. torch_geometric's own layer needs compiled
    code that its package index entry does not bring.

    Shape: x (N, in), edge_index (2, E), position u (E, 1) → (N, out).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(aggr="mean")
        self.weight = nn.Parameter(torch.empty(2, in_channels, out_channels))
        self.root = pyg.Linear(in_channels, out_channels, bias=False, weight_initializer="uniform")
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.projected = nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.weight[..., 0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        self.root.reset_parameters()
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, edge_index: Tensor, position: Tensor) -> Tensor:
        nodes = torch.cat([x @ self.weight[0], x @ self.weight[1], self.root(x)], dim=1)
        start, end, root = self.projected(nodes).chunk(3, dim=1)
        mean = self.propagate(edge_index, start=start, end=end, position=position)
        return mean + root + self.bias

    def message(self, start_j: Tensor, end_j: Tensor, position: Tensor) -> Tensor:
        return torch.lerp(start_j, end_j, position)


class DNAConv(pyg.DNAConv):
    """Dynamic neighbourhood aggregation (Fey 2019): a node attends, with its last state, to all
    earlier states of each neighbour. Queries, keys and values are made once a node, not an edge.

    Shape: x (N, L, C), edge_index (2, E) → (N, C).
    """

    _normalised: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self._normalised is None:
            self._normalised = gcn_norm(edge_index, None, x.size(0), dtype=x.dtype)
        edges, weight = self._normalised
        heads = self.multi_head
        split = (heads.heads, heads.out_channels // heads.heads)
        query = heads.lin_q(x[:, -1:]).unflatten(-1, split)
        key, value = (make(x).unflatten(-1, split) for make in (heads.lin_k, heads.lin_v))
        out = self.propagate(edges, query=query, key=key, value=value, edge_weight=weight)
        return out.flatten(1)

    def message(
        self, query_i: Tensor, key_j: Tensor, value_j: Tensor, edge_weight: Tensor
    ) -> Tensor:
        """(E, 1, H, c) and twice (E, L, H, c) → (E, H, c)."""
        score = (query_i * key_j).sum(-1) / math.sqrt(query_i.size(-1))
        share = restricted_softmax(score, dim=1)
        share = nn.functional.dropout(share, self.multi_head.dropout, self.training)
        return edge_weight.view(-1, 1, 1) * (share.unsqueeze(-1) * value_j).sum(1)
