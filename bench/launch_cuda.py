"""What the CUDA backend costs the host in a step of 8 small layers: `python -m bench.launch_cuda`.

No GPU is needed: csrc/binding.cpp is compiled by g++ with launchers that start nothing
(tests/emulated/nothing.cpp). What is timed is all from the call of `step_` or `gradients` to where
the driver would launch: checks, layouts, the table, scratch.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from bench.gpu.rows import Spread, spread
from bench.launch import ERROR, LAYERS, ROWS, WIDTH, Case, _microseconds
from dfa_kernels.backends.cuda import rules
from dfa_kernels.backends.cuda.kernels import Kernels
from dfa_kernels.feedback import Feedback
from dfa_kernels.throughput import environment
from tests import emulator

NOTHING = Path(__file__).parents[1] / "tests/emulated/nothing.cpp"


class Recorded:
    """The lists that a call hands to the compiled module."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple]] = []
        self.project = lambda *given: self.calls.append(("project", given))
        self.update = lambda *given: self.calls.append(("update", given))
        self.plain_step = lambda *_: False


def measure(repeats: int) -> dict[tuple[str, str, str], Spread]:
    """Microseconds by operation, δ, and who plans it."""
    core = emulator.core((NOTHING,))
    case, feedback = Case.on(torch.device("cpu")), Feedback()
    device = rules.Device(0, 132)
    found = {}
    with mock.patch.object(rules, "device_of", lambda _: device):
        for delta in (rules.ON_THE_FLY, rules.STORED):
            with mock.patch.dict(os.environ, {rules.VARIABLE: delta}):
                kernels, recorded = Kernels(core), Recorded()
                planner = "C++" if delta == rules.ON_THE_FLY else "Python"
                runs = {
                    ("step_ (AdamW)", planner): partial(
                        kernels.step_, feedback, "adamw", case.updates
                    ),
                    ("gradients", planner): partial(
                        kernels.gradients, case.error, feedback, 0.1, case.layers, torch.bfloat16
                    ),
                }
                Kernels(recorded).step_(feedback, "adamw", case.updates)
                for name, given in recorded.calls:
                    label = f"`{name}` of the list alone"
                    runs[label, "—"] = partial(getattr(core, name), *given)
                for (label, where), run in runs.items():
                    found[label, delta, where] = spread(_microseconds(run, repeats))
    return found


def markdown(found: dict[tuple[str, str, str], Spread]) -> str:
    env = environment.describe()
    lines = [
        "# Host time of a call of the CUDA backend",
        "",
        "Written by `python -m bench.launch_cuda`: microseconds from the call of the backend to",
        "where the driver would launch, median (quartiles): argument checks, layouts, the table.",
        f"{LAYERS} layers of {WIDTH} and a head, N {ROWS}, E {ERROR}, bf16 activations, fp32",
        "parameters. No GPU: `csrc/binding.cpp` by g++ -O1, with launchers that start nothing, so",
        "the driver's launch and the device's time are not in it; `gradients` allocates 18",
        "tensors.",
        "",
        f"{env['processor']}, {env['cores']} cores; torch {env['torch']}, Python {env['python']}, "
        f"dfa_kernels {env['dfa_kernels']}; {env['date']}.",
        "",
        "| operation | δ | planned in | µs |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(key)} | {times.median:.1f} ({times.low:.1f}–{times.high:.1f}) |"
              for key, times in found.items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.launch_cuda", description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--out", default="bench/results", metavar="DIR")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = markdown(measure(options.repeats))
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "launch_cuda.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
