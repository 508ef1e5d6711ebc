"""setup.py: which nvcc it takes, what it compiles for, and what is left on record without one."""

import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfa_kernels.backends.cuda import extension
from dfa_kernels.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def build():
    """setup.py, without setting anything up."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("dfa_kernels_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch, tmp_path):
    for name in ("DFA_KERNELS_CUDA", "DFA_KERNELS_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not Path(p, "nvidia/cu13").exists()])


@pytest.fixture
def no_local_cuda(build, monkeypatch):
    """Hide /usr/local/cuda and whatever else the machine has."""
    which = build.shutil.which

    def hidden(name, path=None):
        found = which(name, path=path)
        return None if found and found.startswith(("/usr", "/bin", "/opt")) else found

    monkeypatch.setattr(build.shutil, "which", hidden)


def fake_nvcc(folder, release="13.0", top=None, says=None):
    """A script that answers as nvcc does."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "nvcc"
    version = says or f"Cuda compilation tools, release {release}, V{release}.88"
    line = f"echo '#$ TOP={top}' >&2" if top else ":"
    script.write_text(
        f"#!/bin/sh\nif [ \"$1\" = --version ]; then echo '{version}'; else {line}; fi\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


# The toolkit ------------------------------------------------------------------------------------


def test_a_wrapper_on_the_path_is_asked_where_its_toolkit_is(build, tmp_path, monkeypatch):
    script = fake_nvcc(tmp_path / "bin", top=f"{tmp_path}/toolkit/bin/..")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    found = build.find_toolkit()
    assert (found.nvcc, found.version) == (script, (13, 0))
    assert found.top == Path(f"{tmp_path}/toolkit/bin/..")


def test_an_nvcc_that_names_no_top_lies_in_it(build, tmp_path, monkeypatch, no_local_cuda):
    fake_nvcc(tmp_path / "cuda/bin")
    monkeypatch.setenv("CUDA_HOME", f"{tmp_path}/cuda")
    assert build.find_toolkit().top == (tmp_path / "cuda").resolve()


@pytest.mark.parametrize("release", ["12.8", "12.10", "13.1"])
def test_releases_that_are_new_enough(build, tmp_path, monkeypatch, no_local_cuda, release):
    fake_nvcc(tmp_path / "bin", release)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert build.find_toolkit().shown == release


def test_an_old_one_is_passed_over(build, tmp_path, monkeypatch, no_local_cuda):
    fake_nvcc(tmp_path / "old", "12.7")
    new = fake_nvcc(tmp_path / "cuda/bin", "12.9")
    monkeypatch.setenv("PATH", f"{tmp_path / 'old'}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_PATH", f"{tmp_path}/cuda")
    assert build.find_toolkit().nvcc == new


def test_the_wheels_from_pypi(build, tmp_path, monkeypatch, no_local_cuda):
    script = fake_nvcc(tmp_path / "site-packages/nvidia/cu13/bin")
    (tmp_path / "site-packages/nvidia/cu13/lib").mkdir()
    (tmp_path / "site-packages/nvidia/cu13/lib/libcudart_static.a").touch()
    monkeypatch.setattr(sys, "path", [*sys.path, f"{tmp_path}/site-packages"])
    found = build.find_toolkit()
    assert found.nvcc == script
    assert found.libraries() == [found.top / "lib"]


def test_none_that_will_do(build, tmp_path, monkeypatch, no_local_cuda):
    with pytest.raises(build.CannotCompileError, match="no nvcc on PATH, in CUDA_HOME.*12.8"):
        build.find_toolkit()
    fake_nvcc(tmp_path / "old", "11.8")
    fake_nvcc(tmp_path / "odd/bin", says="a compiler")
    monkeypatch.setenv("PATH", f"{tmp_path / 'old'}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", f"{tmp_path}/odd")
    message = "old/nvcc is 11.8, and 12.8 is needed; .*odd/bin/nvcc --version names no release"
    with pytest.raises(build.CannotCompileError, match=message):
        build.find_toolkit()


# What is asked for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [("", (80, 86, 89, 90, 100, 120)), ("90", (90,)), ("120;80, 90", (80, 90, 120))],
)
def test_architectures(build, monkeypatch, asked, wanted):
    monkeypatch.setenv("DFA_KERNELS_CUDA_ARCHS", asked)
    assert build.architectures() == wanted
    newest = wanted[-1]
    assert build.gencode(wanted) == [
        *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in wanted),
        f"-gencode=arch=compute_{newest},code=compute_{newest}",
    ]


