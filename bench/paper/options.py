"""What every task is asked for on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from bench.paper.task import Task
from dfa_kernels.feedback import DISTRIBUTIONS
from dfa_kernels.module import METHODS
from dfa_kernels.training import InputError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the page of usage before it."""
        self.exit(2, f"{self.prog}: {message}\n")


def add(parser: argparse.ArgumentParser, task: Task) -> None:
    methods = (*METHODS, *task.controls)
    models = "; ".join(f"{name}: {line}" for name, line in task.models.items())
    data = "; ".join(f"{name}: {line}" for name, line in task.data.items())
    first = next(iter(task.data))
    parser.add_argument(
        "--model", choices=task.models, default=next(iter(task.models)), help=models
    )
    parser.add_argument("--data", choices=task.data, default=first, help=f"{data} ({first})")
    parser.add_argument("--root", type=Path, metavar="DIR", help="the folder of the data's files")
    parser.add_argument(
        "--method", nargs="+", choices=methods, default=list(methods), metavar="NAME",
        help=f"of {', '.join(methods)} (all of them)",
    )  # fmt: skip
    parser.add_argument(
        "--lr", nargs="+", type=float, metavar="RATE",
        help="the grid: each method gets its best on the validation split with the first seed "
        "(the task's own, which goes on while its first or last rate is the best)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many (3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first (0)")
    parser.add_argument(
        "--distribution", choices=DISTRIBUTIONS, default="rademacher", help="of B (rademacher)"
    )
    parser.add_argument("--quick", action="store_true", help="small, under a minute on two cores")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="runs and pictures (runs/paper/TASK)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows (results.json in --out)")
    parser.add_argument("--overwrite", action="store_true", help="train again what --out holds")
    task.add_options(parser)


def check(options: argparse.Namespace, task: Task) -> None:
    """Complete ``options``.

    Raises:
        InputError: a number is out of its range.
    """
    if options.seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {options.seeds}")
    if not 0 <= options.seed <= 2**63 - options.seeds:
        raise InputError(f"--seed must be in [0, 2**63 − {options.seeds}], got {options.seed}")
    for rate in options.lr or ():
        if not 0 < rate < float("inf"):
            raise InputError(f"--lr must be positive and finite, got {rate:g}")
    options.method = list(dict.fromkeys(options.method))
    if options.quick:
        options.seeds = 1
    if options.root is not None and not options.root.is_dir():
        raise InputError(f"--root {options.root} is no folder")
    options.out = options.out or Path("runs/paper") / (task.name + "-quick" * options.quick)
    options.json = options.json or options.out / "results.json"
    for path, option in ((options.out, "--out"), (options.json.parent, "--json")):
        if path.exists() and not path.is_dir():
            raise InputError(f"{option}: {path} is a file, not a folder")
