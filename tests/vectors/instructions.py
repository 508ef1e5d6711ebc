"""What each instruction of csrc/ptx.cuh does to the registers of one warp, by the PTX manual's
layouts ("Matrix Fragments for mma.m16n8k16", "m16n8k8", "ldmatrix").

The same checks run on the emulator (tests/emulated) and on a GPU (tests/gpu): what the one takes an
instruction to do is what the other does. `call(name, *arguments)` runs a function of
instructions.cu; numpy arrays among its arguments are read and written.
"""

from pathlib import Path

import numpy as np
import torch

SOURCE = Path(__file__).with_name("instructions.cu")


def places_of_a(packed):
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


def places_of_b(packed):
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


def mma(call, kind, dtype):
    """D += A·B; ``kind``: instructions.cu's; ``dtype``: None for tf32."""
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
    a = registers(encoded[0], places_of_a(packed))
    b = registers(encoded[1], places_of_b(packed))
    assert a.shape == (32, 4)
    assert b.shape == (32, 2)
    call("run_multiply", a, b, d, kind)
    wanted = start.numpy().astype(np.float64) + exact[0].astype(np.float64) @ exact[1]
    np.testing.assert_allclose(d, wanted[places_of_d()], rtol=0, atol=1e-5)


def mma_bf16(call):
    mma(call, 0, torch.bfloat16)


def mma_f16(call):
    mma(call, 1, torch.float16)


def mma_tf32(call):
    mma(call, 2, None)


def mma_spreads_a_nan_to_its_row_alone(call):
    left = torch.ones(16, 16).bfloat16()
    left[5, 3] = torch.nan
    d = np.zeros((32, 4), np.float32)
    a = registers(bits(left), places_of_a(2))
    b = registers(bits(torch.zeros(16, 8).bfloat16()), places_of_b(2))
    call("run_multiply", a, b, d, 0)
    assert (np.isnan(d) == (places_of_d()[0] == 5)).all()


def _ldmatrix(call, transposed):
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    r = np.zeros((32, 4), np.uint32)
    call("run_load", matrices, r, transposed)
    seen = matrices.swapaxes(1, 2) if transposed else matrices
    # Of matrix i, lane l holds the l-th pair of elements in the order of the rows.
    pairs = np.ascontiguousarray(seen).reshape(4, 64).view(np.uint32)
    np.testing.assert_array_equal(r, pairs.T)


def ldmatrix(call):
    _ldmatrix(call, False)


def ldmatrix_transposed(call):
    _ldmatrix(call, True)


def shuffles_and_votes(call):
    values, out = np.arange(32, dtype=np.int32) * 7, np.zeros((5, 32), np.int32)
    call("run_exchange", values, out)
    lane = np.arange(32)
    np.testing.assert_array_equal(out[0], values[[3] * 32])
    np.testing.assert_array_equal(out[1], values[lane // 4 * 4 + 1])
    np.testing.assert_array_equal(out[2], values[lane ^ 3])
    np.testing.assert_array_equal(out[3], values[np.where(lane + 5 < 32, lane + 5, lane)])
    assert (out[4].view(np.uint32) == sum(1 << i for i in range(0, 32, 3))).all()


def tf32_rounds_halves_away_from_zero(call):
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
    call("run_round", words, rounded, len(words))
    np.testing.assert_array_equal(rounded, wanted)


#: By their names.
CHECKS = {
    check.__name__: check
    for check in (
        mma_bf16,
        mma_f16,
        mma_tf32,
        mma_spreads_a_nan_to_its_row_alone,
        ldmatrix,
        ldmatrix_transposed,
        shuffles_and_votes,
        tf32_rounds_halves_away_from_zero,
    )
}
