"""`dfa-kernels`, the command line: info, train, bench, profile, report, check.

What cannot be done is said in one sentence on standard error, with exit status 2 and before
anything is changed. Status 1 is a check that failed, 130 an interruption.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from dfa_kernels import backends, testing
from dfa_kernels.feedback import DISTRIBUTIONS
from dfa_kernels.module import METHODS
from dfa_kernels.profiling import arguments as profile
from dfa_kernels.throughput import arguments as bench
from dfa_kernels.throughput import page_arguments as report
from dfa_kernels.training import InputError, extras
from dfa_kernels.training.device import usable
from dfa_kernels.training.options import (
    ACTIVATIONS,
    DEFAULTS,
    DTYPES,
    LEARNING_RATES,
    SCHEDULES,
    parse_hidden,
    parse_lr,
    shown,
)
from dfa_kernels.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status."""
    asked = _parser().parse_args(arguments)
    try:
        return asked.run(asked)
    except InputError as bad:
        print(f"dfa-kernels {asked.command}: {bad}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"dfa-kernels {asked.command}: interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the page of usage before it."""
        self.exit(2, f"{self.prog}: {message}\n")


class _Command(_Parser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What is left over is refused by the command that was given it, in its own name."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}; see {self.prog} --help")
        return found, left


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dfa-kernels", description="Direct feedback alignment for PyTorch, fast.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Command
    )
    info = commands.add_parser("info", help="what runs here, and why")
    info.add_argument("--device", help="device to ask about (default: a GPU if there is one)")
    info.set_defaults(run=_info)
    check = commands.add_parser("check", help="run the conformance suite on a backend")
    check.add_argument(
        "--backend",
        metavar="NAME",
        help="triton, cuda, triton+cuda (small calls by cuda, large ones by triton), reference, or "
        "one of yours (default: the one that info says is chosen)",
    )
    check.add_argument("--device", help="default: a GPU if there is one")
    check.set_defaults(run=_check)
    _add_train(commands)
    bench.add(commands)
    profile.add(commands)
    report.add(commands)
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train dfa, bp and shallow side by side on real data",
        description="Train one architecture by direct feedback alignment, by backpropagation, and "
        "its output layer alone (shallow), on the same minibatches; end with a table, the curves "
        "(PNG) and a log (JSON). Ctrl-C leaves a checkpoint.",
        argument_default=argparse.SUPPRESS,
    )

    def by_data(option: str) -> str:
        return ", ".join(f"{shown(d[option])} for {data}" for data, d in DEFAULTS.items())

    rates = ", ".join(f"{rate:g} for {name}" for name, rate in LEARNING_RATES.items())
    options: list[tuple[str, dict[str, Any]]] = [
        ("data", {"metavar": "NAME", "help": f"{' or '.join(DEFAULTS)} (default: digits)"}),
        ("method", {"nargs": "+", "metavar": "NAME", "help": f"of {', '.join(METHODS)} (all)"}),
        (
            "hidden",
            {"metavar": "WIDTHxLAYERS", "help": f"or widths: 512,256 ({by_data('hidden')})"},
        ),
        ("activation", {"metavar": "NAME", "help": f"{', '.join(ACTIVATIONS)} (tanh)"}),
        ("optimizer", {"metavar": "NAME", "help": f"{', '.join(LEARNING_RATES)} (adamw)"}),
        ("lr", {"nargs": "+", "metavar": "RATE", "help": f"for all, or bp=RATE ({rates})"}),
        ("schedule", {"metavar": "NAME", "help": f"{', '.join(SCHEDULES)} (to 0) (constant)"}),
        ("epochs", {"type": int, "metavar": "N", "help": f"({by_data('epochs')})"}),
        ("batch", {"type": int, "metavar": "ROWS", "help": f"of a step ({by_data('batch')})"}),
        ("seed", {"type": int, "metavar": "N", "help": "the first (0)"}),
        ("seeds", {"type": int, "metavar": "N", "help": f"how many ({by_data('seeds')})"}),
        (
            "distribution",
            {"metavar": "NAME", "help": f"of B: {', '.join(DISTRIBUTIONS)} (the first)"},
        ),
        (
            "dtype",
            {"metavar": "NAME", "help": f"{', '.join(DTYPES)}; bfloat16 autocasts (float32)"},
        ),
        ("device", {"metavar": "NAME", "help": "default: a GPU if there is one"}),
        ("compile", {"action": "store_true", "help": "torch.compile every network"}),
        (
            "fused",
            {
                "action": argparse.BooleanOptionalAction,
                "help": "dfa_kernels.optim for dfa, where it is not compiled; else torch.optim",
            },
        ),
    ]
    for name, settings in options:
        train.add_argument(f"--{name}", **settings)
    train.add_argument("--root", metavar="DIR", help="the folder of fashion-mnist's four .gz files")
    train.add_argument("--out", type=Path, metavar="DIR", help="where to write (runs/DATA)")
    existing = train.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --out"
    )
    existing.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    train.set_defaults(run=_train)


def _info(asked: argparse.Namespace) -> int:
    device = usable(asked.device)
    print(
        f"dfa_kernels {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"device {device} ({name}), {torch.get_num_threads()} threads")
    for backend, reason in backends.available(device).items():
        print(f"backend {backend}: {reason or backends.get(backend).describe()}")
    chosen, why = _chosen(device)
    if not why.startswith("named by"):  # why others were not stands in their own lines
        why = f"the first of {', '.join(backends.PREFERENCE)} that can run here"
    print(f"chosen: {chosen} ({why})")
    return 0


def _check(asked: argparse.Namespace) -> int:
    device = usable(asked.device)
    name = asked.backend
    if name is None:
        name, _ = _chosen(device)
    try:
        reason = backends.get(name).unavailable(device)
        if reason is not None:
            raise InputError(
                f"backend {name!r}, named by --backend, cannot run on {device}: {reason}"
            )
        passed = testing.check_backend(name, device)
    except (ValueError, RuntimeError) as refused:
        raise InputError(str(refused)) from None
    except AssertionError as failed:
        print(f"FAILED: {failed}", file=sys.stderr)
        return 1
    print(f"backend {name!r} on {device}: all {len(passed)} checks passed")
    return 0


def _train(asked: argparse.Namespace) -> int:
    extras.need("train", "matplotlib", "numpy", "rich", "sklearn")
    from dfa_kernels.training.command import train

    given = {k: v for k, v in vars(asked).items() if k not in ("command", "run")}
    own = {k: given.pop(k) for k in ("out", "root", "resume", "overwrite") if k in given}
    if "hidden" in given:
        given["hidden"] = parse_hidden(given["hidden"])
    if "lr" in given:
        given["lr"] = parse_lr(given["lr"])
    return train(given, **own)


def _chosen(device: torch.device) -> tuple[str, str]:
    try:
        return backends.chosen(device)
    except (ValueError, RuntimeError) as refused:
        raise InputError(str(refused)) from None
