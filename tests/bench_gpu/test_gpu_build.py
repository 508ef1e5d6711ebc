"""What `bench.gpu` reads from the compiler of csrc/."""

from bench.gpu.build import spills

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
