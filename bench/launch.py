"""What the Triton backend costs the host in a step of 8 small layers: `python -m bench.launch`.

Nothing here needs a GPU: the kernels are compiled for one (compute capability 9.0), and Triton gets
a driver that stands in for CUDA's and starts nothing. What is timed is all the Python from the call
of `step_` or `gradients` to where the driver would launch: layouts, tables and their look-up,
constants, and Triton's own part of a launch, which is shown by leaving it out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch

from bench.gpu.promises import network, updates_of
from bench.gpu.rows import Spread, fact, spread
from dfa_kernels import ops
from dfa_kernels.backends.contract import Layer, LayerUpdate
from dfa_kernels.feedback import Feedback
from dfa_kernels.throughput import environment
from dfa_kernels.throughput.timing import host, kernel

if TYPE_CHECKING:
    from bench.gpu.context import Context
    from dfa_kernels.backends.triton.kernels import Kernels
    from dfa_kernels.backends.triton.launch import Launch

ROWS, LAYERS, WIDTH, ERROR = 256, 8, 256, 10
DELTA = "DFA_KERNELS_TRITON_DELTA"
#: How δ is made: the rule's choice for this shape, and the other.
DELTAS = ("on-the-fly", "stored")


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


class _Driver:
    """As much of a Triton driver as a launch asks for: one H200, which runs nothing."""

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", 90, 32)
        self.utils = self

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}

    def load_binary(self, *_: Any) -> tuple:
        return None, 0, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *_: None


class _Nothing:
    """A kernel whose launch is not even Triton's."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.warmup

    def warmup(self, *_: Any, **__: Any) -> None:
        pass


@contextlib.contextmanager
def without_device(with_triton: bool) -> Iterator[Kernels]:
    """The backend's kernels on CPU tensors as on a GPU, without one."""
    import triton

    from dfa_kernels.backends.triton import kernels, rules, table
    from dfa_kernels.backends.triton.launch import Launcher

    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")

    class _Launcher(Launcher):
        def __init__(self) -> None:
            super().__init__()
            self._nothing[cuda] = (torch.empty(1), torch.zeros(1, dtype=torch.int32))

        def run(self, launches: Any, device: torch.device) -> None:
            super().run([self._changed(launch) for launch in launches], cuda)

        def _changed(self, launch: Launch) -> Launch:
            return launch if with_triton else launch._replace(kernel=nothing)

    nothing = _Nothing()
    stream = mock.Mock(stream_id=0)
    written = lambda entries, _: torch.tensor(entries, device=cpu)  # noqa: E731
    with (
        mock.patch.object(rules, "device_of", lambda _: rules.Device("cuda", 90, 132)),
        mock.patch.object(table, "_written", written),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: False),
        mock.patch.object(torch.cuda, "current_stream", lambda _=None: stream),
        mock.patch.object(kernels, "Launcher", _Launcher),
        mock.patch.object(triton.runtime.driver, "_active", _Driver()),
    ):
        yield kernels.Kernels()


def measure(repeats: int = 2000) -> dict[tuple[str, str], tuple[Spread, Spread]]:
    """Microseconds by operation and δ: without Triton's part of a launch, and with it."""
    case, feedback = Case.on(torch.device("cpu")), Feedback()
    found: dict[tuple[str, str], list[Spread]] = {}
    for with_triton in (False, True):
        with without_device(with_triton) as kernels:
            runs = {
                "step_ (AdamW)": lambda: kernels.step_(feedback, "adamw", case.updates),
                "gradients": lambda: kernels.gradients(
                    case.error, feedback, 0.1, case.layers, torch.bfloat16
                ),
            }
            for delta in DELTAS:
                with mock.patch.dict(os.environ, {DELTA: delta}):
                    for name, run in runs.items():
                        times = _microseconds(run, repeats)
                        found.setdefault((name, delta), []).append(spread(times))
    return {key: (without, whole) for key, (without, whole) in found.items()}


def _microseconds(run: Callable[[], object], repeats: int) -> list[float]:
    for _ in range(min(50, repeats)):
        run()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        run()
        times.append((time.thread_time() - start) * 1e6)
    return times


def on_device(context: Context) -> None:
    """A part of `bench.gpu`: the host's time of the whole call, beside the device's."""
    case, feedback = Case.on(context.device, context.tiny), Feedback()
    runs = {
        "step_ (AdamW)": lambda: ops.step_(feedback, "adamw", case.updates),
        "gradients": lambda: ops.gradients(case.error, feedback, 0.1, case.layers, torch.bfloat16),
    }
    for delta in DELTAS:
        with mock.patch.dict(os.environ, {DELTA: delta}):
            for name, run in runs.items():
                held = spread(host(run, context.device, context.pick(400, 2)))
                took = spread(kernel(run, context.device, context.share(8), context.least))
                label = f"{name} of {LAYERS} layers of {WIDTH}, N {ROWS}, δ {delta}"
                context.emit(fact(f"{label}: host", _shown(held), unit="µs"))
                shown = _shown(Spread(*(1e3 * t for t in took)))
                context.emit(fact(f"{label}: device", shown, unit="µs"))


def _shown(times: Spread) -> str:
    return f"{times.median:.0f} ({times.low:.0f}–{times.high:.0f})"


def markdown(found: dict[tuple[str, str], tuple[Spread, Spread]]) -> str:
    import triton

    env = environment.describe()
    lines = [
        "# Host time of a call",
        "",
        "Written by `python -m bench.launch`: microseconds of the calling thread, from the call of",
        "the Triton backend to where the driver would launch, median (quartiles).",
        f"{LAYERS} layers of {WIDTH} and a head, N {ROWS}, E {ERROR}, bf16 activations, fp32",
        "parameters; tables are looked up, as in every step but the first. No GPU: the kernels are",
        "compiled for compute capability 9.0 and not run, so the driver's launch and the device's",
        "time are not in it.",
        "",
        f"{env['processor']}, {env['cores']} cores; triton {triton.__version__}, torch "
        f"{env['torch']}, Python {env['python']}, dfa_kernels {env['dfa_kernels']}; {env['date']}.",
        "",
        "| operation | δ | launches | ours, µs | with Triton's own part, µs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (name, delta), (without, whole) in found.items():
        launches = 1 if delta == "on-the-fly" else 2
        cells = (name, delta, str(launches), _shown(without), _shown(whole))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.launch", description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--out", default="bench/results", metavar="DIR")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = markdown(measure(options.repeats))
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "launch.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
