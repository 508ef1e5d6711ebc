"""The kernels of csrc/ for `bench.machine_code`: all that the built extension holds, for every
architecture that it was built for.

Nothing is compiled here. The cubins are taken out of the extension as `pip install` or `make` left
it, and the extension itself says what its tiles are.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine_gate import built_violations
from bench.machine_listing import (
    INSTRUCTIONS,
    SPILL,
    Code,
    counted,
    functions,
    loops,
    programs,
    tool,
)
from dfa_kernels.backends.cuda import extension

#: By the codes of csrc/tables.h.
COMPUTES = ("bf16", "fp16", "tf32", "fp32")
SIZES = {"project": ("large", "small"), "update": ("large", "small", "on the fly")}

_INSTANCE = re.compile(r"(project|update)_kernelI\w*?ComputeE(\d)ELb([01])E(?:Lb([01])E)?")


class Tile(NamedTuple):
    """csrc/tables.h."""

    n: int
    d: int
    k: int
    threads: int
    stages: int
    shared: int


class Built(NamedTuple):
    """A kernel of the extension: ``size``: of its tile, or that it makes δ on the fly."""

    kernel: str
    compute: str
    size: str

    def __str__(self) -> str:
        return f"{self.size}, {self.compute}"

    def tile(self, core: Any) -> Tile:
        """What the extension says of it."""
        code, large = COMPUTES.index(self.compute), self.size == "large"
        if self.kernel == "project":
            return Tile(*core.project_tile(code, large))
        return Tile(*core.update_tile(code, large, self.size == "on the fly"))


def kernels() -> list[Built]:
    """All that csrc/ has."""
    return [Built(k, c, s) for k, sizes in SIZES.items() for c in COMPUTES for s in sizes]


def compiler() -> str:
    """What built the extension."""
    built = extension.record()
    assert built is not None
    return f"nvcc {built.nvcc}"


def rows() -> Iterator[dict[str, Any]]:
    """A row of each kernel for each architecture, by kernel and architecture.

    Raises:
        RuntimeError: there is no extension.
    """
    core, record = extension.load(), extension.record()
    assert record is not None
    with tempfile.TemporaryDirectory() as folder:
        found = _found(Path(core.__file__), Path(folder))
    for built in kernels():
        for arch in map(str, record.architectures):
            if (built, arch) in found:
                yield row(built, arch, found[built, arch], built.tile(core))
            else:
                yield _row(built, arch, None, 0, ["the extension has no such kernel"])


def row(built: Built, arch: str, code: Code, tile: Tile) -> dict[str, Any]:
    """What a kernel's code is, and what of the gate it breaks."""
    code = code._replace(shared=tile.shared, warps=tile.threads // 32)
    broken = built_violations(built.kernel, built.compute, built.size, tile, code)
    return _row(built, arch, code, programs(code, arch), broken)


def _row(
    built: Built, arch: str, code: Code | None, held: int, violations: list[str]
) -> dict[str, Any]:
    figures = code._asdict() if code is not None else None
    if figures is not None:
        del figures["loops"]
    return {
        "kernel": built.kernel,
        "case": str(built),
        "arch": arch,
        "code": figures,
        "programs": held,
        "violations": violations,
    }


def _found(module: Path, folder: Path) -> dict[tuple[Built, str], Code]:
    """The kernels of a compiled module; their shared memory and warps are not in it."""
    subprocess.run(
        [tool("cuobjdump"), "-xelf", "all", module.resolve()],
        cwd=folder, capture_output=True, check=True,
    )  # fmt: skip
    found = {}
    for cubin in sorted(folder.glob("*.cubin")):
        arch = cubin.name.split(".sm_")[1].removesuffix(".cubin")
        for name, function in functions(cubin).items():
            instance = _INSTANCE.search(name)
            if instance is None:
                continue
            kernel, compute, large, fly = instance.groups()
            size = "on the fly" if fly == "1" else "large" if large == "1" else "small"
            spills, counts = counted(function.listing, INSTRUCTIONS, SPILL)
            every = list(loops(function.listing).values())
            code = Code(function.registers, function.stack, spills, 0, 0, counts, every)
            found[Built(kernel, COMPUTES[int(compute)], size), arch] = code
    return found
