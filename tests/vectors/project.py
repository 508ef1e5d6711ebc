"""`project` of csrc, element by element against fp64, on whichever machine runs its kernels: the
emulator (tests/emulated) or a GPU (tests/gpu).

`CASES` are what a GPU is asked first: every compute type, distribution and tile, at its edges.
"""

import itertools
import math
from typing import Any, NamedTuple

import torch

from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.backends.contract import HEAD
from dfa_kernels.backends.cuda import project, rules
from dfa_kernels.backends.cuda.launch import Launcher
from dfa_kernels.backends.grouped.plan import Group, Target
from dfa_kernels.feedback import DISTRIBUTIONS, Feedback

FORWARD = {f.name: f for f in ACTIVATIONS}
FLOATS = torch.float32, torch.bfloat16, torch.float16
# What csrc/tables.h computes in: its code, the dtype that its operands are rounded to, and how far.
COMPUTE = {
    "bf16": (0, torch.bfloat16, 2**-8),
    "f16": (1, torch.float16, 2**-11),
    "tf32": (2, torch.float32, 2**-11),
    "f32": (3, torch.float32, 0.0),
}
OWN = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
ALLOWED = {"rademacher": 0.0, "uniform": 0.0, "matrix": 0.0, "normal": 1e-5}


class Machine(NamedTuple):
    """What runs the kernels: the compiled module, and where its tensors are."""

    core: Any
    device: torch.device

    def tile(self, compute, large):
        """N, D, E of a program's tile, and the rest that csrc/launch.h tells."""
        return self.core.project_tile(COMPUTE[compute][0], large)

    def run(self, groups, feedback, compute=None, large=False):
        """Launch `project` as Python does, but in `compute` if that is given."""
        # As many multiprocessors as tiles at the most: large ones.
        device = rules.Device(0, 1 if large else 1 << 20)
        launches = project.launches(groups, feedback, device)
        if compute is not None:
            code = COMPUTE[compute][0]
            launches = [made._replace(table=[code, *made.table[1:]]) for made in launches]
        Launcher(self.core).run(launches, self.device)

    def check(self, groups, feedback, compute=None, large=False):
        """Run, and compare each element with fp64: it may be off by what e and B lose where they
        are rounded, by fp32's noise of a sum, and by one rounding of the result."""
        run = [g._replace(targets=[t for t, _ in g.targets]) for g in groups]
        self.run(run, feedback, compute, large)
        for i, (error, scale, stream, targets) in enumerate(groups):
            for j, (reader, out) in enumerate(targets):
                made = reader.out.double()
                assert (made[:, reader.width :] == 0).all(), "padding is not zero"
                truth, slack = _truth(error, scale, stream, reader, feedback, compute)
                wrong = ~((made[:, : reader.width] - truth).abs() <= slack)
                assert not wrong.any(), (i, j, wrong.nonzero()[:4].tolist(), int(wrong.sum()))
                out.check_outside()


def given(distribution, error_width, seed=2**40 + 7):
    if distribution != "matrix":
        return Feedback(distribution, seed)
    return Feedback.from_matrix(torch.randn(error_width, 301))


class Out:
    """δ (rows, columns) among NaN: `view` is written, and nothing beside it may be."""

    def __init__(self, rows, columns, dtype, offset=8):
        self.whole = torch.full((rows + 2, columns + 24 - columns % 8), math.nan, dtype=dtype)
        self.view = self.whole[1 : rows + 1, offset : offset + columns]

    def check_outside(self):
        self.view.fill_(math.nan)
        assert self.whole.isnan().all(), "written outside"


def target(rows, width, dtype, activation="identity", repeat=1, padded=None, offset=8):
    """Somebody who reads a projection of `rows` rows, and the memory it lies in."""
    out = Out(rows * repeat, padded or width, dtype, offset)
    if activation == "identity":
        return Target(out.view, width, repeat), out
    a = torch.randn(rows * repeat, width)
    f = FORWARD[activation]
    saved = Out(rows * repeat, width, dtype, offset).view
    saved.copy_(a if f.from_preactivations else f.forward_(a))
    return Target(out.view, width, repeat, saved, activation), out


