"""How many machine instructions the host spends on a step: `python -m bench.instructions`.

The steps are of networks so small that nearly all of it is Python, PyTorch's and our own. valgrind
counts by callgrind, which a busy machine does not disturb: N steps and then 2N on end in one
process, whose difference is N steps without whatever surrounds them. valgrind switches counting on
for those alone, so that importing torch, which is most of the run, goes at a fifth of its speed and
not at a fiftieth.

Compared with bench/results/instructions.json, which holds counts by versions of Python and torch;
more than 5 % above it is a failure. ``--write`` records the counts of this run there.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import dfa_kernels as dfa

RECORD = Path(__file__).parent / "results" / "instructions.json"
#: The share by which a count may grow.
GROWTH = 0.05
WARM_UP, STEPS = 20, 10

Step = Callable[[], object]


# What is counted --------------------------------------------------------------------------------


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(),
        nn.Linear(4, 3),
    )  # fmt: skip


def _step(net: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    x, y = torch.randn(2, 4), torch.tensor([0, 2])

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def fused() -> Step:
    """The short way: one node, the update in the optimizer's step."""
    net = dfa.DFA(dfa.fuse(_net()))
    return _step(net, dfa.optim.SGD(net, lr=1e-3, momentum=0.9))


def in_backward() -> Step:
    net = dfa.DFA(dfa.fuse(_net()))
    return _step(net, dfa.optim.SGD(net, lr=1e-3, momentum=0.9, update="backward"))


def torch_optimizer() -> Step:
    net = dfa.DFA(dfa.fuse(_net()))
    return _step(net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9))


def opaque() -> Step:
    """Every activation a point, every layer autograd's."""
    net = dfa.DFA(_net())
    return _step(net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9))


CASES: dict[str, Callable[[], Step]] = {
    "fused": fused,
    "backward": in_backward,
    "torch.optim": torch_optimizer,
    "opaque": opaque,
}


# Under valgrind ---------------------------------------------------------------------------------


def run(names: list[str]) -> None:
    """The steps of each case, counted; what `count` starts in a process of its own."""
    torch.set_num_threads(1)
    steps = {name: CASES[name]() for name in names}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    gc.collect()
    gc.freeze()
    gc.disable()
    for name, step in steps.items():
        for times in (STEPS, 2 * STEPS):
            _control("--instr=on")
            for _ in range(times):
                step()
            _control("--instr=off")
            _control(f"--dump={name}:{times}")


def _control(what: str) -> None:
    """Tell the valgrind around this process."""
    command = ["callgrind_control", what, str(os.getpid())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def count(names: list[str]) -> dict[str, int]:
    """Instructions of one step of each case.

    Raises:
        RuntimeError: valgrind fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counted"
        command = [
            "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}",
            sys.executable, "-m", "bench.instructions", "--run", *names,
        ]  # fmt: skip
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "DFA_KERNELS_BACKEND": "reference",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"valgrind failed: {done.stderr.strip()[-600:]}")
        dumps = [path.read_text() for path in out.parent.glob("counted.*")]
    return per_step(dumps)


def per_step(dumps: list[str]) -> dict[str, int]:
    """From callgrind's dumps of N and of 2N steps of each case."""
    totals = {}
    for dump in dumps:
        label = re.search(r"^desc: Trigger: dump (\S+):(\d+)$", dump, re.MULTILINE)
        total = re.search(r"^totals: (\d+)", dump, re.MULTILINE)
        if label and total:
            totals[label[1], int(label[2])] = int(total[1])
    names = dict.fromkeys(name for name, _ in totals)
    return {name: round((totals[name, 2 * STEPS] - totals[name, STEPS]) / STEPS) for name in names}


# Beside what is recorded ------------------------------------------------------------------------


def versions() -> str:
    """What a count depends on: another version of either is another number."""
    python = ".".join(platform.python_version_tuple()[:2])
    return f"Python {python}, torch {torch.__version__.split('+')[0]}, {platform.machine()}"


def compare(counts: Mapping[str, int], recorded: Mapping[str, int]) -> tuple[list[str], bool]:
    """A line for each case, and whether none has grown by more than `GROWTH`."""
    lines, fine = [], True
    for name, now in counts.items():
        before = recorded.get(name)
        if before is None:
            lines.append(f"{name}: {now:,} instructions a step, none recorded")
            continue
        change = now / before - 1
        grown = now > before * (1 + GROWTH)
        fine = fine and not grown
        said = f"{name}: {now:,} instructions a step, {change:+.1%} of the recorded {before:,}"
        if grown:
            said += f": more than {GROWTH:.0%} above it"
        elif change < -GROWTH:
            said += ": record the gain with --write"
        lines.append(said)
    return lines, fine


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--write", action="store_true", help="record this run's counts")
    parser.add_argument("--run", nargs="+", metavar="CASE", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.run:
        run(asked.run)
        return 0
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    recorded = record.get(versions())
    for tool in ("valgrind", "callgrind_control"):
        if shutil.which(tool) is None:
            print(f"instructions are not counted: there is no {tool} here")
            return 0
    if recorded is None and not asked.write:
        print(
            f"instructions are not counted: none are recorded for {versions()}, but for "
            f"{'; '.join(record) or 'no versions at all'}; --write records them"
        )
        return 0
    try:
        counts = count(list(CASES))
    except RuntimeError as failed:
        print(failed, file=sys.stderr)
        return 1
    if asked.write:
        text = json.dumps({**record, versions(): counts}, indent=1, sort_keys=True)
        RECORD.write_text(text + "\n")
        print("\n".join(f"{name}: {n:,} instructions a step" for name, n in counts.items()))
        return 0
    lines, fine = compare(counts, recorded or {})
    print("\n".join(lines))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
