"""Five click-through models, each defined once for every method.

Field f of a row holds one of ``sizes[f]`` values, i; e = E[offset_f + i] is its embedding. The
output is one logit a row: a scalar error, so that every B is one vector.

    fm       Σ w + Σ_{f<g} ⟨e_f, e_g⟩                             Rendle 2010
    deepfm   fm + v·tower(e)                                       Guo et al. 2017
    dcn      v·[cross(e), tower(e)],  x ← x0·⟨w, x⟩ + b + x        Wang et al. 2017
    autoint  Σ w + v·relu(attention(e·A) + e·R) + u·tower(e)       Song et al. 2019
    afn      Σ w + v·tower(relu(exp(W·log(1 + |e|)) − 1))          Cheng et al. 2020

Points are where the paper has them: every layer of the tower; in dcn the embeddings, every cross
layer and the stack of both branches; in autoint the embeddings, their projection and every
attention layer; in afn the logarithmic layer. DeepFM's embeddings learn through the FM alone
unless ``embeddings_learn_from_tower``, which is for backpropagation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dfa_kernels as dfa


@dataclass(frozen=True)
class Sizes:
    """What a model is built with; each takes what it has a use for."""

    embedding: int
    tower: tuple[int, ...] = ()
    cross_layers: int = 0
    attention: int = 0
    heads: int = 1
    attention_layers: int = 0
    logarithmic: int = 0
    dropout: float = 0.0
    norm: bool = True


#: The sizes of the paper's code.
PAPER = {
    "fm": Sizes(16),
    "deepfm": Sizes(10, (400, 400, 400)),
    "dcn": Sizes(16, (1024, 1024), cross_layers=6),
    "autoint": Sizes(16, (400, 400, 400), attention=32, heads=2, attention_layers=3),
    "afn": Sizes(10, (400, 400, 400), logarithmic=1500),
}

#: The same architectures at the width of two cores.
SMALL = {
    "fm": Sizes(10),
    "deepfm": Sizes(10, (128, 128, 128)),
    "dcn": Sizes(10, (128, 128), cross_layers=3),
    "autoint": Sizes(10, (128, 128, 128), attention=16, heads=2, attention_layers=2),
    "afn": Sizes(10, (128, 128, 128), logarithmic=64),
}


class Model(nn.Module):
    """Embeddings, and what every model needs of its fields.

    ``points``: where the projected error enters. ``tower``: what the frozen control freezes; a
    factorization machine has none.

    Shape: (N, fields) of integers → (N, 1) logits.
    """

    offsets: Tensor
    tower: Tower

    def __init__(self, fields: Sequence[int], sizes: Sizes) -> None:
        super().__init__()
        ends = torch.tensor(fields).cumsum(0)
        self.register_buffer("offsets", ends - torch.tensor(fields), persistent=False)
        self.embedding = nn.Embedding(int(ends[-1]), sizes.embedding)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.width = len(fields) * sizes.embedding

    @property
    def points(self) -> list[nn.Module]:
        return self.tower.points

    def rows_of(self, ids: Tensor) -> Tensor:
        """Which rows of the embedding table the fields' values are."""
        return ids + self.offsets


class Tower(nn.Sequential):
    """Linear layers with relu: `dfa_kernels.Linear`, or with batch normalisation between the two
    as in the paper, blocks that autograd goes through."""

    def __init__(self, width: int, sizes: Sizes) -> None:
        super().__init__()
        self.points: list[nn.Module] = []
        for wide in sizes.tower:
            if sizes.norm:
                layer: nn.Module = nn.Sequential(
                    nn.Linear(width, wide), nn.BatchNorm1d(wide), nn.ReLU(),
                    nn.Dropout(sizes.dropout),
                )  # fmt: skip
                self.append(layer)
            else:
                layer = dfa.Linear(width, wide, activation="relu")
                self.append(layer)
                self.append(nn.Dropout(sizes.dropout))
            self.points.append(layer)
            width = wide
        self.out_features = width


