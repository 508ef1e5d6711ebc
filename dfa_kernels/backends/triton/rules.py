"""Which tiles a launch uses, and whether δ is stored: fixed rules, by shape class and architecture.

The figures come from offline compilation (`python -m bench.machine_code`: registers, shared memory,
no spills) and from counting bytes and flops; nothing here has been timed on a GPU yet.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import torch

from dfa_kernels.backends.tf32 import tf32_allowed
from dfa_kernels.backends.variable import Variable


class Device(NamedTuple):
    """What the rules know of a GPU: ``kind`` "cuda", "hip" or "cpu" (the interpreter), ``arch`` as
    80, 90, …, and its multiprocessors."""

    kind: str
    arch: int
    multiprocessors: int

    @property
    def bulk_copies(self) -> bool:
        """Whether tiles come by TMA, which the interpreter knows too. Where products have them in
        registers at once, asynchronous copies of 128 bits keep up with it."""
        return self.shared_operands

    @property
    def shared_operands(self) -> bool:
        """Whether 16-bit products read their operands from shared memory, as wgmma and tcgen05 do.
        mma.sync and AMD's MFMA have them in registers, where in `update` those of 64 rows spill, or
        leave none for a second program. The interpreter goes the former's way."""
        return self.kind == "cpu" or (self.kind == "cuda" and 90 <= self.arch < 110)

    @property
    def awaits(self) -> str:
        """The instruction by which a warp waits for its own stores, with the move of a register
        that inline assembly must have; "" where a barrier and a release order them for all warps of
        a program. On AMD's GPUs the release of one warp waits for that warp's stores alone, and
        writes back nothing that reaches the L2 cache later."""
        if self.kind != "hip":
            return ""
        counted = "s_waitcnt vmcnt(0)"  # CDNA
        if self.arch >= 120:
            counted = "s_wait_storecnt 0x0"
        elif self.arch >= 100:
            counted = "s_waitcnt_vscnt null, 0x0"
        return counted + "\n\tv_mov_b32 $0, $1"


@functools.lru_cache
def device_of(device: torch.device) -> Device:
    """What the rules know of a torch device."""
    if device.type == "cpu":
        return Device("cpu", 0, 8)
    properties = torch.cuda.get_device_properties(device)
    kind = "hip" if torch.version.hip else "cuda"
    arch = 10 * properties.major + properties.minor
    return Device(kind, arch, properties.multi_processor_count)


