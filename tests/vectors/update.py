"""`update` of csrc through the public operations, against the three-way oracle, on whichever
machine runs its kernels: the emulator (tests/emulated) or a GPU (tests/gpu).

`CASES` are what a GPU is asked first: every dtype, rule and tile, δ stored and made on the fly.
"""

import itertools
import os
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

import torch

from dfa_kernels.backends.contract import RULES, Segment
from dfa_kernels.backends.cuda import rules
from dfa_kernels.feedback import Feedback
from tests.interpreted.oracle import check_step, record, stepped

FLOATS = torch.float32, torch.bfloat16, torch.float16
# Multiprocessors that a launch is told of: tiles are large where they are as many.
LARGE, SMALL = 1, 1000
DELTAS = rules.STORED, rules.ON_THE_FLY


@contextmanager
def told(number, delta):
    """Have the rules believe in a device of so many multiprocessors, and make δ so."""
    with ExitStack() as stack:
        device = rules.Device(0, number)
        stack.enter_context(mock.patch.object(rules, "device_of", lambda _: device))
        stack.enter_context(mock.patch.dict(os.environ, {rules.VARIABLE: delta}))
        yield


class Edge(NamedTuple):
    """A tile, each of its sizes one less, the same, or one more than whole."""

    dtype: torch.dtype
    delta: str
    number: int
    edge: int

    def check(self, machine):
        edge, large, fly = self.edge, self.number == LARGE, self.delta == rules.ON_THE_FLY
        n, d, k, *_ = machine.core.update_tile(rules.compute(self.dtype), large, fly)
        error = torch.randn(n + edge, 17 + edge).to(self.dtype)
        layer = record(n + edge, k + edge, d + edge, dtype=self.dtype)
        with told(self.number, self.delta):
            check_step(Feedback(), "sgd", [stepped("sgd", [Segment(error, 0.1, layer)])])


class Network(NamedTuple):
    """Layers of other widths; segments of other lengths, widths of errors, scales, streams,
    activations and rows, one of them empty."""

    dtype: torch.dtype
    delta: str
    number: int
    rule: str

    def check(self, machine):
        dtype, rule = self.dtype, self.rule
        updates = [[], [], []]
        for i, n in enumerate((1, 40, 0, 17, 33)):
            error = torch.randn(n, (10, 32, 16, 5, 4)[i]).to(dtype)
            layers = [
                record(n, 9, 20, ("tanh", "gelu", "relu")[i % 3], i % 2, dtype=dtype),
                record(n, 20, 133, "identity", 0, 1 + i % 2, dtype=dtype),
                record(n, 133, 8, "sigmoid", 1, dtype=dtype),
            ]
            for kept, layer in zip(updates, layers[: 3 - i % 2], strict=False):
                kept.append(Segment(error, 0.1 * (i + 1), layer))
        made = [stepped(rule, s, bias=i != 1) for i, s in enumerate(updates)]
        with told(self.number, self.delta):
            check_step(Feedback(), rule, made)


EDGES = [Edge(*axes) for axes in itertools.product(FLOATS, DELTAS, (LARGE, SMALL), (-1, 0, 1))]
NETWORKS = [Network(*axes) for axes in itertools.product(FLOATS, DELTAS, (LARGE, SMALL), RULES)]
CASES = [*EDGES, *NETWORKS]
