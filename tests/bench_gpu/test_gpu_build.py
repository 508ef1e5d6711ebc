"""How `bench.gpu` compiles csrc/, and what it reads from the compiler."""

import shutil
import subprocess
import sys

import pytest
import torch

from bench.gpu import build
from bench.gpu.build import spills
from bench.gpu.context import Context
from dfa_kernels.backends.cuda import extension

SAID = """\
ptxas info    : (C7510) something else
ptxas warning : Registers are spilled to local memory in function 'update', 8 bytes spill stores
ptxas warning : Registers are spilled to local memory in function 'project', 16 bytes spill loads
"""


def test_every_kernel_that_spills_is_named():
    found = spills(SAID)
    assert [kernel in line for kernel, line in zip(("update", "project"), found, strict=True)] == [
        True,
        True,
    ]
    assert spills("ptxas info    : Used 126 registers") == []


@pytest.fixture
def gpu(monkeypatch):
    """A GPU to all appearance, and a module for it that was compiled before."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(build, "cuda_backend", lambda _: "cuda")
    monkeypatch.delitem(sys.modules, build.CORE, raising=False)
    rows = []
    return Context(torch.device("cuda"), False, 60.0, rows.append), rows


def test_it_is_compiled_for_this_gpu_whatever_is_there(gpu, monkeypatch):
    context, rows = gpu
    asked = []
    monkeypatch.setattr(build, "_compile", lambda a: asked.append(a) or ("13.0", []))
    build.build(context)
    assert asked == ["90"]
    assert [r["name"] for r in rows if r["kind"] == "check"] == ["csrc/ compiles and imports"]


def test_an_older_module_that_is_imported_already_is_refused(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, build.CORE, object())
    monkeypatch.setattr(build, "_compile", lambda _: ("13.0", []))
    with pytest.raises(RuntimeError, match="imported before it was compiled"):
        build.build(gpu[0])


def test_where_it_does_not_compile_no_older_module_stays(gpu, monkeypatch, tmp_path):
    pytest.importorskip("setuptools")
    folder = tmp_path / "dfa_kernels/backends/cuda"
    folder.mkdir(parents=True)
    for name in ("setup.py", "dfa_kernels/version.py"):
        shutil.copy(build.ROOT / name, tmp_path / name)
    older = folder / "_core.so"
    older.write_text("")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(Exception, match="there is no nvcc"):
        build.build(gpu[0])
    assert not older.exists()
    monkeypatch.setattr(extension, "RECORD", folder / "_build.json")
    assert "there is no nvcc" in extension.record.__wrapped__().reason


def test_the_instructions_are_compiled_for_this_gpu(monkeypatch):
    """Not for the newest of the architectures that the package was installed for."""
    monkeypatch.syspath_prepend(str(build.ROOT / "tests/gpu"))
    vectors = pytest.importorskip("test_gpu_vectors")

    class Started(Exception):  # noqa: N818
        pass

    def run(command, **_):
        raise Started(command)

    find = lambda _: {"find_toolkit": lambda: type("Toolkit", (), {"nvcc": "nvcc"})}  # noqa: E731
    monkeypatch.setattr(vectors, "ON_GPU", True)
    monkeypatch.setattr(vectors.runpy, "run_path", find)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(Started, match="-arch=sm_90'"):
        vectors._library.__wrapped__()
