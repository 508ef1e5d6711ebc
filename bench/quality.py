"""How well DFA learns beside backpropagation and shallow: `python -m bench.quality --root DIR`.

Two real data sets, through `dfa-kernels train`. For each, every method is trained at every learning
rate of one grid with the first seed, and then with all seeds at the rate at which it did best
there: tuned alike, and on the same test set, so the small optimism is shared. On Fashion-MNIST the
rate falls linearly to 0, for all methods, so that the last epoch's accuracy does not hang on its
last few steps. A run that lies under
--out already is read instead of made again. The result is bench/results/quality.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from dfa_kernels.cli import main as dfa_kernels

METHODS = ("dfa", "bp", "shallow")


class Task(NamedTuple):
    arguments: str
    rates: tuple[str, ...]
    seeds: int


TASKS = {
    "digits, 64-256-256-10 tanh": Task("--data digits --hidden 256x2", ("1e-3",), 5),
    "Fashion-MNIST, 784-1024-1024-10 tanh, 10 epochs": Task(
        "--data fashion-mnist --hidden 1024x2 --epochs 10 --batch 128 --schedule linear",
        ("1e-4", "3e-4", "1e-3", "3e-3"),
        3,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--root", required=True, help="the folder of Fashion-MNIST's four files")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="where runs go")
    parser.add_argument("--json", type=Path, default=Path("bench/results/quality.json"))
    options = parser.parse_args(arguments)
    result = {}
    for name, task in TASKS.items():
        given = [*task.arguments.split()]
        if "fashion-mnist" in given:
            given += ["--root", options.root]
        result[name] = _tuned(task, given, options.out)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _tuned(task: Task, given: list[str], out: Path) -> dict[str, Any]:
    """Mean and standard deviation over seeds, in percent, at each method's best rate."""
    data = given[given.index("--data") + 1]
    grid = {
        rate: _run([*given, "--seeds", "1", "--lr", rate], out / f"{data}-{rate}")
        for rate in task.rates
    }
    tried = {
        method: {rate: 100 * run[method]["test_accuracy_mean"] for rate, run in grid.items()}
        for method in METHODS
    }
    best = {method: max(rates, key=rates.__getitem__) for method, rates in tried.items()}
    rates = [f"{method}={rate}" for method, rate in best.items()]
    final = _run([*given, "--seeds", str(task.seeds), "--lr", *rates], out / f"{data}-final")
    return {
        method: {
            "mean": 100 * final[method]["test_accuracy_mean"],
            "std": 100 * final[method]["test_accuracy_std"],
            "lr": float(best[method]),
            "seeds": task.seeds,
            "grid": tried[method],
            "alignment": final[method]["alignment"],
        }
        for method in METHODS
    }


def _run(arguments: list[str], folder: Path) -> dict[str, Any]:
    """The summary of each method in a run's log."""
    log = folder / "log.json"
    if not log.exists():
        code = dfa_kernels(["train", *arguments, "--out", str(folder), "--overwrite"])
        if code:
            sys.exit(code)
    methods = json.loads(log.read_text())["methods"]
    return {method: entry["summary"] for method, entry in methods.items()}


if __name__ == "__main__":
    sys.exit(main())
