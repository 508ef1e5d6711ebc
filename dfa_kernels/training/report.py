"""The log of a run (what the JSON holds), and the table made from it.

Everything below ``methods`` is what was measured; the table and the plot read nothing but the log.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dfa_kernels import backends
from dfa_kernels.training.datasets import Split
from dfa_kernels.training.memory import Memory
from dfa_kernels.training.options import Options
from dfa_kernels.version import __version__

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]

_FORMAT = 1
_MIB = 1 << 20


def make_log(
    options: Options, split: Split, results: Results, memory: Mapping[str, Memory | None]
) -> dict[str, Any]:
    """Options, environment, and for each method a summary over seeds and the runs themselves.

    Accuracies are shares, times milliseconds, memory bytes; ``ratio`` is the median over epochs
    of the step time divided by backpropagation's in the same epoch, None without ``bp``.
    """
    methods = {}
    for method, runs in results.items():
        seeds = {
            str(seed): _run(curves, results.get("bp", {}).get(seed))
            for seed, curves in runs.items()
        }
        methods[method] = {
            "summary": _summary(list(seeds.values()), memory[method]),
            "seeds": seeds,
        }
    log = {
        "format": _FORMAT,
        "dfa_kernels": __version__,
        "options": options.as_dict(),
        "environment": environment(options.device),
        "data": {
            "train": len(split.train_x),
            "test": len(split.test_x),
            "sizes": options.sizes(split.features, split.classes),
        },
        "methods": methods,
    }
    return _jsonable(log)


def environment(device: str) -> dict[str, Any]:
    """What a figure must be read with: no name of this machine, no path on it."""
    where = torch.device(device)
    if where.type == "cuda":
        name = torch.cuda.get_device_name(where)
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "backend": backends.chosen(where)[0],
    }


def _run(curves: Mapping[str, Any], bp: Mapping[str, Any] | None) -> dict[str, Any]:
    steps = curves["step_ms"]
    pairs = zip(steps, bp["step_ms"], strict=True) if bp else ()
    ratios = [ours / theirs for ours, theirs in pairs]
    return {
        "test_accuracy": curves["test_accuracy"][-1],
        "step_ms": median(steps),
        "ratio": median(ratios) if ratios else None,
        "alignment": {
            layer: {"mean": cosines[-1][0], "std": cosines[-1][1]}
            for layer, cosines in curves["alignment"].items()
        },
        "curves": curves,
    }


def _summary(runs: Sequence[Mapping[str, Any]], memory: Memory | None) -> dict[str, Any]:
    accuracies = [run["test_accuracy"] for run in runs]
    ratios = [run["ratio"] for run in runs if run["ratio"] is not None]
    return {
        "test_accuracy_mean": mean(accuracies),
        "test_accuracy_std": stdev(accuracies) if len(accuracies) > 1 else None,
        "step_ms": median(run["step_ms"] for run in runs),
        "ratio": median(ratios) if ratios else None,
        "peak_bytes": memory.peak if memory else None,
        "feedback_bytes": memory.feedback if memory else None,
        "alignment": {
            layer: mean(run["alignment"][layer]["mean"] for run in runs)
            for layer in runs[0]["alignment"]
        },
    }


def _jsonable(value: Any) -> Any:
    """JSON has neither NaN nor infinity: null stands for both."""
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_log(path: Path, log: Mapping[str, Any]) -> None:
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(log, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def title(log: Mapping[str, Any]) -> str:
    """Data, architecture and optimizer in one line."""
    options = log["options"]
    sizes, seeds = "-".join(map(str, log["data"]["sizes"])), options["seeds"]
    parts = [options["data"], f"{sizes} {options['activation']}", options["optimizer"]]
    parts += [options["dtype"], f"{seeds} seed" + "s" * (seeds > 1)]
    return " · ".join(parts + ["compiled"] * options["compile"])


# The table --------------------------------------------------------------------------------------


def table(log: Mapping[str, Any]) -> Table:
    """A row for each method."""
    made = Table(title=title(log), box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    made.add_column("method", style="bold")
    for heading in ("test accuracy", "step", "× bp", "peak memory", "feedback"):
        made.add_column(heading, justify="right")
    made.add_column("alignment per layer")
    for method, measured in log["methods"].items():
        summary = measured["summary"]
        cosines = [_number(c, "+.2f") for c in summary["alignment"].values()]
        made.add_row(
            method,
            accuracy(summary),
            _number(summary["step_ms"], ".3f", " ms"),
            _number(summary["ratio"], ".2f"),
            _bytes(summary["peak_bytes"]),
            _bytes(summary["feedback_bytes"]),
            " ".join(cosines) or "–",
        )
    return made


def print_table(log: Mapping[str, Any], console: Console) -> None:
    if not console.is_terminal:  # a file is as wide as it needs to be
        console = Console(file=console.file, width=120)
    console.print(table(log))


def accuracy(summary: Mapping[str, Any]) -> str:
    """In per cent: mean ± standard deviation over seeds."""
    shown = f"{100 * summary['test_accuracy_mean']:.2f}"
    if summary["test_accuracy_std"] is not None:
        shown += f" ± {100 * summary['test_accuracy_std']:.2f}"
    return shown + " %"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def _bytes(value: int | None) -> str:
    if value is None:
        return "–"
    if value < 1024:
        return f"{value} B"
    return f"{value / _MIB:.2f} MiB" if value >= _MIB / 10 else f"{value / 1024:.1f} KiB"
