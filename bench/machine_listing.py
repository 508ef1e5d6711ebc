"""What the machine code of a kernel consists of: of a launch of Triton's, compiled for an
architecture, and of whatever else is in a cubin.

The disassembly is what Triton's own `nvdisasm` prints, or the assembly for an AMD GPU.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple


class Code(NamedTuple):
    """A compiled kernel. ``registers`` of a thread; ``stack``: bytes of a thread's memory;
    ``spills``: instructions that read or write it; ``shared``: bytes of a program; ``counts``: of
    the instructions in `INSTRUCTIONS`; ``loops``: the same, of each innermost loop with products
    or, of csrc/, of every loop.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    warps: int
    counts: dict[str, int]
    loops: list[dict[str, int]]


#: What is counted, and how its name begins in the disassembly.
INSTRUCTIONS = {
    "wgmma": r"HGMMA",
    "tcgen05": r"UTC\w*MMA",
    "mma": r"HMMA",
    "fma": r"FFMA",
    "asynchronous 128": r"LDGSTS\.E(\.\w+)*\.128\b",
    "asynchronous": r"LDGSTS",
    "bulk": r"UTMALDG",
    "load 128": r"LDG\.E(\.\w+)*\.128\b",
    "load": r"LDG\.",
    "store 128": r"STG\.E(\.\w+)*\.128\b",
    "store": r"STG\.",
}
SPILL = r"(STL|LDL)\b"
_AMD_INSTRUCTIONS = {
    "mma": r"v_mfma\w+",
    "load 128": r"(global|buffer)_load_dwordx4",
    "load": r"(global|buffer)_load_",
    "store 128": r"(global|buffer)_store_dwordx4",
    "store": r"(global|buffer)_store_",
}

#: On tensor cores. An fp32 product in full precision is fused multiply-adds, which f′ has too: a
#: product's loop has at least `FMA` of them, and stores nothing.
PRODUCTS = ("wgmma", "tcgen05", "mma")
FMA = 128


def compiled(launch: Any, arch: str) -> Code:
    """The launch's kernel, compiled as the JIT would on ``arch``.

    Raises:
        RuntimeError: its shared memory exceeds what there is.
        whatever Triton's compiler raises.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    types = {"table": "*i64", "partial": "*fp32", "partial_bias": "*fp32", "arrived": "*i32"}
    if launch.hyper is not None:
        types["hyper"] = tuple("fp32" for _ in launch.hyper)
    signature = {name: types.get(name, "constexpr") for name in names}
    # torch allocates at multiples of 512 bytes, and the JIT sees that they are multiples of 16.
    whole = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if str(types.get(n))[0] == "*"
    }
    constants = {(names.index("C"),): launch.constants}
    source = ASTSource(launch.kernel, signature, constants, whole)
    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch), 32)
    kernel = triton.compile(source, target=target, options=launch.options)
    read = _amd(kernel.asm["amdgcn"]) if amd else _nvidia(kernel.asm["cubin"])
    registers, stack, spills, counts, loops = read
    shared = kernel.metadata.shared
    if shared > LIMITS[arch].shared_of_one:
        raise RuntimeError(f"{shared} bytes of shared memory, of {LIMITS[arch].shared_of_one}")
    return Code(registers, stack, spills, shared, kernel.metadata.num_warps, counts, loops)


_Read = tuple[int, int, int, dict[str, int], list[dict[str, int]]]


class Function(NamedTuple):
    """Of a cubin: registers and bytes of stack of a thread, and the disassembly."""

    registers: int
    stack: int
    listing: str


def functions(cubin: Path) -> dict[str, Function]:
    """What a cubin holds, by its mangled name."""
    usage = _output(tool("cuobjdump"), "--dump-resource-usage", cubin)
    used = {
        name: (int(registers), int(stack))
        for name, registers, stack in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", usage)
    }
    if not used:
        return {}
    _, *parts = re.split(
        r"^//-+ \.text\.(\S+) +-+$", _output(tool("nvdisasm"), "-c", cubin), flags=re.M
    )
    listings = dict(zip(parts[::2], parts[1::2], strict=True))
    return {name: Function(*used[name], listings[name]) for name in used}


def tool(name: str) -> Path:
    """A program of CUDA's toolkit that comes with Triton."""
    found = importlib.util.find_spec("triton")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "backends/nvidia/bin" / name


