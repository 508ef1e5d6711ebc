"""The CUDA backend on the CPU: csrc/ built by g++ over the emulator, registered by the import as
`cuda-emulated`.

    dfa.testing.check_backend("cuda-emulated", "cpu")
"""

import functools
import importlib.machinery
import importlib.util
import sysconfig

import pybind11

from dfa_kernels import backends
from dfa_kernels.backends.cuda import CUDA, rules
from dfa_kernels.version import __version__
from tests.emulator.build import CSRC, build

KERNELS = CSRC / "project.cu", CSRC / "update.cu"


@functools.cache
def core(sources=KERNELS, flags=()):
    """The module `_core`, whose launches are those of `sources`: kernels that run on the CPU."""
    flags = (
        *flags,
        f"-I{pybind11.get_include()}",
        f"-I{sysconfig.get_path('include')}",
        f'-DDFA_VERSION="{__version__}"',
    )
    library = build([CSRC / "binding.cpp", *sources], flags)
    name = f"{library.stem}._core"  # of its own: pybind11 makes one module of a name
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_file_location(name, library, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class Emulated(CUDA):
    """The CUDA backend, whose kernels take CPU tensors."""

    def unavailable(self, device):
        return None if device.type == "cpu" else f"it takes CPU tensors, not {device.type}"

    def describe(self):
        return f"csrc/ by g++, on the CPU; {rules.describe()}"

    def _core(self):
        return core()


if "cuda-emulated" not in backends.available():
    backends.register("cuda-emulated", Emulated())
