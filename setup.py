"""Compiles csrc/ into dfa_kernels.backends.cuda._core, where there is an nvcc.

Metadata is in pyproject.toml. Two variables say what is wanted:

    DFA_KERNELS_CUDA        auto: without nvcc, or where it fails, the package is pure Python and
                            `dfa-kernels info` says why (the default); require: that is an error;
                            skip: nothing is compiled
    DFA_KERNELS_CUDA_ARCHS  "80 86 89 90 100 120"; PTX of the newest is added, for later GPUs.
                            All six took an AMD EPYC 200 s of processor time (nvcc 13.0)
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("dfa_kernels/backends/cuda")
SOURCES = ("update.cu", "project.cu", "binding.cpp")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
OLDEST = (12, 8)
MODES = ("auto", "require", "skip")


class CannotCompileError(Exception):
    """Why csrc/ cannot be compiled, in one sentence."""


# What is asked for ------------------------------------------------------------------------------


def mode() -> str:
    asked = os.environ.get("DFA_KERNELS_CUDA") or "auto"
    if asked not in MODES:
        raise SystemExit(f"DFA_KERNELS_CUDA must be one of {', '.join(MODES)}, got {asked!r}")
    return asked


def architectures() -> tuple[int, ...]:
    """Compute capabilities as 80, 90, …, in ascending order."""
    asked = os.environ.get("DFA_KERNELS_CUDA_ARCHS") or " ".join(map(str, ARCHITECTURES))
    words = re.split(r"[\s,;]+", asked.strip())
    for word in words:
        if not re.fullmatch(r"\d{2,3}", word) or int(word) < 80:
            raise SystemExit(
                f"DFA_KERNELS_CUDA_ARCHS must list compute capabilities from 80 on, such as "
                f"'80 90', got {asked!r}"
            )
    return tuple(sorted({int(word) for word in words}))


# The toolkit ------------------------------------------------------------------------------------


class Toolkit(NamedTuple):
    nvcc: Path
    top: Path  # the folder that has bin, include and lib
    version: tuple[int, int]

    @property
    def shown(self) -> str:
        return ".".join(map(str, self.version))

    def libraries(self) -> list[Path]:
        folders = [self.top / name for name in ("lib64", "lib", "targets/x86_64-linux/lib")]
        return [f for f in folders if (f / "libcudart_static.a").exists()]


def find_toolkit() -> Toolkit:
    """The first nvcc that is new enough: on PATH, in CUDA_HOME or CUDA_PATH (or /usr/local/cuda,
    where neither is set), or of the wheels from PyPI.

    Raises:
        CannotCompileError: there is none.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    tops = [named or "/usr/local/cuda", *(f"{folder}/nvidia/cu13" for folder in sys.path)]
    found = [shutil.which("nvcc"), *(shutil.which("nvcc", path=f"{t}/bin") for t in tops)]
    refused: dict[str, None] = {}
    for nvcc in filter(None, found):
        toolkit, why = _ask(nvcc)
        if toolkit is not None:
            return toolkit
        refused[why] = None
    oldest = ".".join(map(str, OLDEST))
    raise CannotCompileError(
        "; ".join(refused)
        or f"there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda ({oldest} or later)"
    )


def _ask(nvcc: str) -> tuple[Toolkit | None, str]:
    """The toolkit of this nvcc, which may be a wrapper script, or why it will not do."""
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError as failed:
        return None, f"{nvcc} cannot be run: {failed.strerror}"
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None:
        return None, f"{nvcc} --version names no release"
    version = int(release[1]), int(release[2])
    if version < OLDEST:
        return None, f"{nvcc} is {version[0]}.{version[1]}, and {OLDEST[0]}.{OLDEST[1]} is needed"
    dry = [nvcc, "-dryrun", "-E", "-x", "cu", os.devnull]
    top = re.search(
        r"^#\$ TOP=(.+)$", subprocess.run(dry, capture_output=True, text=True).stderr, re.M
    )
    folder = Path(top[1].strip()) if top else Path(nvcc).resolve().parents[1]
    return Toolkit(Path(nvcc), folder, version), ""


# Compiling --------------------------------------------------------------------------------------


def gencode(wanted: tuple[int, ...]) -> list[str]:
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in wanted]
    return [*flags, f"-gencode=arch=compute_{wanted[-1]},code=compute_{wanted[-1]}"]


