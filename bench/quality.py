"""How well DFA learns beside backpropagation and shallow: `python -m bench.quality --root DIR`.

Two real data sets, by the loop of `dfa-kernels train`. At first a sixth of the training set is held
out: with the first seed each method is trained on the rest at every rate of one grid (`grid`), and
takes the one that does best on what was held out. At that rate it is trained on the whole training
set with all seeds, and scored on the test set, by which nothing is chosen. On Fashion-MNIST the
rate falls linearly to 0, for all methods, so that the last epoch's accuracy does not hang on its
last few steps. What lies under --out already is read, what was begun goes on.
"""

from __future__ import annotations

import argparse
import operator
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import grid
from bench.grid import Choice
from dfa_kernels.throughput import environment
from dfa_kernels.training import InputError, checkpoint, folders, report
from dfa_kernels.training.datasets import Split, load
from dfa_kernels.training.experiment import Experiment, Interrupted
from dfa_kernels.training.interruption import interruptible
from dfa_kernels.training.options import METHODS, Options
from dfa_kernels.training.progress import Display

HELD_OUT = 6  # one row of that many
RATES = (3e-4, 1e-3, 3e-3)
_CPU = torch.device("cpu")


class Task(NamedTuple):
    """``options``: of `Options.resolve`. ``seeds``: of the runs that are scored."""

    options: dict[str, Any]
    seeds: int


TASKS = {
    "digits, 64-256-256-10 tanh": Task({"data": "digits", "hidden": (256, 256)}, 5),
    "Fashion-MNIST, 784-1024-1024-10 tanh, 10 epochs": Task(
        {
            "data": "fashion-mnist", "hidden": (1024, 1024), "epochs": 10, "batch": 128,
            "schedule": "linear",
        },
        3,
    ),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--root", required=True, help="the folder of Fashion-MNIST's four files")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="where runs go")
    parser.add_argument("--json", type=Path, default=Path("bench/results/quality.json"))
    asked = parser.parse_args(arguments)
    result: dict[str, Any] = {"environment": environment.describe(_CPU), "tasks": {}}
    try:
        if asked.json.is_dir():
            raise InputError(f"--json {asked.json} is a folder, not a file")
        folders.make(asked.json.parent, "--json's folder")
        for name, task in TASKS.items():
            result["tasks"][name] = _Study(task, asked.root, asked.out).run()
            report.write_log(asked.json, result)
    except InputError as bad:
        print(f"bench.quality: {bad}", file=sys.stderr)
        return 2
    except Interrupted:
        print("bench.quality: interrupted; the same command goes on from there", file=sys.stderr)
        return 130
    print(asked.json)
    return 0


class _Study:
    def __init__(self, task: Task, root: str, out: Path) -> None:
        self._task, self._root = task, root
        self._folder = out / task.options["data"]

    def run(self) -> dict[str, Any]:
        """By method: test accuracy over seeds in percent, its rate and how that was found."""
        found = {method: self._best(method) for method in METHODS}
        rates = {method: best.rate for method, (best, _) in found.items()}
        options = self._options(METHODS, rates, self._task.seeds)
        final = self._trained(options, self._load, "final")
        log = report.make_log(options, self._load(0), final.results, dict.fromkeys(METHODS))
        return {
            method: {
                "mean": 100 * entry["summary"]["test_accuracy_mean"],
                "std": 100 * entry["summary"]["test_accuracy_std"],
                "lr": rates[method],
                "seeds": self._task.seeds,
                "grid": {choice.label: score for choice, score in sorted(found[method][1].items())},
                "alignment": entry["summary"]["alignment"],
            }
            for method, entry in log["methods"].items()
        }

    def _best(self, method: str) -> tuple[Choice, dict[Choice, float]]:
        """Its best rate, and of each that it was tried with the percentage that it gets right of
        the rows that were held out."""

        def score(choice: Choice) -> float:
            options = self._options((method,), {method: choice.rate}, 1)
            found = self._trained(options, self._held_out, f"{method}-{choice.label}")
            return 100 * found.results[method][options.seed]["test_accuracy"][-1]

        return grid.explored(map(Choice, RATES), score, operator.gt)

    def _options(self, methods: tuple[str, ...], rates: dict[str, float], seeds: int) -> Options:
        own = {"method": methods, "lr": rates, "seeds": seeds, "device": str(_CPU)}
        return Options.resolve({**self._task.options, **own})

    def _trained(self, options: Options, data: Callable[[int], Split], name: str) -> Experiment:
        path = self._folder / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(options, data, path)
        if path.exists():
            state = checkpoint.load(path)
            Options(**state["options"]).resumed(options.as_dict(), str(path))
            experiment.restore(state)
        with interruptible(signal.SIGINT) as stop, Display(experiment) as watch:
            experiment.run(watch, stop)
        return experiment

    def _load(self, seed: int) -> Split:
        return load(self._task.options["data"], self._root, seed)

    def _held_out(self, seed: int) -> Split:
        """The training set alone, what is held out of it being the test rows."""
        x, y, _, _, classes = self._load(seed)
        kept = len(x) - len(x) // HELD_OUT
        return Split(x[:kept], y[:kept], x[kept:], y[kept:], classes)


if __name__ == "__main__":
    sys.exit(main())
