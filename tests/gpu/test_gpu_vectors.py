"""The emulator's test vectors on the hardware (tests/vectors): what each instruction does to its
registers, then csrc's kernels at the edges of every tile. In a rehearsal, on the emulator itself.
"""

import ctypes
import functools
import runpy
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch
from gpu_cases import DEVICE, ON_GPU, over, pick

from bench.gpu.build import ROOT, cuda_backend
from dfa_kernels import backends
from tests.vectors import instructions, project, update


@functools.cache
def needed():
    """The backend's name; where there is none, the test is skipped and says why."""
    name = cuda_backend(DEVICE)
    if name is None:
        raise unittest.SkipTest(backends.get("cuda").unavailable(DEVICE) or "there is no g++")
    return name


def machine():
    return project.Machine(backends.get(needed())._core(), DEVICE)


@over(instructions.CHECKS)
def test_instructions(case):
    needed()
    instructions.CHECKS[case](call)


@over(pick(project.CASES, project.CASES[::24]))
def test_project(case):
    with torch.device(DEVICE):
        case.check(machine())


@over(pick(update.CASES, update.CASES[::24]))
def test_update(case):
    with backends.use(needed()), torch.device(DEVICE):
        case.check(machine())


def call(name, *arguments):
    """A function of instructions.cu on arrays that are copied there and back."""
    function = getattr(_library(), name)
    if not ON_GPU:
        function.restype = ctypes.c_char_p
        arrays = [
            a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments
        ]
        assert function(*arrays) is None
        return
    there = [
        torch.from_numpy(a.reshape(-1).view(np.uint8).copy()).to(DEVICE)
        if isinstance(a, np.ndarray)
        else a
        for a in arguments
    ]
    given = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else ctypes.c_int(a)
        for a in there
    ]
    torch.cuda.synchronize()
    assert function(*given) == 0, f"{name} was not launched"
    torch.cuda.synchronize()
    for mine, theirs in zip(arguments, there, strict=True):
        if isinstance(mine, np.ndarray):
            mine.reshape(-1).view(np.uint8)[:] = theirs.cpu().numpy()


@functools.cache
def _library():
    if not ON_GPU:
        from tests.emulator.build import build

        return ctypes.CDLL(str(build([instructions.SOURCE])))
    major, minor = torch.cuda.get_device_capability(DEVICE)
    nvcc = runpy.run_path(str(ROOT / "setup.py"))["find_toolkit"]().nvcc
    made = Path(tempfile.mkdtemp()) / "instructions.so"
    command = [
        nvcc, "-std=c++17", "-shared", "-Xcompiler=-fPIC", f"-arch=sm_{major}{minor}",
        f"-I{ROOT / 'csrc'}", instructions.SOURCE, "-o", made,
    ]  # fmt: skip
    subprocess.run([str(c) for c in command], check=True, capture_output=True)
    return ctypes.CDLL(str(made))