def _truth(error, scale, stream, reader, feedback, compute):
    """δ in fp64, and by how much each of its elements may be off."""
    compute = compute or OWN[torch.promote_types(error.dtype, reader.out.dtype)]
    _, dtype, rounding = COMPUTE[compute]
    noise = (16 + error.shape[1]) * 2**-24
    if stream == HEAD:
        product = error.double()[:, : reader.width]
        size = product.abs()
    else:
        e = error.to(dtype).double()
        b = feedback.matrix(
            error.shape[1], reader.width, stream, dtype=torch.float64, device=error.device
        )
        product, size = e @ b * scale, e.abs() @ b.abs() * abs(scale)
        noise += ALLOWED[feedback.distribution]
        noise += rounding if feedback.distribution in ("normal", "matrix") else 0.0
        noise += rounding if compute == "tf32" else 0.0  # of e
    share = math.sqrt(reader.rows)
    truth = product.repeat_interleave(reader.rows, 0) / share
    size = size.repeat_interleave(reader.rows, 0) / share
    if reader.saved is not None:
        truth = FORWARD[reader.activation].backward(truth, reader.saved.double())
    last = torch.finfo(reader.out.dtype)
    return truth, 1.2 * noise * size + last.eps / 2 * truth.abs() + last.tiny * last.eps


# Cases -------------------------------------------------------------------------------------------


class Edge(NamedTuple):
    """A tile, its number of rows and columns one less, the same, or one more than whole."""

    compute: str
    distribution: str
    large: bool
    edge: int

    def check(self, machine):
        n, d, k, *_ = machine.tile(self.compute, self.large)
        rows, width, error_width = n + self.edge, d + self.edge, 2 * k + self.edge
        error = torch.randn(rows, error_width).to(COMPUTE[self.compute][1])
        groups = [Group(error, 0.3, 3, [target(rows, width, error.dtype, "tanh")])]
        machine.check(groups, given(self.distribution, error_width), self.compute, self.large)


class Network(NamedTuple):
    """Groups of several rows, widths and streams, one empty, one a head, each with its targets, in
    one launch."""

    dtype: torch.dtype
    large: bool

    def check(self, machine):
        dtype = self.dtype
        a, b, none = (torch.randn(n, 24).to(dtype) for n in (37, 5, 0))
        pair = [target(37, 7, dtype, "relu", padded=8), target(37, 300, dtype, "gelu")]
        groups = [
            Group(a, 0.3, 0, pair),
            Group(none, 0.3, 0, [target(0, 20, dtype, "tanh")]),
            Group(b, -2.0, 4, [target(5, 129, dtype, "sigmoid", k, 136) for k in (1, 2, 5)]),
            Group(a, 0.7, HEAD, [target(37, 24, dtype), target(37, 21, dtype, padded=24)]),
            Group(b, 0.3, 0, [target(5, 130, dtype, "gelu_tanh")]),
        ]
        machine.check(groups, Feedback("uniform", seed=9), large=self.large)


class Activation(NamedTuple):
    """In whole vectors and, one column on, element by element."""

    dtype: torch.dtype
    name: str

    def check(self, machine):
        error = torch.randn(19, 10).to(self.dtype)
        readers = [
            target(19, width, self.dtype, self.name, k) for width in (40, 41) for k in (1, 3)
        ]
        readers += [target(19, 40, self.dtype, self.name, offset=5)]
        machine.check([Group(error, 0.3, 0, readers)], Feedback(seed=3))


EDGES = [
    Edge(*axes)
    for axes in itertools.product(COMPUTE, (*DISTRIBUTIONS, "matrix"), (False, True), (-1, 0, 1))
]
NETWORKS = [Network(*axes) for axes in itertools.product(FLOATS, (False, True))]
ACTIVATED = [Activation(*axes) for axes in itertools.product(FLOATS, FORWARD)]
CASES = [*EDGES, *NETWORKS, *ACTIVATED]
