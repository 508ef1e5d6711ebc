"""The emulator itself: its instructions (tests/vectors), and planted bugs.

Last, both real kernels under the sanitizers.
"""

import ctypes
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from program import run

from tests.emulator.build import COMPILER, CSRC, build
from tests.vectors import instructions

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no {COMPILER}")


def call(library, name, *arguments):
    function = getattr(library, name)
    function.restype = ctypes.c_char_p
    error = function(
        *(a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments)
    )
    assert error is None, error


@pytest.mark.parametrize("name", instructions.CHECKS)
def test_instructions(name):
    library = ctypes.CDLL(str(build([instructions.SOURCE])))
    instructions.CHECKS[name](partial(call, library))


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
