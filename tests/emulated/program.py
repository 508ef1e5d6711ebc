"""Runs a C++ program of kernels and emulator, as one of the sanitizers' builds or a plain one."""

import os
import subprocess

import pytest

from tests.emulator.build import COMPILER, build, links


def run(sources, sanitizer, *arguments):
    """Its exit code, and what it said; skips where the sanitizer does not work here."""
    if not links(sanitizer):
        pytest.skip(f"{COMPILER} has no {sanitizer} sanitizer")
    program = build(sources, sanitizer=sanitizer, program=True)
    # A launch that fails leaves its fibers, and what they hold, where they stand.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this system's address layout is not for ThreadSanitizer")
    return done.returncode, done.stdout + done.stderr