def _nvidia(cubin: bytes) -> _Read:
    """Registers, stack, spills, counts and loops of a launch's kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        (kernel,) = functions(Path(file.name)).values()
    spills, counts = counted(kernel.listing, INSTRUCTIONS, SPILL)
    return kernel.registers, kernel.stack, spills, counts, product_loops(kernel.listing)


def _amd(text: str) -> _Read:
    """The same but for loops, from the assembly and its metadata."""

    def entry(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        assert found is not None, f"no .{name}"
        return int(found[1])

    spills = entry("vgpr_spill_count")  # scalar ones go to lanes of vector registers
    _, counts = counted(text, _AMD_INSTRUCTIONS, r"scratch_\w+")
    early = hand_overs(text)
    counts |= {"hand-over": len(early), "early hand-over": sum(early)} if early else {}
    return entry("vgpr_count"), entry("private_segment_fixed_size"), spills, counts, []


def hand_overs(text: str) -> list[bool]:
    """Of CDNA's assembly, for every atomic addition: whether a warp can reach the barrier before it
    while its own stores are under way. Then the one that adds says that they are done too early: it
    waits for its own alone."""
    found, under_way, early = [], False, False
    for line in map(str.strip, text.splitlines()):
        if re.match(r"(global|buffer|flat)_store", line):
            under_way = True
        elif re.match(r"s_waitcnt .*\bvmcnt\(0\)", line):
            under_way = False
        elif line.startswith("s_barrier"):
            early = under_way
        elif line.startswith("global_atomic_add"):
            found.append(early)
    return found


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


_OPERATION = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\S+\s+)?([A-Za-z][\w.]*)")
_LABEL = re.compile(r"^(\.L_\w+):")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L_\w+)\)")


def counted(listing: str, wanted: dict[str, str], spill: str) -> tuple[int, dict[str, int]]:
    """How many instructions of a disassembly are spills, and how many each of ``wanted``."""
    operations = Counter(_operations(listing.splitlines()))
    return _number(operations, {"": spill}).get("", 0), _number(operations, wanted)


def _operations(lines: list[str]) -> list[str]:
    """What each line does; "" where that is nothing."""
    found = (_OPERATION.match(line) for line in lines)
    return [m[1] if m else "" for m in found]


def _number(operations: Counter[str], wanted: dict[str, str]) -> dict[str, int]:
    numbers = {
        name: sum(n for operation, n in operations.items() if re.match(pattern, operation))
        for name, pattern in wanted.items()
    }
    return {name: number for name, number in numbers.items() if number}


def product_loops(listing: str) -> list[dict[str, int]]:
    """The counts of each innermost loop of a disassembly that has products in it."""
    counts = loops(listing)
    made = {loop: _multiplies(has) for loop, has in counts.items()}
    return [
        has
        for (begin, end), has in counts.items()
        if made[begin, end]
        and not any(
            made[b, e] and begin <= e and b <= end and e - b < end - begin for b, e in counts
        )
    ]


def loops(listing: str) -> dict[tuple[int, int], dict[str, int]]:
    """The counts of each loop of a disassembly: what lies between a label and a branch back to
    it, by the numbers of their lines."""
    lines = listing.splitlines()
    labels: dict[str, int] = {}
    found: list[tuple[int, int]] = []
    for number, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = number
        elif (branch := _BRANCH.search(line)) and branch[1] in labels:
            found.append((labels[branch[1]], number))
    operations = _operations(lines)
    return {
        (begin, end): _number(Counter(operations[begin:end]), INSTRUCTIONS) for begin, end in found
    }


def _multiplies(has: dict[str, int]) -> bool:
    if any(p in has for p in PRODUCTS):
        return True
    return has.get("fma", 0) >= FMA and "store" not in has


class Limits(NamedTuple):
    """Of a multiprocessor: warps, programs, bytes of shared memory, those of one program, and those
    that every program costs on top. CUDA C++ programming guide, "Technical specifications per
    compute capability"; AMD CDNA 3 ISA guide for gfx942."""

    warps: int
    programs: int
    shared: int
    shared_of_one: int
    shared_beside: int


LIMITS = {
    "80": Limits(64, 32, 164 << 10, 163 << 10, 1024),
    "86": Limits(48, 16, 100 << 10, 99 << 10, 1024),
    "89": Limits(48, 24, 100 << 10, 99 << 10, 1024),
    "90": Limits(64, 32, 228 << 10, 227 << 10, 1024),
    "100": Limits(64, 32, 228 << 10, 227 << 10, 1024),
    "120": Limits(48, 24, 100 << 10, 99 << 10, 1024),
    "gfx942": Limits(32, 16, 64 << 10, 64 << 10, 0),
}


def programs(code: Code, arch: str) -> int:
    """How many programs a multiprocessor holds at a time."""
    limits = LIMITS[arch]
    if arch.startswith("gfx"):  # four SIMDs of 512 registers a lane, in units of 8
        waves = min(8, 512 // _up(max(code.registers, 1), 8)) * 4
        by_registers = waves // code.warps
    else:  # 64 K registers, handed to each warp in units of 256
        by_registers = (1 << 16) // (256 * -(-_up(code.registers, 8) * 32 // 256)) // code.warps
    by_shared = limits.shared // max(1, _up(code.shared + limits.shared_beside, 128))
    return min(limits.programs, limits.warps // code.warps, by_registers, by_shared)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