@pytest.mark.parametrize("asked", ["75", "sm_80", "8.0", "80,x", "native"])
def test_architectures_that_are_none(build, monkeypatch, asked):
    monkeypatch.setenv("DFA_KERNELS_CUDA_ARCHS", asked)
    with pytest.raises(SystemExit, match=f"compute capabilities from 80 on.*got '{asked}'"):
        build.architectures()


def test_modes(build, monkeypatch, no_local_cuda):
    toolkit, why = build.plan()
    assert toolkit is None and "there is no nvcc" in why
    monkeypatch.setenv("DFA_KERNELS_CUDA", "skip")
    assert build.plan() == (None, "DFA_KERNELS_CUDA=skip")
    monkeypatch.setenv("DFA_KERNELS_CUDA", "require")
    with pytest.raises(SystemExit, match="DFA_KERNELS_CUDA=require, but there is no nvcc"):
        build.plan()
    monkeypatch.setenv("DFA_KERNELS_CUDA", "yes")
    with pytest.raises(SystemExit, match="must be one of auto, require, skip, got 'yes'"):
        build.plan()


# What is left on record -------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Read a record in place of this installation's."""
    monkeypatch.setattr(extension, "RECORD", tmp_path / "_build.json")

    def clear():
        for cached in (extension.record, extension.missing, extension._module):
            cached.cache_clear()

    clear()
    yield tmp_path
    clear()


def test_a_failed_build_leaves_its_reason_and_no_module(build, recorded, capsys):
    (recorded / "_core.cpython-311.so").touch()
    build.leave_record(recorded, None, "nvcc failed on update.cu: error: too hot")
    assert [p.name for p in recorded.iterdir()] == ["_build.json"]
    assert "the CUDA backend is not built: nvcc failed on update.cu" in capsys.readouterr().err
    assert extension.missing() == (
        "its extension is not built: nvcc failed on update.cu: error: too hot"
    )
    with pytest.raises(RuntimeError, match="the CUDA backend cannot run: its extension is not"):
        extension.load()


def test_a_compiler_that_fails_says_which_file(build, tmp_path):
    script = fake_nvcc(tmp_path)
    script.write_text("#!/bin/sh\necho 'csrc/update.cu(7): error: too hot' >&2\nexit 2\n")
    toolkit = build.Toolkit(script, tmp_path, (13, 0))
    pytest.importorskip("pybind11")
    with pytest.raises(build.CannotCompileError, match=r"nvcc failed on .*error: too hot"):
        build.compile_module(toolkit, (80,), tmp_path / "_core.so", tmp_path / "objects")
    assert not (tmp_path / "_core.so").exists()


def test_what_was_built_is_described(build, recorded, monkeypatch):
    monkeypatch.setenv("DFA_KERNELS_CUDA_ARCHS", "80 90")
    build.leave_record(recorded, build.Toolkit(Path("nvcc"), Path(), (13, 0)), None)
    assert json.loads(extension.RECORD.read_text())["architectures"] == [80, 90]
    assert extension.describe() == "built by nvcc 13.0 for 8.0, 9.0 and newer than 9.0"
    assert extension.record().version == __version__


def test_records_that_will_not_do(recorded):
    assert extension.missing() == (
        "its extension is not built: this package was not installed by pip"
    )
    for text, message in (
        ("{", "its record _build.json is unreadable"),
        ('{"version": "0.0.1", "nvcc": "13.0", "architectures": [80], "ptx": 80, "reason": null}',
         f"was built for dfa_kernels 0.0.1, and this is {__version__}"),
    ):  # fmt: skip
        extension.record.cache_clear()
        extension.missing.cache_clear()
        extension.RECORD.write_text(text)
        assert message in extension.missing()


