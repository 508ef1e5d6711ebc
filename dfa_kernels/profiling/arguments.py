"""`dfa-kernels profile` on the command line: its options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dfa_kernels.module import METHODS
from dfa_kernels.training import extras
from dfa_kernels.training.options import LEARNING_RATES

#: What the command imports, and the packages that bring it.


def add(commands: Any) -> None:
    """The command, to a parser's subparsers."""
    profile = commands.add_parser(
        "profile",
        help="take one training step apart: where its time goes, and what it could be",
        description="Profile a training step: time, floor and gap of the forward pass, the error, "
        "the projection, the update, the optimizer and Python; as a table, a picture (PNG), a "
        "Chrome trace and JSON. FACTORY is called without arguments and returns an nn.Module (a "
        "DFA, or one that is wrapped), or an nn.Module and a loss of its output.",
        argument_default=argparse.SUPPRESS,
    )
    options: list[tuple[str, dict[str, Any]]] = [
        ("module", {"metavar": "PACKAGE.MODULE:FACTORY", "help": "a network of your own"}),
        (
            "batch",
            {
                "nargs": "+",
                "metavar": "SHAPE",
                "help": "what --module's network is given, an input each: 128,784 for normal "
                "numbers, 8,128:1000 for integers below 1000",
            },
        ),
        (
            "shape",
            {
                "metavar": "SHAPE",
                "help": "of the built-in tanh network on 784 inputs: BATCH,LAYERS,WIDTH,OUTPUTS, "
                "or mlp:LAYERSxWIDTH[,batch=N][,outputs=N] (512,4,1024,10)",
            },
        ),
        ("method", {"nargs": "+", "metavar": "NAME", "help": f"of {', '.join(METHODS)} (dfa)"}),
        (
            "backend",
            {
                "metavar": "NAME",
                "help": "triton, cuda, triton+cuda (small calls by cuda, large ones by triton), "
                "reference, or one of yours (default: the one that info says is chosen)",
            },
        ),
        ("optimizer", {"metavar": "NAME", "help": f"{', '.join(LEARNING_RATES)} (sgd)"}),
        (
            "fused",
            {
                "action": argparse.BooleanOptionalAction,
                "help": "dfa_kernels.optim for dfa, where a layer is fused; else torch.optim",
            },
        ),
        (
            "dtype",
            {"metavar": "NAME", "help": "float32, bfloat16, …, or autocast to bfloat16 (float32)"},
        ),
        ("device", {"metavar": "NAME", "help": "default: a GPU if there is one"}),
        ("steps", {"type": int, "metavar": "N", "help": "how many are profiled (20)"}),
        ("threads", {"type": int, "metavar": "N", "help": "of a CPU (as torch has them)"}),
        ("seed", {"type": int, "metavar": "N", "help": "of weights, data and feedback (0)"}),
    ]
    for name, settings in options:
        profile.add_argument(f"--{name}", **settings)
    profile.add_argument(
        "--import",
        dest="modules",
        nargs="+",
        metavar="MODULE",
        help="imported first: modules that register backends",
    )
    profile.add_argument("--out", type=Path, metavar="DIR", help="where to write (runs/profile)")
    profile.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    """Profile what was asked for; the exit status."""
    extras.need("bench", "matplotlib", "numpy", "rich")
    from dfa_kernels.profiling.command import profile
    from dfa_kernels.profiling.options import parse_batch
    from dfa_kernels.throughput.options import parse_shape

    given = {k: v for k, v in vars(asked).items() if k not in ("command", "run")}
    out = given.pop("out", None)
    if "shape" in given:
        given["shape"] = parse_shape(given["shape"])
    if "batch" in given:
        given["batch"] = parse_batch(given["batch"])
    for name in ("method", "modules"):
        if name in given:
            given[name] = tuple(given[name])
    return profile(given, out)