class FirstOrder(nn.Module):
    """Σ w_i + b: a logistic regression on the fields' values."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.weight = nn.Embedding(values, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.weight.weight)

    def forward(self, rows: Tensor) -> Tensor:
        return self.weight(rows).sum(1) + self.bias


class FM(Model):
    def __init__(self, fields: Sequence[int], sizes: Sizes) -> None:
        super().__init__(fields, sizes)
        self.first_order = FirstOrder(self.embedding.num_embeddings)

    @property
    def points(self) -> list[nn.Module]:
        return []

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.rows_of(ids)
        return self.first_order(rows) + pairwise(self.embedding(rows))


def pairwise(embedded: Tensor) -> Tensor:
    """Σ_{f<g} ⟨e_f, e_g⟩ = ½ Σ_k [(Σ_f e_fk)² − Σ_f e_fk²]. Shape: (N, F, E) → (N, 1)."""
    return 0.5 * (embedded.sum(1).square() - embedded.square().sum(1)).sum(1, keepdim=True)


class DeepFM(Model):
    def __init__(self, fields: Sequence[int], sizes: Sizes) -> None:
        super().__init__(fields, sizes)
        self.first_order = FirstOrder(self.embedding.num_embeddings)
        self.tower = Tower(self.width, sizes)
        self.head = nn.Linear(self.tower.out_features, 1)
        self.embeddings_learn_from_tower = True

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.rows_of(ids)
        embedded = self.embedding(rows)
        seen = embedded if self.embeddings_learn_from_tower else embedded.detach()
        deep = self.head(self.tower(seen.flatten(1)))
        return self.first_order(rows) + pairwise(embedded) + deep


class CrossLayer(nn.Module):
    """x0·⟨w, x⟩ + b + x. Shape: (N, D), (N, D) → (N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        return first * self.weight(x) + self.bias + x


class DeepCross(Model):
    def __init__(self, fields: Sequence[int], sizes: Sizes) -> None:
        super().__init__(fields, sizes)
        self.tower = Tower(self.width, sizes)
        self.cross = nn.ModuleList(CrossLayer(self.width) for _ in range(sizes.cross_layers))
        self.stack = nn.Identity()
        self.head = nn.Linear(self.width + self.tower.out_features, 1)

    @property
    def points(self) -> list[nn.Module]:
        # The last cross layer learns from the stack.
        return [self.embedding, *self.tower.points, *self.cross[:-1], self.stack]

    def forward(self, ids: Tensor) -> Tensor:
        first = x = self.embedding(self.rows_of(ids)).flatten(1)
        for layer in self.cross:
            x = layer(first, x)
        return self.head(self.stack(torch.cat((x, self.tower(first)), 1)))


class SelfAttention(nn.Module):
    """Every field attends to every field. Shape: (N, F, A) → (N, F, A)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class AutoInt(Model):
    def __init__(self, fields: Sequence[int], sizes: Sizes) -> None:
        super().__init__(fields, sizes)
        self.first_order = FirstOrder(self.embedding.num_embeddings)
        self.project = nn.Linear(sizes.embedding, sizes.attention)
        self.attention = nn.ModuleList(
            SelfAttention(sizes.attention, sizes.heads, sizes.dropout)
            for _ in range(sizes.attention_layers)
        )
        self.residual = nn.Linear(sizes.embedding, sizes.attention)
        self.interaction = nn.ReLU()
        self.interaction_head = nn.Linear(len(fields) * sizes.attention, 1)
        self.tower = Tower(self.width, sizes)
        self.head = nn.Linear(self.tower.out_features, 1)

    @property
    def points(self) -> list[nn.Module]:
        # The last attention layer and the residual learn from their sum.
        cross = [self.project, *self.attention[:-1], self.interaction]
        return [self.embedding, *cross, *self.tower.points]

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.rows_of(ids)
        embedded = self.embedding(rows)
        x = self.project(embedded)
        for layer in self.attention:
            x = layer(x)
        x = self.interaction(x + self.residual(embedded))
        deep = self.head(self.tower(embedded.flatten(1)))
        return self.first_order(rows) + self.interaction_head(x.flatten(1)) + deep


class Logarithmic(nn.Module):
    """Products of powers of the fields, learned: relu(exp(W·log(1 + |e|) + b) − 1).

    Shape: (N, F, E) → (N, L·E).
    """

    def __init__(self, fields: int, neurons: int) -> None:
        super().__init__()
        self.combine = nn.Linear(fields, neurons)

    def forward(self, embedded: Tensor) -> Tensor:
        powers = self.combine(embedded.abs().log1p().transpose(1, 2))  # (N, E, L)
        return F.relu(powers.expm1()).flatten(1)


class AFN(Model):
    def __init__(self, fields: Sequence[int], sizes: Sizes) -> None:
        super().__init__(fields, sizes)
        self.first_order = FirstOrder(self.embedding.num_embeddings)
        self.logarithmic = Logarithmic(len(fields), sizes.logarithmic)
        self.tower = Tower(sizes.logarithmic * sizes.embedding, sizes)
        self.head = nn.Linear(self.tower.out_features, 1)

    @property
    def points(self) -> list[nn.Module]:
        return [self.logarithmic, *self.tower.points]

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.rows_of(ids)
        deep = self.head(self.tower(self.logarithmic(self.embedding(rows))))
        return self.first_order(rows) + deep


MODELS: dict[str, type[Model]] = {
    "deepfm": DeepFM, "dcn": DeepCross, "autoint": AutoInt, "afn": AFN, "fm": FM,
}  # fmt: skip
