"""The emulator itself: its instructions against the PTX manual's layouts, and planted bugs.

Last, both real kernels under the sanitizers.
"""

import ctypes
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from program import run

from tests.emulator.build import COMPILER, CSRC, build

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no {COMPILER}")


def call(function, *arguments):
    function.restype = ctypes.c_char_p
    error = function(
        *(a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments)
    )
    assert error is None, error


@pytest.fixture(scope="module")
def instructions():
    return ctypes.CDLL(str(build([HERE / "instructions.cu"])))


# Instructions: by the PTX manual's "Matrix Fragments for mma.m16n8k16" and "m16n8k8" --------------


def places_of_a(k, packed):
    """(row, column) of each element of A by lane, in the order of the registers."""
    lane = np.arange(32)[:, None]
    group, thread = lane // 4, lane % 4
    i = np.arange(4 * packed)[None]
    if packed == 2:
        row = np.where((i < 2) | ((i >= 4) & (i < 6)), group, group + 8)
        column = thread * 2 + (i & 1) + np.where(i >= 4, 8, 0)
    else:
        row = np.where((i == 0) | (i == 2), group, group + 8)
        column = np.where(i < 2, thread, thread + 4)
    return row, column


def places_of_b(k, packed):
    lane = np.arange(32)[:, None]
    group, thread = lane // 4, lane % 4
    i = np.arange(2 * packed)[None]
    row = thread * 2 + (i & 1) + np.where(i >= 2, 8, 0) if packed == 2 else thread + 4 * i
    return row, group + 0 * i