def test_a_module_that_is_not_there(build, recorded, monkeypatch):
    build.leave_record(recorded, build.Toolkit(Path("nvcc"), Path(), (13, 0)), None)
    monkeypatch.setitem(sys.modules, "dfa_kernels.backends.cuda._core", None)
    assert extension.missing().startswith("its extension cannot be loaded: ")


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        ((7, 5), "it needs compute capability 8.0, and cuda:0 has 7.5"),
        ((8, 0), "it was built for compute capability 8.6, 9.0 and newer than 9.0, and cuda:0 has "
         "8.0: install with DFA_KERNELS_CUDA_ARCHS=80"),
        ((8, 6), None),
        ((8, 9), None),
        ((9, 0), None),
        ((12, 0), None),
    ],
)  # fmt: skip
def test_devices(build, recorded, monkeypatch, capability, message):
    monkeypatch.setenv("DFA_KERNELS_CUDA_ARCHS", "86 90")
    build.leave_record(recorded, build.Toolkit(Path("nvcc"), Path(), (13, 0)), None)
    assert extension.unsuited(capability, "cuda:0") == message


@pytest.mark.parametrize(
    ("runtime", "driver", "capability", "needed"),
    [
        (13000, 13000, (9, 0), None),
        (13020, 13000, (9, 0), None),  # machine code, of the same major version
        (13000, 12080, (9, 0), "13.0"),
        (13020, 13000, (12, 0), "13.2"),  # PTX
        (13020, 13030, (12, 0), None),
        (12080, 12000, (9, 0), "12.1"),  # parameters
        (12080, 12010, (9, 0), None),
    ],
)
def test_drivers(build, recorded, monkeypatch, runtime, driver, capability, needed):
    monkeypatch.setenv("DFA_KERNELS_CUDA_ARCHS", "86 90")
    build.leave_record(recorded, build.Toolkit(Path("nvcc"), Path(), (13, 0)), None)
    core = SimpleNamespace(runtime=runtime, driver=lambda: driver)
    monkeypatch.setattr(extension, "load", lambda: core)
    said = extension.outdated(capability)
    if needed is None:
        assert said is None
    else:
        built, has = (f"{v // 1000}.{v % 1000 // 10}" for v in (runtime, driver))
        assert said == (
            f"it was built by CUDA {built} and needs a driver of CUDA {needed}, and this one is of "
            f"{has}: update the driver, or install with an older nvcc"
        )


def test_no_driver(build, recorded, monkeypatch):
    build.leave_record(recorded, build.Toolkit(Path("nvcc"), Path(), (13, 0)), None)
    core = SimpleNamespace(runtime=13000, driver=lambda: 0)
    monkeypatch.setattr(extension, "load", lambda: core)
    assert ", and there is none: " in extension.outdated((9, 0))


def test_where_there_is_an_nvcc_this_checkout_was_compiled(build, monkeypatch):
    """A compile that fails leaves a package that works, so it must be asked for here."""
    built = extension.record()
    if built is None or built.reason == "DFA_KERNELS_CUDA=skip" or "no nvcc" in str(built.reason):
        pytest.skip(f"nothing was compiled: {built.reason if built else 'not installed'}")
    assert built.reason is None
    assert extension.missing() is None


# Installing -------------------------------------------------------------------------------------


def test_a_wheel_without_nvcc_is_pure_and_says_why(tmp_path):
    """`make install-tests` goes on from an sdist to wheels that are compiled."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("dfa_kernels", "csrc"):
        (source / folder).symlink_to(ROOT / folder)
    made = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", made],
        cwd=source,
        env=os.environ | {"DFA_KERNELS_CUDA": "skip"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    name = done.stdout.split()[-1]
    assert name == f"dfa_kernels-{__version__}-py3-none-any.whl"
    assert "the CUDA backend is not built: DFA_KERNELS_CUDA=skip" in done.stderr
    unpacked = tmp_path / "unpacked"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(source / name), str(unpacked)])
    record = json.loads((unpacked / "dfa_kernels/backends/cuda/_build.json").read_text())
    assert record["reason"] == "DFA_KERNELS_CUDA=skip"
    assert not list(unpacked.rglob("_core*"))
