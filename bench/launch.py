"""What a step of small layers costs the host: `python -m bench.launch`.

Nothing here needs a GPU. `bench.launch_triton` and `bench.launch_cuda` have each backend take CPU
tensors as a GPU's, and stop where the driver would launch; `bench.launch_step` has whole steps do
so, beside backpropagation's.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch

from bench.gpu.build import cuda_backend
from bench.gpu.promises import network, updates_of
from bench.gpu.rows import Spread, fact, spread
from dfa_kernels import backends, ops
from dfa_kernels.backends.contract import Layer, LayerUpdate, distinct_rows
from dfa_kernels.feedback import Feedback
from dfa_kernels.throughput import environment
from dfa_kernels.throughput.timing import host, kernel

if TYPE_CHECKING:
    from bench.gpu.context import Context

SIDES = ("triton", "cuda", "step")
ROWS, LAYERS, WIDTH, ERROR = 256, 8, 256, 10
#: How δ is made: the rule's choice for this shape, and the other.
DELTAS = ("on-the-fly", "stored")
#: What is compared is timed in turns, so that a busy machine disturbs all alike.
TURNS = 10


class Case(NamedTuple):
    """8 layers of 256 and a head on a batch of 256, bf16 activations and fp32 parameters."""

    error: torch.Tensor
    layers: list[Layer]
    updates: list[LayerUpdate]

    @classmethod
    def on(cls, device: torch.device, tiny: bool = False) -> Case:
        rows, widths = (16, [16] * 2) if tiny else (ROWS, [WIDTH] * LAYERS)
        error, layers = network(device, torch.bfloat16, rows, ERROR, widths)
        return cls(error, layers, updates_of(error, layers))


class Run(NamedTuple):
    """A call to time, and the environment that it is made in."""

    operation: str
    delta: str
    environment: dict[str, str]
    call: Callable[[], object]


def calls(kernels: Any, case: Case, variable: str, prepare: Callable | None = None) -> list[Run]:
    """A step and gradients by ``kernels``, with either δ, which ``variable`` chooses; and a step
    that repeats the last one, where ``prepare`` or they themselves prepare such."""
    feedback = Feedback()
    runs: dict[str, Callable[[], object]] = {
        "step_ (AdamW)": lambda: kernels.step_(feedback, "adamw", case.updates),
        "gradients": lambda: kernels.gradients(
            case.error, feedback, 0.1, case.layers, torch.bfloat16
        ),
    }
    prepare = prepare or getattr(kernels, "repeated", None)
    if prepare is not None:
        runs["step_ (AdamW), repeated"] = repeating(prepare, feedback, *case)
    return [Run(name, d, {variable: d}, call) for d in DELTAS for name, call in runs.items()]


def repeating(
    prepare: Callable,
    feedback: Feedback,
    error: torch.Tensor,
    layers: Sequence[Layer],
    updates: Sequence[LayerUpdate],
) -> Callable[[], object]:
    """A step of AdamW that repeats the last one with the next count, as a training loop takes it;
    ``prepare``: a backend's `repeated`."""
    step = prepare(feedback, "adamw", updates)
    ((*row, _),), _ = distinct_rows(updates)
    counts = itertools.count(4.0)
    inputs, saved = zip(*[layer[:2] for layer in layers], strict=True)
    return lambda: step(error, inputs, saved, [(*row, next(counts))])


def timed(runs: Sequence[Run], repeats: int) -> list[Spread]:
    """Microseconds of the calling thread."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(min(TURNS, repeats)):
        for run, kept in zip(runs, times, strict=True):
            with mock.patch.dict(os.environ, run.environment):
                for _ in range(min(20, repeats)):
                    run.call()
                for _ in range(-(-repeats // TURNS)):
                    start = time.thread_time()
                    run.call()
                    kept.append((time.thread_time() - start) * 1e6)
    return [spread(kept) for kept in times]


def on_device(context: Context) -> None:
    """A part of `bench.gpu`: the host's time of the whole call, beside the device's."""
    case = Case.on(context.device, context.tiny)
    names = [name for name in ("triton", cuda_backend(context.device)) if name is not None]
    for name in names:
        variable = f"DFA_KERNELS_{name.split('-')[0].upper()}_DELTA"
        repeated = backends.get(name).repeated  # type: ignore[attr-defined]
        for run in calls(ops, case, variable, repeated):
            with mock.patch.dict(os.environ, run.environment), backends.use(name):
                held = spread(host(run.call, context.device, context.pick(400, 2)))
                seconds = context.share(12 * len(names))
                took = spread(kernel(run.call, context.device, seconds, context.least))
            label = f"{run.operation} of {LAYERS} layers of {WIDTH}, N {ROWS}, δ {run.delta}"
            context.emit(fact(f"{label}, {name}: host", shown(held), unit="µs"))
            device = shown(Spread(*(1e3 * t for t in took)))
            context.emit(fact(f"{label}, {name}: device", device, unit="µs"))


def shown(times: Spread) -> str:
    """Median and quartiles."""
    return f"{times.median:.1f} ({times.low:.1f}–{times.high:.1f})"


#: What `launch_triton` and `launch_cuda` time.
OF_A_CALL = f"""\
Microseconds of the calling thread, from the call of the backend to where the driver would launch,
median (quartiles). {LAYERS} layers of {WIDTH} and a head, N {ROWS}, E {ERROR}, bf16 activations,
fp32 parameters; `gradients` allocates {2 * LAYERS + 2} tensors. No GPU: the driver's launch and the
device's time are not in it."""


def yardstick(repeats: int) -> Spread:
    """What the smallest call of torch takes here, to compare with another machine's page."""
    one = torch.ones(1)
    return timed([Run("add", "", {}, lambda: torch.add(one, one))], repeats)[0]


def page(side: Any, rows: Sequence[tuple[str, ...]], smallest: Spread) -> str:
    """What is written; ``side``: a module of this benchmark; ``smallest``: of `yardstick`."""
    env = environment.describe()
    lines = [
        f"# Host time of {side.SUBJECT}",
        "",
        f"Written by `python -m bench.launch {side.__name__.rsplit('_')[-1]}`.",
        *side.ABOUT.splitlines(),
        "What is compared was timed in turns; the machine's load average was "
        f"{os.getloadavg()[0]:.0f} then,",
        f"and torch.add of two tensors of one element took {shown(smallest)} µs.",
        "",
        f"{env['processor']}, {env['cores']} cores; {side.versions()}, torch {env['torch']}, "
        f"Python {env['python']}, dfa_kernels {env['dfa_kernels']}; {env['date']}.",
        "",
        "| " + " | ".join(side.TITLES) + " |",
        "|" + " --- |" * len(side.TITLES),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.launch", description=__doc__)
    parser.add_argument("side", nargs="?", choices=SIDES, help="all of them")
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--out", default="bench/results", metavar="DIR")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in (options.side,) if options.side else SIDES:
        side = importlib.import_module(f"bench.launch_{name}")
        text = page(side, side.measure(options.repeats), yardstick(options.repeats))
        (out / side.PAGE).write_text(text)
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
