"""`dfa-kernels profile`, from what was asked for to the files that it leaves in a folder.

profile.json: every figure. profile.png: a step of each method on one time axis. trace-METHOD.json:
the profiled steps for chrome://tracing or Perfetto. A run replaces the files of the one before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, schedule
from torch.profiler import profile as profiler
from torch.utils.benchmark import Measurement, Timer

from dfa_kernels import backends
from dfa_kernels.profiling import report, trace, work
from dfa_kernels.profiling.options import Options
from dfa_kernels.profiling.parts import apart
from dfa_kernels.profiling.picture import draw
from dfa_kernels.profiling.ranges import watched
from dfa_kernels.profiling.report import Log, Profile
from dfa_kernels.profiling.subject import Factory, Subject, factory_of, sentence
from dfa_kernels.profiling.trace import Step, Unit
from dfa_kernels.profiling.work import Work
from dfa_kernels.throughput import ceilings, environment
from dfa_kernels.throughput.result import Ceilings
from dfa_kernels.throughput.spread import spread
from dfa_kernels.training import InputError, folders

PROFILE, PICTURE = "profile.json", "profile.png"

#: Steps before anything is measured, and under the profiler before any is kept.
_WARM_UP = 3
#: Seconds for each ceiling, and for which the step is timed without the profiler, before its turn
#: and again after it; steps that are timed so at the least.
_SECONDS = 1.0
_LEAST = 5
#: Between the quartiles of the plain steps, as a share of the median, from which on it is said.
_DISTURBED = 0.2


def profile(given: Mapping[str, Any], out: Path | None = None) -> int:
    """Profile each method, print its tables, and write the files.

    Args:
        given: the options that were given: see `Options`.
        out: the folder to write to; None: runs/profile.

    Returns:
        The exit status: 0, or 1 where a method could not be profiled and another could.

    Raises:
        InputError: nothing could be profiled, or written.
    """
    options = Options.resolve(given)
    torch.set_num_threads(options.threads)
    factory = factory_of(options)
    folder = out or Path("runs") / "profile"
    folders.make(folder)
    console = Console()
    with Console(stderr=True).status("measuring what the device can do at most"):
        most = ceilings.measure(torch.device(options.device), _multiplied(options), _SECONDS)
    profiles: dict[str, tuple[Profile, Step]] = {}
    failed: dict[str, str] = {}
    for method in options.method:
        try:
            with Console(stderr=True).status(f"profiling {method}"):
                profiles[method] = _profiled(options, method, factory, most, folder)
        except InputError as refused:
            if len(options.method) == 1:
                raise
            failed[method] = str(refused)
            print(f"{method} was not profiled: {refused}", file=sys.stderr)
            continue
        report.print_tables(console, profiles[method][0], most, _title(options, method))
    if not profiles:
        raise InputError(f"none of {', '.join(options.method)} could be profiled")
    taken = {method: taken for method, (taken, _) in profiles.items()}
    about = environment.describe(torch.device(options.device))
    found = Log(about, options.as_dict(), options.subject(), most, taken, failed)
    report.write(folder / PROFILE, report.as_json(found))
    draw(folder / PICTURE, profiles, f"{options.subject()}, {options.dtype}, {options.device}")
    traces = ", ".join(str(folder / _trace(method)) for method in profiles)
    print(f"{folder / PROFILE}, {folder / PICTURE}, {traces}")
    return 1 if failed else 0


def _multiplied(options: Options) -> list[str]:
    """The dtypes that products may be of: under autocast, those that it leaves alone too."""
    return ["bfloat16", "float32"] if options.dtype == "autocast" else [options.dtype]


def _title(options: Options, method: str) -> str:
    return f"{method}: {options.subject()}, {options.dtype}, {options.device}"


def _trace(method: str) -> str:
    return f"trace-{method}.json"


def _profiled(
    options: Options, method: str, factory: Factory, most: Ceilings, folder: Path
) -> tuple[Profile, Step]:
    """The profile, and the step for the picture: the one that was disturbed the least."""
    with backends.use(options.backend), _one_sentence(method):
        subject = Subject(options, method, factory)
        for _ in range(_WARM_UP):
            subject.step()
        works, uncounted = _counted(subject)
        before = _timed(subject)
        steps = _traced(options, subject, folder / _trace(method))
        timed = Measurement.merge([before, _timed(subject)])[0]
        device = torch.device(options.device)
        backend = backends.chosen(device, next(subject.net.parameters()).dtype)[0]
    parts, layers, notes = apart(steps, works, most)
    notes += uncounted
    ms, low, high = (t * 1e3 for t in spread(timed.times))
    busy = sum(line.ms for line in parts)
    if busy > ms:
        notes.append(
            f"under the profiler the operations alone take {busy:,.3f} ms, longer than the whole "
            "step without it: too small, or too disturbed, for what Python takes to be known"
        )
    if high - low > _DISTURBED * ms:
        notes.append(
            f"the machine was disturbed: half of the plain steps lie outside of {low:.3g} to "
            f"{high:.3g} ms, and what others took of a step is counted as Python's"
        )
    found = Profile(
        method=method,
        backend="none: plain autograd" if method == "bp" else backend,
        optimizer=f"{type(subject.optimizer).__module__.split('.')[0]}.optim."
        f"{type(subject.optimizer).__name__}",
        fused=subject.fused,
        ms=ms,
        quartiles=(low, high),
        profiled_ms=spread([step.whole for step in steps]).median,
        python_ms=max(0.0, ms - busy),
        parts=tuple(parts),
        layers=tuple(layers),
        notes=tuple(notes),
    )
    return found, min(steps, key=lambda step: step.whole)


@contextmanager
def _one_sentence(method: str) -> Iterator[None]:
    """Whatever a network or a backend raises in the middle, as one."""
    try:
        yield
    except InputError:
        raise
    except Exception as died:
        raise InputError(f"a step by {method} died: {sentence(died)}") from died


def _counted(subject: Subject) -> tuple[dict[Unit, Work], list[str]]:
    """What a step must do; or nothing, and a sentence, where a network cannot be watched."""
    try:
        return work.count(subject), []
    except Exception as refused:
        return {}, [f"there are no floors, for the work was not counted: {sentence(refused)}"]


def _timed(subject: Subject) -> Measurement:
    """One step at a time, so that a step which the system interrupts is one among many; on a GPU
    many on end, for the host runs ahead of it."""
    timer = Timer("step()", globals={"step": subject.step}, num_threads=torch.get_num_threads())
    if subject.inputs[0].is_cuda:
        return timer.blocked_autorange(min_run_time=_SECONDS)
    taken = [timer.timeit(1)]
    while len(taken) < _LEAST or sum(one.mean for one in taken) < _SECONDS:
        taken.append(timer.timeit(1))
    return Measurement.merge(taken)[0]


def _traced(options: Options, subject: Subject, path: Path) -> list[Step]:
    """The steps under the profiler, whose trace stays at ``path``."""
    activities = [ProfilerActivity.CPU]
    if torch.device(options.device).type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=0, warmup=_WARM_UP, active=options.steps, repeat=1)
    with watched(subject), profiler(activities=activities, schedule=plan, acc_events=True) as watch:
        for _ in range(_WARM_UP + options.steps):
            subject.step()
            if torch.device(options.device).type == "cuda":
                torch.cuda.synchronize()
            watch.step()
    watch.export_chrome_trace(str(path))
    found = trace.load(path)
    report.write(path, found)
    return trace.steps(found)
