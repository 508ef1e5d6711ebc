"""The Triton backend's side of `python -m bench.launch`.

The kernels are compiled for a GPU (compute capability 9.0), and Triton gets a driver that stands in
for CUDA's and starts nothing. What is timed is all the Python from the call of `step_` or
`gradients` to where the driver would launch: layouts, tables and their look-up, constants, and
Triton's own part of a launch, which is shown by leaving it out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from bench.launch import DELTAS, OF_A_CALL, Case, calls, shown, timed

if TYPE_CHECKING:
    from dfa_kernels.backends.triton.kernels import Kernels
    from dfa_kernels.backends.triton.launch import Launch

VARIABLE = "DFA_KERNELS_TRITON_DELTA"

PAGE = "launch.md"
SUBJECT = "a call of the Triton backend"
ABOUT = f"""\
{OF_A_CALL}
Tables are looked up, as in every step but the first. The kernels are compiled for compute
capability 9.0 and not run."""
TITLES = ("operation", "δ", "launches", "ours, µs", "with Triton's own part, µs")


def measure(repeats: int) -> list[tuple[str, ...]]:
    """The rows: without Triton's part of a launch, and with it."""
    case = Case.on(torch.device("cpu"))
    found = []
    for with_triton in (False, True):
        with without_device(with_triton) as kernels:
            runs = calls(kernels, case, VARIABLE)
            found.append(timed(runs, repeats))
    launches = {delta: str(1 + i) for i, delta in enumerate(DELTAS)}
    return [
        (run.operation, run.delta, launches[run.delta], shown(without), shown(whole))
        for run, without, whole in zip(runs, *found, strict=True)
    ]


def versions() -> str:
    import triton

    return f"triton {triton.__version__}"


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

        def first(self, launches: Any, device: torch.device) -> Any:
            return super().first([self._changed(launch) for launch in launches], cuda)

        def again(self, every: Any, hyper: Any, device: torch.device) -> None:
            super().again(every, hyper, cuda)

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
        mock.patch.object(torch.cuda, "current_device", lambda: 0),
        mock.patch.object(kernels, "Launcher", _Launcher),
        mock.patch.object(triton.runtime.driver, "_active", _Driver()),
    ):
        yield kernels.Kernels()
