"""csrc/ compiled by this machine's own nvcc for its own GPU, without a network.

A rehearsal compiles the same sources by g++ for the emulator.
"""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import sysconfig
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from unittest import mock

import torch

from bench.gpu.context import Context
from bench.gpu.rows import PASSED, check, fact
from dfa_kernels import backends
from dfa_kernels.backends.cuda import extension

ROOT = Path(__file__).parents[2]
TRITON = "triton"


def build(context: Context) -> None:
    """Compile, unless what is there runs on this GPU; then import it."""
    start = time.monotonic()
    if context.tiny:
        if cuda_backend(context.device) is None:
            context.say("There is no g++: the CUDA kernels are not rehearsed.")
            return
        emulator = importlib.import_module("tests.emulator")
        emulator.core()
    elif torch.version.hip:
        context.say("This torch is built for ROCm: csrc/ is for NVIDIA GPUs.")
        return
    elif cuda_backend(context.device) is None:
        major, minor = torch.cuda.get_device_capability(context.device)
        nvcc, spilled = _compile(f"{major}{minor}")
        context.emit(fact("nvcc", nvcc))
        context.emit(fact("kernels of csrc/ that spill registers", len(spilled), 0))
        for kernel in spilled:
            context.say(kernel)
    else:
        context.say("csrc/ was compiled before for this GPU, and is not compiled again.")
    name = cuda_backend(context.device)
    if name is None:
        raise RuntimeError(str(backends.get("cuda").unavailable(context.device)))
    took = time.monotonic() - start
    context.emit(fact("CUDA backend", backends.get(name).describe()))
    context.emit(check("csrc/ compiles and imports", PASSED, seconds=took))


def cuda_backend(device: torch.device) -> str | None:
    """The name of the backend whose kernels are csrc's on ``device``, the emulator's on a CPU; None
    where there is none."""
    if device.type == "cpu":
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            return None
        importlib.import_module("tests.emulator")
        return "cuda-emulated"
    return "cuda" if backends.get("cuda").unavailable(device) is None else None


def _compile(architecture: str) -> tuple[str, list[str]]:
    """In the source tree; the version of nvcc, and what it spilled."""
    setup = runpy.run_path(str(ROOT / "setup.py"))
    folder = ROOT / setup["PACKAGE"]
    target = folder / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    asked = {"DFA_KERNELS_CUDA_ARCHS": architecture}
    with mock.patch.dict(os.environ, asked), redirect_stderr(StringIO()) as said:
        toolkit = setup["find_toolkit"]()
        setup["compile_module"](toolkit, setup["architectures"](), target, ROOT / "build/gpu")
        setup["leave_record"](folder, toolkit, None)
    for known in (extension.record, extension.missing, extension._module):
        known.cache_clear()
    importlib.invalidate_caches()
    return toolkit.shown, spills(said.getvalue())


def spills(said: str) -> list[str]:
    """ptxas's warnings of registers that it spilled, by kernel."""
    return re.findall(r"ptxas warning\s*: (Registers are spilled .+)", said)
