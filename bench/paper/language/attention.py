"""Four ways for a position to look at those before it, each (N, T, width) → (N, T, width).

    standard   softmax(q·kᵀ/√d)·v (Vaswani et al. 2017)
    fixed      four heads whose weights are given, not learnt (Raganato et al. 2020)
    dense      a Synthesizer: a perceptron on each position writes its row of logits
    random     a Synthesizer: one learnt matrix of logits for all inputs (Tay et al. 2020)

Sizes, initial weights and what each head sees are those of the paper's code. Its dense Synthesizer
orders sequences and heads differently in the weights and in the values, so that sequences mix;
ours does not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Standard(nn.Module):
    def __init__(self, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.enter = nn.Linear(width, 3 * width)
        self.leave = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_split(part, self.heads) for part in self.enter(x).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.leave(_join(y))


class Fixed(nn.Module):
    """Its heads see: the position itself; the one before; all up to three before, alike; the same,
    with the weight (j + 1)³ for position j. Where there is none, the first one."""

    HEADS = 4
    weights: Tensor

    def __init__(self, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Linear(width, width)
        self.register_buffer("weights", fixed_weights(context), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        v = _split(self.enter(x), self.HEADS)
        return _join(self.weights[:, :length, :length].to(v.dtype) @ v)


def fixed_weights(context: int) -> Tensor:
    """(4, T, T): what position i takes from position j; every row sums to 1."""
    before = torch.ones(context, context).tril(-3)
    cubes = before * torch.arange(1, context + 1) ** 3
    previous = torch.eye(context).roll(-1, dims=1).tril()
    heads = torch.stack([torch.eye(context), previous, before, cubes])
    sums = heads.sum(-1, keepdim=True)
    first = torch.zeros(context)
    first[0] = 1
    return torch.where(sums > 0, heads / sums.clamp_min(1), first)


class Dense(nn.Module):
    """Logits for all T positions from a position's own features: two layers for each head."""

    def __init__(self, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        each = width // heads
        hidden = max(each, context)
        self.enter = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, width)
        self.weight1 = _logits(heads, each, hidden)
        self.bias1 = nn.Parameter(torch.zeros(heads, 1, hidden))
        self.weight2 = _logits(heads, hidden, context)
        self.bias2 = nn.Parameter(torch.zeros(heads, 1, context))

    def forward(self, x: Tensor) -> Tensor:
        seen, v = (_split(part, self.heads) for part in self.enter(x).chunk(2, dim=-1))
        logits = F.relu(seen @ self.weight1 + self.bias1) @ self.weight2 + self.bias2
        return self.leave(_join(_causal(logits, self.dropout * self.training) @ v))


class Random(nn.Module):
    def __init__(self, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.enter = nn.Linear(width, width)
        self.leave = nn.Linear(width, width)
        self.logits = _logits(heads, context, context)

    def forward(self, x: Tensor) -> Tensor:
        v = _split(self.enter(x), self.heads)
        logits = self.logits[:, : x.shape[1]].to(v.dtype)
        return self.leave(_join(_causal(logits, self.dropout * self.training) @ v))


KINDS: dict[str, type[nn.Module]] = {
    "standard": Standard,
    "fixed": Fixed,
    "dense": Dense,
    "random": Random,
}


def _logits(*shape: int) -> nn.Parameter:
    """Near zero, so that a head begins by looking everywhere alike: PyTorch counts rows times
    columns as the fan of a stack of matrices."""
    weight = torch.empty(shape)
    nn.init.kaiming_uniform_(weight)
    return nn.Parameter(weight)


def _causal(logits: Tensor, dropout: float) -> Tensor:
    """Softmax over the positions up to each row's own."""
    length = logits.shape[-2]
    logits = logits[..., :length]
    later = torch.ones(length, length, dtype=torch.bool, device=logits.device).triu(1)
    weights = logits.masked_fill(later, float("-inf")).softmax(-1)
    return F.dropout(weights, dropout)


def _split(x: Tensor, heads: int) -> Tensor:
    """(N, T, width) → (N, heads, T, width / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
