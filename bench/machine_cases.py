"""The launches that `bench.machine_code` compiles: what `rules.py` can pick, for an architecture.

A launch has independent axes, such as the numbers it computes with or the rule it applies. A full
product of them would be thousands of kernels. Here every *pair* of values of any two axes occurs
together in at least one case, and so does every triple of the axes in `PROJECT_TOGETHER`, which
decide between them how many registers a tile of B and its product need. A case is turned into a
launch by `project.launches` and `update.launches` themselves, on tensors without storage:
the constants, tiles and options are those of a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from dfa_kernels.activation import CODES
from dfa_kernels.backends.grouped.plan import Applied, Group, Grouped, Target, Term
from dfa_kernels.backends.triton import project, rules, update
from dfa_kernels.backends.triton.launch import Launch
from dfa_kernels.feedback import Feedback

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

#: Architecture as on the command line → the rules' device: an A100, H100, B200, RTX 5090, MI300X.
DEVICES = {
    "80": rules.Device("cuda", 80, 108),
    "90": rules.Device("cuda", 90, 132),
    "100": rules.Device("cuda", 100, 148),
    "120": rules.Device("cuda", 120, 170),
    "gfx942": rules.Device("hip", 94, 304),
}


class Numbers(NamedTuple):
    """Dtypes of the error, of activations and δ, of parameters; whether fp32 may be tf32."""

    error: torch.dtype
    x: torch.dtype
    parameter: torch.dtype
    tf32: bool = False


NUMBERS = {
    "bf16": Numbers(BF16, BF16, FP32),
    "bf16 throughout": Numbers(BF16, BF16, BF16),
    "fp16": Numbers(FP16, FP16, FP32),
    "fp32": Numbers(FP32, FP32, FP32),
    "tf32": Numbers(FP32, FP32, FP32, True),
    "fp32 error, bf16": Numbers(FP32, BF16, FP32),
}

#: Activations of the layers in one launch; "all" are the seven that there are.
ACTIVATIONS = {
    "identity": ("identity",),
    "relu": ("relu",),
    "tanh": ("tanh",),
    "gelu": ("gelu",),
    "tanh and silu": ("tanh", "silu"),
    "all": tuple(CODES),
}

#: Whether rows are whole vectors: of every tensor, of none, or of some layers' only.
ROWS = ("aligned", "some aligned", "unaligned")

PROJECT_AXES = {
    "size": ("large", "small"),
    "numbers": ("bf16", "fp16", "fp32", "tf32", "fp32 error, bf16"),
    "distribution": ("rademacher", "uniform", "normal", "matrix"),
    "activations": tuple(ACTIVATIONS),
    "rows": ROWS,
    "error": ("E=1000", "E=1003", "E=10"),
}
PROJECT_TOGETHER = (("size", "numbers", "distribution"),)

UPDATE_AXES = {
    "size": ("large", "small", "split"),
    "numbers": ("bf16", "bf16 throughout", "fp16", "fp32", "tf32"),
    "rule": ("adamw", "sgd", "store", "adamw with copy"),
    "delta": ("stored", "rademacher", "uniform", "normal"),
    "activations": tuple(ACTIVATIONS),
    "rows": ROWS,
    "error": ("E=10", "E=32"),
}

#: What a usual network launches; the other cases are added until everything has occurred.
PROJECT_USUAL = (
    ("large", "bf16", "rademacher", "tanh", "aligned", "E=1000"),
    ("large", "bf16", "rademacher", "tanh", "aligned", "E=10"),
    ("small", "bf16", "rademacher", "tanh", "aligned", "E=1000"),
    ("large", "fp32", "rademacher", "relu", "aligned", "E=1000"),
    ("large", "bf16", "rademacher", "gelu", "aligned", "E=1000"),
    ("large", "bf16", "normal", "tanh", "aligned", "E=1000"),
    ("large", "bf16", "uniform", "tanh", "aligned", "E=1000"),
)
UPDATE_USUAL = (
    ("large", "bf16", "adamw", "stored", "identity", "aligned", "E=10"),
    ("large", "bf16", "sgd", "stored", "identity", "aligned", "E=10"),
    ("large", "bf16", "store", "stored", "identity", "aligned", "E=10"),
    ("small", "bf16", "adamw", "rademacher", "tanh", "aligned", "E=10"),
    ("large", "bf16", "adamw", "rademacher", "tanh", "aligned", "E=10"),
    ("split", "bf16", "adamw", "rademacher", "tanh", "aligned", "E=10"),
    ("large", "fp32", "adamw", "stored", "identity", "aligned", "E=10"),
    ("large", "bf16", "adamw with copy", "stored", "identity", "aligned", "E=10"),
)


class Case(NamedTuple):
    """One configuration of a kernel: a value for each of its axes."""

    kernel: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.values)

    def launch(self, device: rules.Device) -> Launch:
        """What the backend would launch on ``device``."""
        axes = PROJECT_AXES if self.kernel == "project" else UPDATE_AXES
        chosen = dict(zip(axes, self.values, strict=True))
        with _tf32(NUMBERS[chosen["numbers"]].tf32):
            if self.kernel == "project":
                return _project(device, **chosen)
            return _update(device, **chosen)


def usual() -> list[Case]:
    """The cases of a usual network."""
    return [Case("project", v) for v in PROJECT_USUAL] + [Case("update", v) for v in UPDATE_USUAL]


def cases() -> list[Case]:
    """Every case of both kernels, their usual ones first."""
    projections = cover(PROJECT_AXES, PROJECT_TOGETHER, PROJECT_USUAL)
    updates = cover(UPDATE_AXES, (), UPDATE_USUAL, _possible)
    return [Case("project", v) for v in projections] + [Case("update", v) for v in updates]


def cover(
    axes: dict[str, Sequence[str]],
    together: Sequence[Sequence[str]],
    usual: Sequence[tuple[str, ...]],
    possible: Callable[[dict[str, str]], bool] = lambda chosen: True,
) -> list[tuple[str, ...]]:
    """``usual``, and what it takes for every possible combination of two axes, and of those that
    are listed ``together``, to occur: each time the candidate with most that is new."""
    names = list(axes)
    sets = [*itertools.combinations(names, 2), *map(tuple, together)]
    places = [tuple(names.index(n) for n in s) for s in sets]

    def combinations(values: tuple[str, ...]) -> set[tuple]:
        return {(p, tuple(values[i] for i in p)) for p in places}

    candidates = {
        v: combinations(v)
        for v in itertools.product(*axes.values())
        if possible(dict(zip(names, v, strict=True)))
    }
    missing = set().union(*candidates.values())
    chosen = list(usual)
    for values in usual:
        missing -= combinations(values)
    while missing:
        best = max(candidates, key=lambda v: len(candidates[v] & missing))
        chosen.append(best)
        missing -= candidates.pop(best)
        candidates = {v: c for v, c in candidates.items() if c & missing}
    return chosen


def _possible(chosen: dict[str, str]) -> bool:
    """A stored δ has the error and f′ in it; δ is made on the fly where all products run on tensor
    cores; a copy is of lower precision than what it copies."""
    if chosen["delta"] == "stored":
        if (chosen["activations"], chosen["error"]) != ("identity", "E=10"):
            return False
    elif chosen["numbers"] == "fp32":
        return False
    return chosen["rule"] != "adamw with copy" or chosen["numbers"] != "bf16 throughout"


def _project(
    device: rules.Device,
    size: str,
    numbers: str,
    distribution: str,
    activations: str,
    rows: str,
    error: str,
) -> Launch:
    given, out = NUMBERS[numbers].error, NUMBERS[numbers].x
    n, width = (8192, int(error[2:])) if size == "large" else (64, int(error[2:]))
    feedback = Feedback(distribution) if distribution != "matrix" else None
    if feedback is None:
        feedback = Feedback.from_matrix(_matrix(width, 2048, given))
    targets = [
        Target(_matrix(n, columns, out), columns, 1, _matrix(n, columns, out), activation)
        for columns in _columns(rows, 1024)
        for activation in ACTIVATIONS[activations]
    ]
    groups = [Group(_matrix(n, width, given), 1.0, 0, targets)]
    (launch,) = project.launches(groups, feedback, device)
    return launch


def _update(
    device: rules.Device,
    size: str,
    numbers: str,
    rule: str,
    delta: str,
    activations: str,
    rows: str,
    error: str,
) -> Launch:
    given, x, parameter, _ = NUMBERS[numbers]
    n = 16384 if size == "split" else 16
    height = 20480 if size == "large" else 256
    grouped = []
    for columns in _columns(rows, 512):
        terms = [Term(_matrix(n, columns, x), _matrix(n, height, x))]
        if delta != "stored":
            terms = [
                terms[0]._replace(error=_matrix(n, int(error[2:]), given), stream=0, activation=a)
                for a in ACTIVATIONS[activations]
            ]
        copy = torch.bfloat16 if rule.endswith("copy") else None
        applied = (
            _applied(rule, shape, parameter, copy) for shape in ((height, columns), (height,))
        )
        grouped.append(Grouped(*applied, terms))
    feedback = Feedback("rademacher" if delta == "stored" else delta)
    (launch,) = update.launches(rule.split()[0], feedback, grouped, device)
    return launch


def _applied(
    rule: str, shape: tuple[int, ...], dtype: torch.dtype, copy: torch.dtype | None
) -> Applied:
    """A parameter with the states of the rule; the weight decays, the bias does not: two rows of
    hyperparameters."""
    decay = 0.01 * (len(shape) == 2)
    states, hyper = {
        "store": (0, ()),
        "sgd": (1, (0.1, 0.9, 0.0, decay, 0.0, 0.0, 0.0)),
        "adamw": (2, (1e-3, 0.9, 0.999, 1e-8, decay, 0.0, 1.0)),
    }[rule.split()[0]]
    made = tuple(_empty(shape, dtype) for _ in range(states))
    return Applied(_empty(shape, dtype), made, None if copy is None else _empty(shape, copy), hyper)


def _columns(rows: str, whole: int) -> list[int]:
    """Widths of the layers of a launch."""
    return {"aligned": [whole], "some aligned": [whole, whole - 1], "unaligned": [whole - 1]}[rows]


def _matrix(height: int, width: int, dtype: torch.dtype) -> Tensor:
    return _empty((height, width), dtype)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Of the right shape and strides, at the address 0, which is a multiple of everything."""
    return torch.empty(shape, dtype=dtype, device="meta")


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
