"""Whether `dfa-kernels bench` and pytest-benchmark say the same: `python -m bench.agreement`.

Both time the same contestants on the same shapes, one after the other and back again, so that each
has its turn before and after; a process of pytest for each of its turns. They agree where the
intervals between their quartiles overlap.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dfa_kernels.throughput import environment
from dfa_kernels.throughput.job import Job
from dfa_kernels.throughput.options import parse_shape
from dfa_kernels.throughput.runner import events
from dfa_kernels.throughput.spread import Spread, spread

SHAPES = ("128,3,256,10", "64,8,512,10")
CONTESTANTS = ("bp-eager", "hand-written-bp", "hand-written-dfa", "reference")

#: Contestant and shape.
Key = tuple[str, str]


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    ours: dict[Key, list[float]] = {}
    theirs: dict[Key, list[float]] = {}
    for turn in range(options.turns):
        print(f"turn {turn + 1} of {options.turns} …", file=sys.stderr, flush=True)
        sources = [(ours, by_turns), (theirs, by_suite)]
        for samples, source in sources if turn % 2 == 0 else reversed(sources):
            for key, found in source(options.shape, options.seconds, options.threads).items():
                samples.setdefault(key, []).extend(found)
    made = {"environment": environment.describe(torch.device("cpu")), "rows": agreed(ours, theirs)}
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "agreement.json").write_text(json.dumps(made, indent=1) + "\n")
    (out / "agreement.md").write_text(markdown(made))
    print(markdown(made))
    return 0 if all(row["agree"] for row in made["rows"]) else 1


def by_turns(shapes: list[str], seconds: float, threads: int) -> dict[Key, list[float]]:
    """Milliseconds as `dfa-kernels bench` measures them."""
    jobs = [
        Job(CONTESTANTS, parse_shape(s), seconds=seconds * len(CONTESTANTS), threads=threads)
        for s in shapes
    ]
    found, place = {}, 0
    for event in events(jobs):
        if event["event"] == "begun":
            place = event["job"]
        elif event["event"] == "measured":
            found[event["contestant"], shapes[place]] = event["samples_ms"]
    return found


def by_suite(shapes: list[str], seconds: float, threads: int) -> dict[Key, list[float]]:
    """Milliseconds as pytest-benchmark measures `bench/suite`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.json"
        ran = subprocess.run(
            [
                sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                str(Path(__file__).with_name("suite") / "test_steps.py"),
                f"--benchmark-json={path}", f"--benchmark-max-time={seconds}",
                "--benchmark-min-rounds=9",
            ],
            env={
                **os.environ,
                "DFA_SUITE_SHAPES": " ".join(shapes),
                "DFA_SUITE_CONTESTANTS": " ".join(CONTESTANTS),
                "DFA_SUITE_THREADS": str(threads),
            },
            stdout=subprocess.DEVNULL,
            # As the runner does: a scheduler that shares a busy machine among sessions must give
            # both the same.
            start_new_session=True,
        )  # fmt: skip
        if ran.returncode:
            raise SystemExit(f"bench/suite failed with status {ran.returncode}")
        benchmarks = json.loads(path.read_text())["benchmarks"]
    return {
        (b["params"]["contestant"], b["params"]["shape"]): [1e3 * s for s in b["stats"]["data"]]
        for b in benchmarks
    }


def agreed(ours: dict[Key, list[float]], theirs: dict[Key, list[float]]) -> list[dict[str, Any]]:
    """A row for each contestant and shape."""
    rows = []
    for key in ours:
        a, b = spread(ours[key]), spread(theirs[key])
        rows.append(
            {
                "contestant": key[0],
                "shape": key[1],
                "bench_ms": list(a),
                "suite_ms": list(b),
                "rounds": [len(ours[key]), len(theirs[key])],
                "agree": a.low <= b.high and b.low <= a.high,
            }
        )
    return rows


def markdown(made: dict[str, Any]) -> str:
    env = made["environment"]
    lines = [
        "# `dfa-kernels bench` beside pytest-benchmark",
        "",
        "Written by `python -m bench.agreement`: median milliseconds of a step (quartiles).",
        f"{env['device']}, {env['threads']} threads, torch {env['torch']}; {env['date']}.",
        "",
        "| contestant | shape | dfa-kernels bench | pytest-benchmark | ratio | quartiles overlap |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in made["rows"]:
        a, b = Spread(*row["bench_ms"]), Spread(*row["suite_ms"])
        cells = (
            row["contestant"], row["shape"], _shown(a), _shown(b), f"{a.median / b.median:.2f}",
            "yes" if row["agree"] else "no",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(times: Spread) -> str:
    return f"{times.median:.2f} ({times.low:.2f}–{times.high:.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.agreement", description=__doc__)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--turns", type=int, default=2, help="of each")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row of a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="runs/agreement", metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