def compile_module(toolkit: Toolkit, wanted: tuple[int, ...], target: Path, scratch: Path) -> None:
    """One object per source, in parallel, and the module of them.

    Raises:
        CannotCompileError: a command fails; what it said is printed.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    cores = os.cpu_count() or 1
    threads = max(1, cores // len(SOURCES))
    common = [
        "-std=c++17", "-O3", "-DNDEBUG", f'-DDFA_VERSION="{version()}"', f"-I{ROOT / 'csrc'}",
        "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{pybind11_headers()}",
        f"-I{sysconfig.get_path('include')}",
    ]  # fmt: skip
    kernels = [*gencode(wanted), f"--threads={threads}", "-Xptxas=-warn-spills"]

    def compiled(name: str) -> Path:
        made = scratch / f"{name}.o"
        flags = [*common, *kernels] if name.endswith(".cu") else common
        _run([toolkit.nvcc, *flags, "-c", ROOT / "csrc" / name, "-o", made])
        return made

    with ThreadPoolExecutor(cores) as pool:
        objects = list(pool.map(compiled, SOURCES))
    linked = scratch / target.name
    folders = [f"-L{folder}" for folder in toolkit.libraries()]
    hidden = ["-cudart=static", "-Xlinker=--exclude-libs,ALL", "-Xlinker=-s"]
    _run([toolkit.nvcc, "-shared", *hidden, *folders, *objects, "-o", linked])
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(linked, target)


def pybind11_headers() -> str:
    """The folder of pybind11's own, or of those that every torch brings.

    Raises:
        CannotCompileError: there are neither.
    """
    try:
        import pybind11

        return pybind11.get_include()
    except ImportError:
        pass
    torch = importlib.util.find_spec("torch")
    for folder in (torch and torch.submodule_search_locations) or ():
        if (Path(folder) / "include/pybind11/pybind11.h").exists():
            return str(Path(folder) / "include")
    raise CannotCompileError("there is no pybind11, and no torch that brings its headers")


def _run(command: list[Any]) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    sys.stderr.write(done.stdout + done.stderr)
    if done.returncode:
        first = next((w for w in done.stderr.splitlines() if "error" in w.lower()), "")
        name = next((Path(str(c)).name for c in command if str(c).startswith(str(ROOT))), "_core")
        raise CannotCompileError(
            f"nvcc failed on {name}: {first.strip() or f'status {done.returncode}'}"
        )


def version() -> str:
    return runpy.run_path(str(ROOT / "dfa_kernels" / "version.py"))["__version__"]


# setuptools -------------------------------------------------------------------------------------


def plan() -> tuple[Toolkit | None, str | None]:
    """What compiles, or why nothing is compiled."""
    if mode() == "skip":
        return None, "DFA_KERNELS_CUDA=skip"
    architectures()
    try:
        return find_toolkit(), None
    except CannotCompileError as why:
        if mode() == "require":
            raise SystemExit(f"DFA_KERNELS_CUDA=require, but {why}") from None
        return None, str(why)


def leave_record(folder: Path, toolkit: Toolkit | None, reason: str | None) -> None:
    """What `dfa_kernels.backends.cuda.extension` reads. Without an extension, none stays there."""
    folder.mkdir(parents=True, exist_ok=True)
    if reason is not None:
        for stale in folder.glob("_core.*"):
            stale.unlink()
        said = f"dfa_kernels: the CUDA backend is not built: {reason}"
        print(f"\n{'=' * 79}\n{said}\n{'=' * 79}\n", file=sys.stderr)
    wanted = architectures() if reason is None else ()
    record = {
        "version": version(),
        "nvcc": toolkit.shown if toolkit else None,
        "architectures": wanted,
        "ptx": wanted[-1] if wanted else None,
        "reason": reason,
    }
    (folder / "_build.json").write_text(json.dumps(record, indent=1) + "\n")


class BuildPython(build_py):
    def run(self) -> None:
        super().run()
        if not self.distribution.has_ext_modules():
            leave_record(_folder(self), None, plan()[1])


class BuildExtension(build_ext):
    toolkit: Toolkit
    reason: str | None = None

    def run(self) -> None:
        super().run()
        leave_record(_folder(self), self.toolkit, self.reason)

    def build_extension(self, ext: Extension) -> None:
        start = time.monotonic()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.unlink(missing_ok=True)
        try:
            compile_module(self.toolkit, architectures(), target, Path(self.build_temp).resolve())
        except CannotCompileError as why:
            if mode() == "require":
                raise SystemExit(f"DFA_KERNELS_CUDA=require, but {why}") from None
            self.reason = str(why)
            return
        listed = " ".join(map(str, architectures()))
        took = time.monotonic() - start
        print(f"dfa_kernels: csrc/ compiled for {listed} in {took:.0f} s", file=sys.stderr)


def _folder(command: Any) -> Path:
    """Where the package's files are built: in the source tree where the install is editable."""
    inplace = getattr(command, "editable_mode", False) or getattr(command, "inplace", False)
    return PACKAGE if inplace else Path(command.build_lib) / PACKAGE


if __name__ == "__main__":
    toolkit, _ = plan()
    commands: dict[str, Any] = {"build_py": BuildPython}
    extensions = []
    if toolkit is not None:
        commands["build_ext"] = type("build_ext", (BuildExtension,), {"toolkit": toolkit})
        sources = [f"csrc/{name}" for name in SOURCES]
        # Optional: under `auto` a module that could not be compiled is not missed.
        extensions = [Extension("dfa_kernels.backends.cuda._core", sources, optional=True)]
    setup(cmdclass=commands, ext_modules=extensions)
