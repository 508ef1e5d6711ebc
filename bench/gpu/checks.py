"""The tests of `tests/gpu`, each in a process that may die, and compute-sanitizer."""

from __future__ import annotations

import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import torch

from bench.gpu.context import Context
from bench.gpu.rows import BROKEN, NO_TIME, NOT_RUN, PASSED, Row, check, fact
from bench.gpu.supervisor import DONE, LATE, Result, Worker

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "gpu"
#: Processes for the tests, most of whose time goes into compiling kernels.
WORKERS = 12
#: What takes longest, which therefore comes first: tests of its kernels' results, at that.
CONFORMANCE = "test_gpu_conformance"
#: compute-sanitizer's exit status where it found an error, and its tools. memcheck would count
#: calls of the API that fail as errors: torch and Triton ask for what may not be there.
FOUND = 9
_EVERY = ("--error-exitcode", str(FOUND), "--target-processes", "application-only")
TOOLS = {
    "memcheck": ("--tool", "memcheck", "--report-api-errors", "no", *_EVERY),
    "racecheck": ("--tool", "racecheck", *_EVERY),
}
#: Each tensor is an allocation of its own: what goes beyond its end is seen.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


class Case(NamedTuple):
    """A test: a function of a module in ``folder``, over the ``number``-th of its cases or none."""

    folder: str
    module: str
    function: str
    number: int | None
    label: str

    def __str__(self) -> str:
        return f"{self.module}.py::{self.function}" + (f"[{self.label}]" if self.label else "")


def collected(folder: Path, pattern: str = "test_*.py") -> list[Case]:
    """Every test of ``folder``'s files: conformance, then those of the other files."""
    label = _module(folder, "gpu_cases").label
    found = []
    files = sorted(folder.glob(pattern), reverse=True)
    for file in sorted(files, key=lambda file: file.stem != CONFORMANCE):
        for name, function in vars(_module(folder, file.stem)).items():
            if not name.startswith("test_"):
                continue
            cases = getattr(function, "cases", None)
            numbered = [(None, "")] if cases is None else [*enumerate(map(label, cases))]
            found += [Case(str(folder), file.stem, name, *case) for case in numbered]
    return found


def _module(folder: Path, name: str):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def run_one(test: Case, context: Context) -> None:
    """In a worker: a note says why it was skipped; it raises where it fails."""
    function = getattr(_module(Path(test.folder), test.module), test.function)
    torch.manual_seed(0)
    try:
        function(*([] if test.number is None else [function.cases[test.number]]))
    except unittest.SkipTest as skipped:
        context.say(str(skipped))


#: What comes before all other tests: whether the hardware does what the emulator takes it to do.
VECTORS = "test_gpu_vectors.py"


def vectors(context: Context) -> None:
    """The emulator's, in one process: nothing in them is compiled but once."""
    every = collected(TESTS, VECTORS)
    context.emit(fact("tests", len(every)))
    make = functools.partial(Worker, context.device.type, context.tiny, grace=1.0)
    run_tests(every, 1, make, context)


def tests(context: Context) -> None:
    """All others, several at a time."""
    count = 1 if context.tiny else min(WORKERS, os.cpu_count() or 1)
    every = [test for test in collected(TESTS) if f"{test.module}.py" != VECTORS]
    context.emit(fact("tests", len(every)))
    context.say(f"They ran in {count} processes; pytest runs the same where it is installed.")
    make = functools.partial(Worker, context.device.type, context.tiny, grace=1.0)
    run_tests(every, count, make, context)


def run_tests(every: list[Case], count: int, make: Callable[[], Worker], context: Context) -> None:
    """A row for each test, in the order in which they end."""
    waiting: SimpleQueue[Case] = SimpleQueue()
    for test in every:
        waiting.put(test)
    ended: list[Case] = []
    one_at_a_time = threading.Lock()
    workers = [make() for _ in range(count)]

    def work(worker: Worker) -> None:
        while True:
            worker.ready()  # what it takes is this part's time, and not the test's
            if (left := context.left() - 3) <= 0:
                return
            try:
                test = waiting.get_nowait()
            except Empty:
                return
            part = functools.partial(run_one, test)
            result = worker.run(part, left, lambda _: None)
            with one_at_a_time:
                context.emit(outcome(test, result))
                ended.append(test)

    threads = [threading.Thread(target=work, args=(w,), daemon=True) for w in workers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for worker in workers:
            worker.stop(patience=0)
    if len(ended) < len(every):
        raise TimeoutError(f"{len(every) - len(ended)} tests did not have their turn")


def outcome(test: Case, result: Result) -> Row:
    """What a worker's result says of the test."""
    name = f"tests/gpu/{test}"
    if result.status == LATE:
        return check(name, NO_TIME, result.error, result.seconds)
    if result.status != DONE:
        reason = result.error.strip().splitlines()[-1]
        return check(name, BROKEN, reason, result.seconds, result.error)
    skipped = [r["text"] for r in result.rows]
    if skipped:
        return check(name, NOT_RUN, skipped[0], result.seconds)
    return check(name, PASSED, "", result.seconds)


def sanitizer(context: Context) -> None:
    """memcheck and racecheck on a small case, where compute-sanitizer is installed; the case alone
    in a rehearsal."""
    case = [sys.executable, "-m", "bench.gpu.sanitized"]
    if context.tiny:
        output, code = _run(case, context.left())
        if code != 0 or "small case: done" not in output:
            raise RuntimeError(f"the small case did not run: {output[-2000:]}")
        return
    program = shutil.which("compute-sanitizer") or _in_toolkit()
    if program is None:
        context.say("compute-sanitizer is not installed: neither memcheck nor racecheck ran.")
        return
    for left, tool in zip((2, 1), TOOLS, strict=True):
        if context.left() < 10:
            context.say(f"{tool} was left out: {context.left():.0f} s were left.")
            continue
        seconds = (context.left() - 3) / left  # the other tool has as much
        output, code = _run([program, *TOOLS[tool], *case], seconds, **UNCACHED)
        context.emit(sanitized(tool, output, code))


def sanitized(tool: str, output: str, code: int | None) -> Row:
    """What its output says; a tool that did not get to its summary shows nothing."""
    name = f"compute-sanitizer {tool}"
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.+)", output)
    if code == FOUND and summary:
        return check(name, BROKEN, summary[-1], output=output)
    if code == 0 and summary and "small case: done" in output:
        return check(name, PASSED, summary[-1])
    why = "timed out" if code is None else f"it did not get to its end (exit status {code})"
    return check(name, NOT_RUN, why, output=output)


def _in_toolkit() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = Path(home) / "bin" / "compute-sanitizer"
    return str(path) if path.exists() else None


def _run(command: list[str], seconds: float, **variables: str) -> tuple[str, int | None]:
    """What it prints, and its exit status, or None after ``seconds``; it is ended with all that it
    has started."""
    environment = {**os.environ, "PYTHONPATH": _path(), **variables}
    with tempfile.TemporaryFile("w+", errors="replace") as printed:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        code: int | None
        try:
            code = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        printed.seek(0)
        return printed.read(), code


def _path() -> str:
    """The checkout first, then what the caller has there."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
