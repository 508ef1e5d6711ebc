"""Whether `dfa-kernels bench --compare` finds what is there, and only that: `python -m
bench.detection`.

Runs of the same code and runs of it with a slowdown planted (`bench.planted`), in turns; every two
of the same code are compared, and every one of them with every planted one. The same code must
never be decided, in either direction; the slowdown must be found in nine of ten comparisons. Exit
status 1 where that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from typing import Any

from dfa_kernels.throughput import result
from dfa_kernels.throughput.compare import compare
from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.options import FILE
from dfa_kernels.throughput.result import EAGER, FASTER, SLOWER, UNDECIDED, Result

PLANTED = "planted"  # as `bench.planted` calls it
SHAPES = ("128,3,256,10", "64,8,512,10")
LEAST = 0.9  # of the planted ones that must be found


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    same: list[Result] = []
    planted: list[Result] = []
    for turn in range(max(options.same, options.planted)):
        for runs, wanted, factor in (
            (same, options.same, 1.0),
            (planted, options.planted, options.factor),
        ):
            if turn < wanted:
                print(f"turn {turn + 1}, a factor of {factor:g} …", file=sys.stderr, flush=True)
                folder = Path(options.runs) / f"{'same' if runs is same else 'planted'}-{turn}"
                runs.append(run(folder, factor, options))
    made = {
        "environment": same[0].environment,
        "factor": options.factor,
        "runs": [len(same), len(planted)],
        "processes": options.processes,
        "rows": decided(same, planted),
    }
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "detection.json").write_text(json.dumps(made, indent=1) + "\n")
    (out / "detection.md").write_text(markdown(made))
    print(markdown(made))
    return 0 if holds(made["rows"]) else 1


def run(folder: Path, factor: float, options: argparse.Namespace) -> Result:
    """What `dfa-kernels bench` writes in a process of its own."""
    command = [
        sys.executable, "-m", "dfa_kernels", "bench", "--import", "bench.planted",
        "--contestant", EAGER, PLANTED, "--shape", *options.shape,
        "--seconds", str(options.seconds), "--processes", str(options.processes),
        "--threads", str(options.threads), "--no-memory",
        "--out", str(folder), "--overwrite",
    ]  # fmt: skip
    ran = subprocess.run(
        command, env=os.environ | {"DFA_PLANTED": str(factor)}, stdout=subprocess.DEVNULL
    )
    if ran.returncode:
        raise SystemExit(f"dfa-kernels bench failed with status {ran.returncode}")
    return result.read(folder / FILE)


def decided(same: list[Result], planted: list[Result]) -> list[dict[str, Any]]:
    """A row for each shape: how often the same code and the planted one were said to be what, and
    the lowest, middle and highest factor found of each."""
    rows: dict[str, dict[str, Any]] = {}
    pairs = {"same": list(combinations(same, 2)), "planted": list(product(same, planted))}
    for kind, each in pairs.items():
        for old, new in each:
            for change in compare(old, new)[0]:
                if change.row.contestant != PLANTED:
                    continue
                row = rows.setdefault(str(Shape(*change.row.shape)), {"same": {}, "planted": {}})
                said = row[kind].setdefault("verdicts", Counter())
                said[change.verdict] += 1
                row[kind].setdefault("factors", []).append(change.factor)
    for row in rows.values():
        for kind in pairs:
            found = sorted(row[kind].pop("factors"))
            row[kind]["factors"] = [found[0], found[len(found) // 2], found[-1]]
    return [{"shape": shape, **row} for shape, row in rows.items()]


def holds(rows: list[dict[str, Any]]) -> bool:
    for row in rows:
        planted = row["planted"]["verdicts"]
        if set(row["same"]["verdicts"]) != {UNDECIDED} or planted.get(FASTER):
            return False
        if planted.get(SLOWER, 0) < LEAST * sum(planted.values()):
            return False
    return bool(rows)


def markdown(made: dict[str, Any]) -> str:
    env = made["environment"]
    lines = [
        "# What `dfa-kernels bench --compare` finds",
        "",
        f"Written by `python -m bench.detection`: {made['runs'][0]} runs of the same code, each",
        f"compared with each, and with {made['runs'][1]} in which every step of DFA takes "
        f"{made['factor']:g} times as long.",
        f"{made['processes']} processes time a shape in each.",
        "The change: new time by old, the lowest, middle and highest of all comparisons.",
        f"{env['device']}, {env['threads']} threads, torch {env['torch']}; {env['date']}.",
        "",
        "| shape | the same code | change | planted | change |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in made["rows"]:
        cells = [row["shape"]]
        for kind in ("same", "planted"):
            said = row[kind]["verdicts"]
            of = sum(said.values())
            cells.append(", ".join(f"{said[v]} {v}" for v in sorted(said)) + f" of {of}")
            cells.append("{:.3f}, {:.3f}, {:.3f}".format(*row[kind]["factors"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.detection", description=__doc__)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--same", type=int, default=7, help="runs of the same code, 2 or more")
    parser.add_argument("--planted", type=int, default=3, help="runs that are slower")
    parser.add_argument("--factor", type=float, default=1.1)
    parser.add_argument("--seconds", type=float, default=9.0, help="for each shape of a run")
    parser.add_argument("--processes", type=int, default=6, help="that time it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", default="runs/detection", metavar="DIR", help="the results")
    parser.add_argument("--out", default="runs/detection", metavar="DIR", help="the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
