"""Runs parts one after another in a process that may die: what it found until then is kept.

A wild address leaves a CUDA context unusable, a deadlock leaves it waiting, and a compiler may
crash. So the parts run in a worker, their rows come back one by one, and a worker that is late,
dead, or whose device has failed is replaced before the next part.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import torch

from bench.gpu import rehearsal
from bench.gpu.context import Context
from bench.gpu.rows import Row

DONE, FAILED, SKIPPED, LATE = "done", "failed", "skipped", "out of time"
#: Seconds in which a worker must be ready.
START = 120.0
#: What a pipe raises whose other end is gone.
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)
#: What a file says of a part that was under way when the whole run was cut off.
CUT_OFF = "cut off"


class _Part(Protocol):
    @property
    def least(self) -> float: ...

    @property
    def most(self) -> float: ...

    @property
    def run(self) -> Callable[[Context], None]: ...


class Result(NamedTuple):
    """How a part ended, what it emitted, and why it did not end well."""

    status: str
    seconds: float
    rows: list[Row]
    error: str = ""


class Budget:
    """Seconds for all parts, by a clock that a test may turn."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        return max(0.0, self._end - self._clock())

    def share(self, part: _Part) -> float:
        """What the part may have now; 0 where it is less than it needs."""
        share = min(part.most, self.left())
        return share if share >= part.least else 0.0


class Worker:
    """A process that runs parts; started at the first, and again after one that ended it.

    ``grace``: seconds beyond its own that a part is given to notice that they are over.
    """

    def __init__(self, device: str, tiny: bool, grace: float = 5.0) -> None:
        self._device, self._tiny, self._grace = device, tiny, grace
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Connection | None = None

    def run(
        self, part: Callable[[Context], None], seconds: float, emit: Callable[[Row], None]
    ) -> Result:
        """What came of it; ``emit`` has each row as soon as it is there. Its seconds begin once the
        process is `ready`: importing torch takes some, a dozen times at once many."""
        error = self.ready()
        start = time.monotonic()
        if error:
            return Result(FAILED, 0.0, [], error)
        assert self._pipe is not None
        rows: list[Row] = []
        try:
            self._pipe.send((part, seconds))
            while True:
                left = start + seconds + self._grace - time.monotonic()
                if not self._pipe.poll(max(0.0, left)):
                    self.stop()
                    error = f"stopped after {seconds:.0f} s"
                    return Result(LATE, time.monotonic() - start, rows, error)
                kind, what = self._pipe.recv()
                if kind == "row":
                    rows.append(what)
                    emit(what)
                    continue
                error, usable = what
                if not usable:
                    self.stop()
                status = FAILED if error else DONE
                return Result(status, time.monotonic() - start, rows, error)
        except _GONE:
            return Result(FAILED, time.monotonic() - start, rows, self._end())

    def ready(self) -> str:
        """Start the process, where there is none; why it cannot take a part, or nothing."""
        if self._process is not None:
            return ""
        self._start()
        assert self._pipe is not None
        try:
            if self._pipe.poll(START):
                self._pipe.recv()
                return ""
        except _GONE:
            return self._end()
        self.stop()
        return f"its process was not ready after {START:.0f} s"

    def _end(self) -> str:
        """What is known of a process that is gone."""
        self._process.join(5)
        code = self._process.exitcode
        self.stop()
        return f"its process ended with exit status {code}"

    def stop(self, patience: float = 5.0) -> None:
        """End the process, which is given ``patience`` seconds to end what it has started."""
        if self._process is None:
            return
        if patience:
            self._process.terminate()
            self._process.join(patience)
        self._process.kill()
        self._process.join()
        assert self._pipe is not None
        self._pipe.close()
        self._process, self._pipe = None, None

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve, args=(theirs, self._device, self._tiny), daemon=False
        )
        self._process.start()
        theirs.close()


def end_on_terminate() -> None:
    """Have SIGTERM leave this process as sys.exit does: `finally` runs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _serve(pipe: Connection, device: str, tiny: bool) -> None:
    """The worker: it says that it is ready; parts come in, rows and an outcome go out."""
    end_on_terminate()
    where = torch.device(device)
    if tiny:
        rehearsal.prepare()
    pipe.send(("ready", None))
    while True:
        try:
            part, seconds = pipe.recv()
        except EOFError:
            return
        error = ""
        try:
            part(Context(where, tiny, seconds, lambda row: pipe.send(("row", row))))
        except Exception:
            error = traceback.format_exc(limit=-8)
        pipe.send(("end", (error, _usable(where))))


def _usable(device: torch.device) -> bool:
    """Whether the device still answers; what the last part left is freed."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def run_all(
    parts: dict[str, Any],
    names: Iterable[str],
    budget: Budget,
    run: Callable[[Callable[[Context], None], float, Callable[[Row], None]], Result],
    seen: Callable[[str, Result], None],
) -> None:
    """Every named part within the budget. ``seen`` after each of its rows, with the part as it
    would stand if all ended there, and after the part, whether it ran or not."""
    for name in names:
        part = parts[name]
        share = budget.share(part)
        if not share:
            reason = f"{budget.left():.0f} s were left, and it takes at least {part.least:.0f}"
            seen(name, Result(SKIPPED, 0.0, [], reason))
            continue
        rows: list[Row] = []
        start = time.monotonic()

        def emit(row: Row, name: str = name, rows: list[Row] = rows, start: float = start) -> None:
            rows.append(row)
            seen(name, Result(CUT_OFF, time.monotonic() - start, list(rows), "the run ended here"))

        seen(name, run(part.run, share, emit))
