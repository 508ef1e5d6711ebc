"""csrc/ compiled by this machine's own nvcc for its own GPU, without a network.

What is there from before is never taken: it may be of other sources, or the PTX of an older GPU.
A rehearsal compiles the same sources by g++ for the emulator.
"""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import sys
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
CORE = "dfa_kernels.backends.cuda._core"


def build(context: Context) -> None:
    """Compile, then import it.

    Raises:
        RuntimeError: what was there before is imported already, or the new one does not run.
    """
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
    elif CORE in sys.modules:
        raise RuntimeError("csrc/ was imported before it was compiled: this part comes first")
    else:
        major, minor = torch.cuda.get_device_capability(context.device)
        nvcc, spilled = _compile(f"{major}{minor}")
        context.emit(fact("nvcc", nvcc))
        context.emit(fact("kernels of csrc/ that spill registers", len(spilled), 0))
        for kernel in spilled:
            context.say(kernel)
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
    """In the source tree; the version of nvcc, and what it spilled. Where it fails, no module stays
    there: what was measured after it would be another's."""
    setup = runpy.run_path(str(ROOT / "setup.py"))
    folder = ROOT / setup["PACKAGE"]
    target = folder / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    asked = {"DFA_KERNELS_CUDA_ARCHS": architecture}
    with mock.patch.dict(os.environ, asked), redirect_stderr(StringIO()) as said:
        try:
            toolkit = setup["find_toolkit"]()
            setup["compile_module"](toolkit, setup["architectures"](), target, ROOT / "build/gpu")
        except setup["CannotCompileError"] as why:
            setup["leave_record"](folder, None, str(why))
            raise
        else:
            setup["leave_record"](folder, toolkit, None)
        finally:
            for known in (extension.record, extension.missing, extension._module):
                known.cache_clear()
            importlib.invalidate_caches()
    return toolkit.shown, spills(said.getvalue())


def spills(said: str) -> list[str]:
    """ptxas's warnings of registers that it spilled, by kernel."""
    return re.findall(r"ptxas warning\s*: (Registers are spilled .+)", said)