class Tiles(NamedTuple):
    """Rows N, features D and the third dimension (E in `project`, K in `update`) of a tile;
    ``warps`` of 32 threads; ``registers``: the most of a thread, 0 where that is left to the
    compiler."""

    n: int
    d: int
    k: int
    warps: int
    stages: int
    registers: int = 0

    def options(self, device: Device) -> dict[str, int]:
        """As Triton takes them. Without a limit ptxas may spill a few registers to fit one more
        program on a multiprocessor, or use a few more than let two fit."""
        if device.kind == "hip":  # whose warps have 64
            return {"num_warps": max(1, self.warps // 2), "num_stages": self.stages}
        chosen = {"num_warps": self.warps, "num_stages": self.stages}
        if device.kind != "cuda" or not self.registers:
            return chosen
        return chosen | {"maxnreg": self.registers}


#: Columns of a tile of δ: what one Philox call makes of ±1.
_SIGNS = 128

#: Registers of a thread: as many as there can be, or what lets two programs of 8 warps fit.
ALL_REGISTERS, _TWO = 255, 128


def project_tiles(
    device: Device,
    half: bool,
    tf32: bool,
    whole: bool,
    rows: int,
    columns: int,
    width: int,
    mixed: bool = False,
) -> Tiles:
    """Of `project`: ``half``: a 16-bit product; ``whole``: rows of e and of a user's B are whole
    vectors; ``rows`` N, ``columns`` Σ D, ``width`` E; ``mixed``: rows of some targets are whole
    vectors, and of others not."""
    # Other rows take an address for every element; without tensor cores registers hold B's tile.
    deepest = (64 if whole else 32) if half else 32 if tf32 else 16
    depth = max(16, min(deepest, 1 << (max(width, 1) - 1).bit_length()))
    large = -(-rows // 128) * -(-columns // _SIGNS) >= device.multiprocessors
    if half:  # 64 rows are the fewest of a wgmma, whose operands and addresses fit beside 128
        other = mixed or (not whole and device.arch >= 100)
        most = 64 if other and depth > 16 and device.arch // 10 != 9 else 128
        return Tiles(most if large else 64, _SIGNS, depth, 8, 3, ALL_REGISTERS)
    return Tiles(64 if large else 32, _SIGNS, depth, 8, 2, ALL_REGISTERS)


def update_tiles(
    device: Device,
    half: bool,
    tf32: bool,
    fly: bool,
    whole: bool,
    sizes: Iterable[tuple[int, int]],
) -> Tiles:
    """Of `update`; ``half``: 16-bit operands; ``fly``: δ is made on the fly; ``whole``: all rows
    are whole vectors; ``sizes``: (D, K) of every weight."""
    tiles = sum(-(-d // _SIGNS) * -(-k // 128) for d, k in sizes)
    columns = 128 if tiles >= device.multiprocessors else 64
    if fly:  # rows that are not whole vectors take an address for every element
        deepest = 64 if whole and device.shared_operands else 32
        return Tiles(deepest if half else 16, _SIGNS, 64, 8, 2, ALL_REGISTERS)
    if half:
        if device.shared_operands:
            # A launch with other rows too has a second loop for them, and its addresses.
            return Tiles(64, _SIGNS, columns, 8, 3, _TWO if whole else ALL_REGISTERS)
        return Tiles(32, _SIGNS, columns, 8, 3, ALL_REGISTERS)
    if tf32:
        return Tiles(32, _SIGNS, columns, 8, 3, ALL_REGISTERS)
    # Two programs fit, but where addresses of other rows come beside those of TMA.
    return Tiles(16, _SIGNS, 64, 8, 2, _TWO if whole or device.arch >= 120 else ALL_REGISTERS)


def splits(device: Device, tiles: int, blocks: int) -> int:
    """Into how many parts the sum over N falls: as many as fill the multiprocessors, each with at
    least 4 blocks. ``blocks``: the most that a tile sums."""
    if tiles >= device.multiprocessors or blocks < 8:
        return 1
    return max(1, min(device.multiprocessors // max(tiles, 1), blocks // 4, 64))


VARIABLE = "DFA_KERNELS_TRITON_DELTA"
variable = Variable(VARIABLE)

#: δ made once by `project` and read by `update`; or made by `update` where it is needed.
STORED, ON_THE_FLY = "stored", "on-the-fly"

#: The widest error and input for which the rule makes δ on the fly.
FLY_ERROR, FLY_INPUT = 32, 512


def on_the_fly(error_width: int, widest_input: int) -> bool:
    """Whether δ is made on the fly, as far as sizes go.

    It saves the write of δ and one launch, and costs a product of 2·N·D·E flop and an f′ for every
    tile along K. Where K is a few tiles that is the smaller part.

    Raises:
        ValueError: DFA_KERNELS_TRITON_DELTA is neither "stored" nor "on-the-fly".
    """
    asked = variable.get()
    if asked not in (None, "", STORED, ON_THE_FLY):
        raise ValueError(f"{VARIABLE} must be {STORED!r} or {ON_THE_FLY!r}, got {asked!r}")
    if error_width > FLY_ERROR or asked == STORED:
        return False
    return asked == ON_THE_FLY or widest_input <= FLY_INPUT


def flies(error: torch.dtype, saved: torch.dtype) -> bool:
    """Whether δ of these dtypes is made on the fly where sizes allow it. Without tensor cores e·B
    takes more registers than there are: whoever asks for it by the variable gets spills."""
    asked = variable.get() == ON_THE_FLY
    return asked or tensor_cores(torch.promote_types(error, saved))


def describe() -> str:
    """The rule, for ``dfa-kernels info``."""
    asked = variable.get()
    if asked:
        return f"δ {asked} ({VARIABLE})"
    return (
        f"δ on the fly for E ≤ {FLY_ERROR} and K ≤ {FLY_INPUT} in 16 bits or tf32, else stored "
        "(counted, not timed)"
    )


def precision(dtype: torch.dtype) -> str:
    """Of a product's operands: tf32 only where the user lets torch's own products use it."""
    if dtype == torch.float32 and tf32_allowed() and _compiles_tf32():
        return "tf32"
    return "ieee"


@functools.cache
def _compiles_tf32() -> bool:
    """Of AMD's GPUs Triton compiles such a product for gfx942 alone."""
    return not torch.version.hip or torch.cuda.get_device_capability() == (9, 4)


def tensor_cores(dtype: torch.dtype) -> bool:
    """Whether products of such operands run on tensor cores."""
    return dtype.itemsize == 2 or precision(dtype) == "tf32"
