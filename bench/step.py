"""How long a whole training step takes beside eager backpropagation: `python -m bench.step`.

Every contestant of `bench.contestants` has a turn in every round, in an order that changes from
round to round, in one process: what disturbs the machine disturbs all. A turn is a few steps on
end, as in training; the first finds the caches full of another's weights and is not counted. A
ratio is the median over rounds of a contestant's time by that of backpropagation in the same round,
between its quartiles. Beside it: the flops of the matrix products in one step, counted by torch's
FlopCounterMode, and the peak memory over the bare process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from bench import memory, step_report
from bench.contestants import CONTESTANTS, Shape
from dfa_kernels.throughput import counting, environment
from dfa_kernels.throughput.timing import Run, rounds

SHAPES = (
    Shape(128, 3, 256, 10),
    Shape(512, 4, 1024, 10),
    Shape(512, 8, 2048, 10),
    Shape(64, 8, 512, 10),
    Shape(256, 4, 1024, 10000),
)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    shapes = [Shape(*map(int, s.split(","))) for s in options.shape] or list(SHAPES)
    names = [n for n in CONTESTANTS if options.only is None or n in options.only]
    if names[:1] != ["backpropagation"]:
        names.insert(0, "backpropagation")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"environment": environment.describe(), "shapes": []}
    for shape in shapes:
        print(f"{shape} …", file=sys.stderr, flush=True)
        result["shapes"].append(measure(shape, names, options.seconds))
        _write(result, out)
    for found in result["shapes"]:
        print(f"{Shape(*found['shape'])}: memory …", file=sys.stderr, flush=True)
        add_memory(found, options.threads)
        _write(result, out)
    (out / "step.md").write_text(step_report.markdown(result))
    step_report.figure(result, out / "step.png")
    print((out / "step.md").read_text())
    return 0


def _write(result: dict[str, Any], out: Path) -> None:
    (out / "step.json").write_text(json.dumps(result, indent=1) + "\n")


def measure(shape: Shape, names: list[str], seconds: float) -> dict[str, Any]:
    """One row for each contestant that is installed, and the reason for each that is not."""
    steps: dict[str, Run] = {}
    missing = {}
    for name in names:
        try:
            steps[name] = CONTESTANTS[name](shape)
        except ImportError as absent:
            missing[name] = str(absent)
    flops = {n: counting.performed(run) for n, run in steps.items() if "compiled" not in n}
    times = rounds(steps, torch.device("cpu"), seconds)
    base = times["backpropagation"]
    rows = {}
    for name, own in times.items():
        ratios = sorted(a / b for a, b in zip(own, base, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {
            "ms": statistics.median(own),
            "ratio": middle,
            "quartiles": [low, high],
            "flops": flops.get(name),
        }
    hand, ours = times.get("hand-written DFA"), times.get("dfa_kernels")
    over = None
    if hand and ours:
        over = statistics.median(a / b for a, b in zip(ours, hand, strict=True))
    return {
        "shape": list(shape),
        "rounds": len(base),
        "rows": rows,
        "missing": missing,
        "ours_over_hand_written": over,
    }


def add_memory(found: dict[str, Any], threads: int) -> None:
    """To each row of a shape's result: nothing of another shape's times waits for it."""
    for name, row in found["rows"].items():
        held = None if "compiled" in name else memory.peak(name, tuple(found["shape"]), threads)
        row["peak_bytes"] = held and held.bytes
        row["peak_range"] = held and held.range
        row["in_use_bytes"] = held and held.in_use


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__)
    parser.add_argument("--shape", nargs="*", default=[], metavar="BATCH,DEPTH,WIDTH,OUTPUTS")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants, by their names")
    parser.add_argument("--seconds", type=float, default=40, help="for each shape")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="runs/bench", metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
