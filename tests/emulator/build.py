"""Compiles emulated kernels with g++, once for each content: objects stay in build/emulator."""

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

EMULATOR = Path(__file__).parent
ROOT = EMULATOR.parents[1]
CSRC = ROOT / "csrc"
KEPT = ROOT / "build" / "emulator"

COMPILER = os.environ.get("CXX", "g++")
# CUDA C++ reads memory through pointers of other types, and ignores no `#pragma unroll`.
FLAGS = (
    *("-std=c++20", "-g", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", f"-ffile-prefix-map={ROOT}/="),
    *(f"-I{CSRC}", f"-I{EMULATOR}"),
)
# Optimised, the checks of "address" take five times as long to compile.
SANITIZERS = {
    None: ("-O1",),
    "address": ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-O1", "-fsanitize=thread"),
}


class CompileError(Exception):
    """What the compiler said."""


def build(sources, flags=(), sanitizer=None, program=False) -> Path:
    """The shared library of the emulator and `sources` (compiled with `flags`).

    Or the program, where one of them has a `main`; `sanitizer`: "address" (with undefined
    behaviour) or "thread".
    """
    sanitize = SANITIZERS[sanitizer]
    # The emulator itself tells ThreadSanitizer which accesses are a kernel's.
    own = sanitize if sanitizer == "address" else ("-O2",)
    emulator = [_object(s, own) for s in sorted(EMULATOR.glob("*.cpp"))]
    kernels = [_object(Path(s), (*sanitize, *flags)) for s in sources]
    linked = ("-pthread", *(() if program else ("-shared",)), *sanitize)
    suffix = ".exe" if program else ".so"
    name = _key(linked, *(str(o) for o in emulator + kernels)) + suffix
    return _once(name, (*map(str, kernels + emulator), *linked))


@cache
def links(sanitizer) -> bool:
    """Whether this compiler can build with the sanitizer."""
    command = [COMPILER, *SANITIZERS[sanitizer], "-x", "c++", "-", "-o", os.devnull]
    return not subprocess.run(
        command, input="int main() {}", text=True, capture_output=True
    ).returncode


def _object(source: Path, flags) -> Path:
    key = _key(_version(), FLAGS, flags, source.read_bytes(), _headers())
    flags = (*FLAGS, *flags, "-c", "-x", "c++", str(source))
    return _once(f"{source.stem}-{key}.o", flags)


def _once(name: str, arguments) -> Path:
    """What the compiler makes of the arguments, unless it is there already."""
    made = KEPT / name
    if not made.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        part = made.with_name(f"{os.getpid()}-{name}")
        done = subprocess.run(
            [COMPILER, *arguments, "-o", str(part)], capture_output=True, text=True
        )
        if done.returncode:
            raise CompileError(done.stderr)
        part.replace(made)
    return made


def _key(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


@cache
def _version() -> str:
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout


@cache
def _headers() -> str:
    found = sorted([*CSRC.glob("*.*h"), *EMULATOR.glob("*.h")])
    return _key(*((h.name, h.read_bytes()) for h in found))
