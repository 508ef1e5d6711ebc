"""The models and the cases that `test_distributed` and its worker processes agree on."""

import torch
from models import Classifier, Residual, mlp
from torch import nn

import dfa_kernels as dfa

ROWS = 8


def numbers(rows):
    return torch.linspace(-2, 2, rows * 5).reshape(rows, 5).sin()


def ids(rows):
    return torch.arange(rows) % 11


def blocks():
    """Each block backpropagates inside itself, and so needs its weights again."""
    return nn.Sequential(nn.Linear(5, 6), Residual(6), Residual(6), nn.Linear(6, 3))


def normed():
    """The second layer and the head hand the norms their gradients: opaque, though fused ones."""
    return nn.Sequential(
        *(dfa.Linear(5, 7, activation="tanh"), nn.LayerNorm(7)),
        *(dfa.Linear(7, 6, activation="tanh"), nn.LayerNorm(6), dfa.Linear(6, 3)),
    )


class Unused(nn.Module):
    """A layer that no forward pass reaches, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.body, self.idle = dfa.fuse(mlp((5, 7, 6, 3))), nn.Linear(4, 4)
        self.body[0].requires_grad_(False)

    def forward(self, x):
        return self.body(x)


MODELS = {
    "fused": (lambda: dfa.fuse(mlp()), {}, numbers),
    "opaque": (mlp, {}, numbers),
    "own matrices": (mlp, {"feedback": dfa.Feedback("uniform", shared=False)}, numbers),
    "from_matrix": (mlp, {"feedback": dfa.Feedback.from_matrix(torch.ones(3, 13))}, numbers),
    "blocks": (blocks, {"points": ["0", "1", "2"]}, numbers),
    "normed": (normed, {}, numbers),
    "embedding": (Classifier, {}, ids),
    "unused": (Unused, {}, numbers),
    "shallow": (lambda: dfa.fuse(mlp()), {"method": "shallow"}, numbers),
}

DDP = {
    **{f"ddp {kind}": {"kind": kind} for kind in MODELS if kind not in ("unused", "shallow")},
    "ddp unused": {"kind": "unused", "find_unused_parameters": True},
    "ddp shallow": {"kind": "shallow", "find_unused_parameters": True},
    "ddp fused, accumulated": {"kind": "fused", "accumulate": True},
    "ddp opaque, accumulated": {"kind": "opaque", "accumulate": True},
}

FSDP = {
    f"fsdp {kind}, {'resharded' if reshard else 'kept'}, {first} first": {
        "kind": kind,
        "reshard": reshard,
        "first": first,
    }
    for kind in ("fused", "opaque", "blocks", "normed", "embedding", "from_matrix")
    for reshard in (True, False)
    for first in ("wrapped", "sharded")
}
LOW = {
    f"fsdp {kind} in bf16": {
        "kind": kind,
        "reshard": True,
        "first": "wrapped",
        "low_precision": True,
    }
    for kind in ("fused", "blocks")
}
FSDP.update(LOW)