def places_of_d():
    lane, i = np.arange(32)[:, None], np.arange(4)[None]
    return np.where(i < 2, lane // 4, lane // 4 + 8), lane % 4 * 2 + (i & 1)


def registers(matrix, places):
    """Each lane's elements as 32-bit registers."""
    return np.ascontiguousarray(matrix[places]).view(np.uint32)


def bits(tensor):
    """A 16-bit tensor's elements as integers."""
    return tensor.view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("kind, dtype", [(0, torch.bfloat16), (1, torch.float16), (2, None)])
def test_mma(instructions, kind, dtype):
    k, packed = (8, 1) if dtype is None else (16, 2)
    left, right, start = torch.randn(16, k), torch.randn(k, 8), torch.randn(16, 8)
    if dtype is None:
        encoded = [m.numpy() for m in (left, right)]
        # The hardware ignores the 13 low bits of an operand.
        exact = [
            (m.numpy().view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32) for m in (left, right)
        ]
    else:
        left, right = left.to(dtype), right.to(dtype)
        encoded, exact = [bits(left), bits(right)], [left.float().numpy(), right.float().numpy()]
    d = np.ascontiguousarray(start.numpy()[places_of_d()])
    a = registers(encoded[0], places_of_a(k, packed))
    b = registers(encoded[1], places_of_b(k, packed))
    assert a.shape == (32, 4) and b.shape == (32, 2)
    call(instructions.run_multiply, a, b, d, kind)
    wanted = start.numpy().astype(np.float64) + exact[0].astype(np.float64) @ exact[1]
    np.testing.assert_allclose(d, wanted[places_of_d()], rtol=0, atol=1e-5)


def test_mma_spreads_a_nan_to_its_row_alone(instructions):
    left = torch.ones(16, 16).bfloat16()
    left[5, 3] = torch.nan
    d = np.zeros((32, 4), np.float32)
    right = bits(torch.zeros(16, 8).bfloat16())
    call(
        instructions.run_multiply,
        registers(bits(left), places_of_a(16, 2)),
        registers(right, places_of_b(16, 2)),
        d,
        0,
    )
    assert (np.isnan(d) == (places_of_d()[0] == 5)).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(instructions, transposed):
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    r = np.zeros((32, 4), np.uint32)
    call(instructions.run_load, matrices, r, transposed)
    seen = matrices.swapaxes(1, 2) if transposed else matrices
    # Of matrix i, lane l holds the l-th pair of elements in the order of the rows.
    pairs = np.ascontiguousarray(seen).reshape(4, 64).view(np.uint32)
    np.testing.assert_array_equal(r, pairs.T)


def test_shuffles_and_votes(instructions):
    values, out = np.arange(32, dtype=np.int32) * 7, np.zeros((5, 32), np.int32)
    call(instructions.run_exchange, values, out)
    lane = np.arange(32)
    np.testing.assert_array_equal(out[0], values[[3] * 32])
    np.testing.assert_array_equal(out[1], values[lane // 4 * 4 + 1])
    np.testing.assert_array_equal(out[2], values[lane ^ 3])
    np.testing.assert_array_equal(out[3], values[np.where(lane + 5 < 32, lane + 5, lane)])
    assert (out[4].view(np.uint32) == sum(1 << i for i in range(0, 32, 3))).all()


def test_tf32_rounds_halves_away_from_zero(instructions):
    words = np.array(
        # a tie goes up, below a tie down; into the exponent; into infinity; specials as they are
        [0x3F801000, 0x3F800FFF, 0xBF801000, 0x3F803000, 0x3FFFF000, 0x7F7FFFFF, 0x00001000,
         0x7F800000, 0xFF800000, 0x00000000],
        np.uint32,
    )  # fmt: skip
    wanted = np.array(
        [0x3F802000, 0x3F800000, 0xBF802000, 0x3F804000, 0x40000000, 0x7F800000, 0x00002000,
         0x7F800000, 0xFF800000, 0x00000000],
        np.uint32,
    )  # fmt: skip
    rounded = np.zeros_like(words)
    pointers = [m.ctypes.data_as(ctypes.c_void_p) for m in (words, rounded)]
    instructions.round_tf32(*pointers, len(words))
    np.testing.assert_array_equal(rounded, wanted)


# Planted bugs -------------------------------------------------------------------------------------

PLANTED = HERE / "planted.cu"
BUGS = re.findall(r"^    k(\w+),$", PLANTED.read_text(), re.MULTILINE)

# The orders of threads and of blocks, and how many OS threads run blocks.
ORDERS = [(0, 0, 1), (1, 1, 1), (2, 0, 1), (3, 2, 1), (0, 0, 3)]

NUMBERS, ADDRESS, RACE = "entries are wrong", "heap-buffer-overflow", "ThreadSanitizer: data race"

# By which sanitizer's build, in which order at the latest, and with which words each is caught.
CAUGHT = {
    "NoBarrierAfterWait": [(None, (0, 0, 1), NUMBERS), ("thread", (0, 0, 1), RACE)],
    "WaitLeavesOneMore": [(None, (0, 0, 1), NUMBERS)],
    "LoadBeforeBarrier": [(None, (2, 0, 1), NUMBERS), ("thread", (0, 0, 1), RACE)],
    "SharedRowOutside": [(None, (0, 0, 1), "cp.async: the destination is outside shared memory")],
    "StoreOutsideShared": [("address", (0, 0, 1), ADDRESS)],
    "GlobalRowOutside": [("address", (0, 0, 1), ADDRESS)],
    "NoBarrierBeforeArrival": [("thread", (0, 0, 3), RACE)],
    "NoBarrierAfterArrival": [("thread", (0, 0, 1), RACE)],
    "NoFence": [("thread", (0, 0, 3), RACE)],
    "BarrierOfSomeThreads": [(None, (0, 0, 1), "__syncthreads, while others are at that of")],
    "BarriersOfTwoLines": [(None, (0, 0, 1), "__syncthreads, while others are at that of")],
    "Misaligned": [(None, (0, 0, 1), "cp.async: the source is not aligned")],
    "LaneMissing": [(None, (0, 0, 1), "deadlock: 62 threads wait at tests/emulated/planted.cu")],
    "WarpOnTwoLines": [(None, (0, 0, 1), "the warp diverges: other lanes are at tests")],
    "ReturnsBeforeLanding": [(None, (0, 0, 1), "returned before this cp.async landed")],
    "UnwrittenShared": [(None, (0, 0, 1), NUMBERS)],
}


def planted(bug, sanitizer, order):
    return run([PLANTED], sanitizer, BUGS.index(bug), *order)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("sanitizer", [None, "address", "thread"])
def test_the_right_kernel_passes(sanitizer, order):
    assert planted("None", sanitizer, order) == (0, "")


@pytest.mark.parametrize(
    "bug, sanitizer, order, words", [(bug, *how) for bug in CAUGHT for how in CAUGHT[bug]]
)
def test_a_planted_bug_is_caught(bug, sanitizer, order, words):
    code, said = planted(bug, sanitizer, order)
    assert code != 0
    assert words in said


def test_every_bug_is_in_the_table():
    assert set(BUGS) == {"None", *CAUGHT}


# The real kernels --------------------------------------------------------------------------------


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_the_sanitizers_find_nothing_in_the_kernels(sanitizer):
    sources = [HERE / "sanitized.cpp", CSRC / "project.cu", CSRC / "update.cu"]
    assert run(sources, sanitizer) == (0, "")
