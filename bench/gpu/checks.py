"""The GPU-marked tests, and compute-sanitizer: programs of their own, whose output is read."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench.gpu.context import Context
from bench.gpu.rows import MISSED, REACHED

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "gpu"
#: Processes for the tests: most of their time goes into compiling kernels.
WORKERS = 8

_OUTCOME = r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
_LINE = re.compile(rf"(?:{_OUTCOME}\s+(\S+::\S+))|(?:(\S+::\S+)\s+{_OUTCOME})")


def tests(context: Context) -> None:
    """tests/gpu by pytest where it is installed, in parallel where xdist is; else by its own
    small runner."""
    if importlib.util.find_spec("pytest"):
        command = [sys.executable, "-m", "pytest", str(TESTS), "-v", "--tb=short"]
        command += ["-p", "no:cacheprovider"]
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
            context.say(f"The tests ran under pytest, in {command[-1]} processes.")
        else:
            context.say("The tests ran under pytest, one after another: xdist is not installed.")
    else:
        command = [sys.executable, str(TESTS / "run.py")]
        context.say("pytest is not installed: the tests ran under tests/gpu/run.py.")
    output, code = _run(command, context.left() - 3)
    for row in outcomes(output, code):
        context.emit(row)


def outcomes(output: str, code: int | None) -> list[dict]:
    """A row of the counts, and one for each test that did not pass; ``code`` None: timed out."""
    found: dict[str, str] = {}
    for match in _LINE.finditer(output):
        first, name, other, last = match.groups()
        found[name or other] = first or last
    counts = Counter(found.values())
    failed = [n for n, how in found.items() if how in ("FAILED", "ERROR")]
    right = code == 0 and not failed and counts["PASSED"] > 0
    why = "" if code == 0 else "timed out" if code is None else f"exit status {code}"
    row = {
        "kind": "tests",
        "name": "tests/gpu",
        "counts": {k.lower(): v for k, v in sorted(counts.items())},
        "failed": sorted(failed),
        "why": why,
        "verdict": REACHED if right else MISSED,
        "output": "" if right else output[-12000:],
    }
    return [row]


def sanitizer(context: Context) -> None:
    """memcheck and racecheck on a small case, where compute-sanitizer is installed."""
    program = shutil.which("compute-sanitizer") or _in_toolkit()
    if program is None:
        context.say("compute-sanitizer is not installed: neither memcheck nor racecheck ran.")
        return
    for tool in ("memcheck", "racecheck"):
        if context.left() < 15:
            context.say(f"{tool} was left out: {context.left():.0f} s were left.")
            continue
        command = [program, "--tool", tool, "--error-exitcode", "9"]
        command += [sys.executable, "-m", "bench.gpu.sanitized"]
        output, code = _run(command, context.left() - 3, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        context.emit(sanitized(tool, output, code))


def sanitized(tool: str, output: str, code: int | None) -> dict:
    """What its output says; a tool that did not get to its summary shows nothing."""
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.+)", output)
    finished = bool(summary) and "small case: done" in output
    row = {"kind": "tests", "name": f"compute-sanitizer {tool}", "counts": {}, "failed": []}
    if not finished:
        why = "timed out" if code is None else "it did not get to its summary"
        return {**row, "why": f"did not run: {why}", "verdict": None, "output": output[-4000:]}
    clean = code == 0
    return {
        **row,
        "why": summary[-1],
        "verdict": REACHED if clean else MISSED,
        "output": "" if clean else output[-12000:],
    }


def _in_toolkit() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = Path(home) / "bin" / "compute-sanitizer"
    return str(path) if path.exists() else None


def _run(command: list[str], seconds: float, **variables: str) -> tuple[str, int | None]:
    """What it prints, and its exit status, or None after ``seconds``; it is ended with all that it
    has started."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
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
