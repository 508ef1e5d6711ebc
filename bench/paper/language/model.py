"""The decoder-only Transformer of the paper, once for every method.

    tokens ─ embed ─ block ─ … ─ block ─ norm ─ head ─ logits

A block is post-norm: x ← norm1(x + attend(x)), x ← norm2(x + contract(relu(expand(x)))). The last
norm, which the paper's code lacks, stands between the last point and the error point, so that
every block learns from feedback, the last one too. The error is as wide as the model where the
error point is ``norm`` (the paper's choice), as the vocabulary where it is ``head``.

The embedding is below the first point: what it learns comes through the first block, from that
block's point. `shallow` trains ``norm`` and ``head`` on top of random blocks and embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dfa_kernels as dfa
from bench.paper.language import attention

#: Where the feedback enters: at the end of each block; at two places inside it as well.
POINTS = {
    "macro": ("blocks.*",),
    "micro": ("blocks.*.norm1", "blocks.*.expand", "blocks.*"),
}
ERROR_AT = {"before": "norm", "after": "head"}  # the projection to the vocabulary

_EMBEDDING = 0.1  # initial weights of embedding and head are uniform in ± this


@dataclass(frozen=True)
class Size:
    blocks: int
    width: int
    heads: int
    hidden: int
    context: int
    dropout: float


PAPER = Size(blocks=6, width=512, heads=8, hidden=2048, context=128, dropout=0.1)
SMALL = Size(blocks=2, width=64, heads=4, hidden=256, context=64, dropout=0.0)
QUICK = Size(blocks=2, width=32, heads=4, hidden=128, context=32, dropout=0.0)


class Block(nn.Module):
    def __init__(self, size: Size, kind: str) -> None:
        super().__init__()
        attend = attention.KINDS[kind]
        self.attend = attend(size.width, size.heads, size.context, size.dropout)
        self.norm1 = nn.LayerNorm(size.width)
        self.expand = dfa.Linear(size.width, size.hidden, activation="relu")
        self.contract = nn.Linear(size.hidden, size.width)
        self.norm2 = nn.LayerNorm(size.width)
        self.drop = nn.Dropout(size.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.drop(self.attend(x)))
        return self.norm2(x + self.drop(self.contract(self.drop(self.expand(x)))))


class Transformer(nn.Module):
    """(N, T) token numbers → (N, T, vocabulary) logits of the token that follows each."""

    positions: Tensor

    def __init__(self, size: Size, vocabulary: int, kind: str = "standard") -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, size.width)
        self.drop = nn.Dropout(size.dropout)
        self.blocks = nn.ModuleList(Block(size, kind) for _ in range(size.blocks))
        self.norm = nn.LayerNorm(size.width)
        self.head = dfa.Linear(size.width, vocabulary)
        self.register_buffer("positions", sinusoids(size.context, size.width), persistent=False)
        nn.init.uniform_(self.embed.weight, -_EMBEDDING, _EMBEDDING)
        nn.init.uniform_(self.head.weight, -_EMBEDDING, _EMBEDDING)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) * math.sqrt(self.embed.embedding_dim)
        x = self.drop(x + self.positions[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def sinusoids(context: int, width: int) -> Tensor:
    """(T, width): sin and cos of t / 10000^(2i/width), in turn (Vaswani et al. 2017, 3.5)."""
    rates = 10000.0 ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(context).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
