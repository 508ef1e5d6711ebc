"""The contestants of a `Job` in turns, in this process: `python -m dfa_kernels.throughput.turns`
reads jobs in JSON from standard input, a list, and writes events, a line each.

    {"event": "begun", "job": …}                      by its place in the list
    {"event": "absent", "contestant": …, "why": …}    its package is not installed
    {"event": "died", "contestant": …, "why": …}      it raised, while built or in a turn
    {"event": "measured", "contestant": …, "samples_ms": […], "launches": …}

Whose turn it is stands in the file that the first argument names, so that whoever started this
process knows who ended it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dfa_kernels import backends
from dfa_kernels.throughput import counting, lineup
from dfa_kernels.throughput.contestants import Built
from dfa_kernels.throughput.job import Job, ready
from dfa_kernels.throughput.result import BASELINE
from dfa_kernels.throughput.timing import Run, flusher, rounds, warm

Event = dict[str, Any]

#: The exit status where a contestant left the device unusable.
BROKEN = 70


class BrokenDeviceError(RuntimeError):
    """After a contestant died, the device answers nobody."""


def measure(
    job: Job,
    emit: Callable[[Event], None],
    before: Callable[[str], None] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Build who can be built, give all of them turns, and emit what came of it.

    An interruption is raised after what was measured until then is emitted.
    """
    device = torch.device(job.device)

    def died(name: str, failed: Exception) -> None:
        emit({"event": "died", "contestant": name, "why": lineup.summary(failed)})
        if device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
            except RuntimeError:
                raise BrokenDeviceError(name) from failed

    with ready(job):
        built: dict[str, Built] = {}
        launches: dict[str, int | None] = {}
        for name in job.contestants:
            before(name)
            try:
                made = lineup.named(name).build(job.task, job.setting)
                warm(made.run, device, 1)
                # What a compiler has made is launched past PyTorch's dispatcher.
                launches[name] = None if name == BASELINE else counting.launched(made.run)
            except ImportError as absent:
                emit({"event": "absent", "contestant": name, "why": str(absent)})
            except Exception as failed:
                died(name, failed)
            else:
                built[name] = made
        runs: dict[str, Run] = {name: made.bare or made.run for name, made in built.items()}
        times: dict[str, list[float]] = {}

        def begin(name: str) -> None:
            before(name)
            backends.use(built[name].backend)

        try:
            with backends.use(None):
                rounds(
                    runs, device, job.seconds, least=job.least, clock=clock, died=died,
                    before=begin, flush=flusher(device), into=times,
                )  # fmt: skip
        finally:
            for name, samples in times.items():
                told = [float(f"{ms:.5g}") for ms in samples]  # no clock is better than that
                emit({
                    "event": "measured", "contestant": name, "samples_ms": told,
                    "launches": launches[name],
                })  # fmt: skip


def main(marker: Path) -> int:
    # What libraries print must not come between the events.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.filterwarnings("ignore", module="torch")
    jobs = [Job.of(given) for given in json.load(sys.stdin)]
    whose, starter = os.open(marker, os.O_WRONLY | os.O_CREAT), os.getppid()

    def emit(event: Event) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    def before(name: str) -> None:
        if os.getppid() != starter:
            raise BrokenPipeError("whoever started this process has been ended")
        text = name.encode()
        os.pwrite(whose, text, 0)
        os.ftruncate(whose, len(text))

    try:
        for i, job in enumerate(jobs):
            emit({"event": "begun", "job": i})
            measure(job, emit, before)
            torch.compiler.reset()  # what it has made is of one shape
            gc.collect()
    except KeyboardInterrupt:
        return 130
    except BrokenDeviceError:
        return BROKEN
    except BrokenPipeError:  # nobody listens any more: what is unsaid must not be said at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), channel.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
