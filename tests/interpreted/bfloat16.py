"""bf16 in Triton's interpreter: what is wrong there, and the repair that these tests run with.

numpy has no bf16, so the interpreter (3.6.0 and 3.9.0 seen) holds a bf16 tensor as its bits, in
uint16, and then forgets it:

    a + b, a < b, exp(a)   are computed on the bits, as integers
    tl.dot                 multiplies the bits, as integers
    fp32 → bf16            truncates, where the hardware rounds to nearest even
    integer → bf16         takes the integer for bits

`repair` has each of these widened to fp32, which holds every bf16, and rounded once at the end.
Loads, stores, reshapes and `tl.where` only move bits and are right as they are. Reductions,
`tl.fma` and atomics of bf16 stay wrong: the kernels keep all sums in fp32.
"""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype


def widened(bits: np.ndarray) -> np.ndarray:
    """The fp32 values of bf16 bits: their upper halves."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """The bf16 bits nearest to fp32 values; of two, the even one. A NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(np.shape(values))
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FFF), nearest.astype(np.uint16))


def is_bfloat16(dtype: tl.dtype) -> bool:
    return dtype.scalar == tl.bfloat16


def _wide(handle: TensorHandle) -> TensorHandle:
    if not is_bfloat16(handle.dtype):
        return handle
    return TensorHandle(widened(handle.data), tl.float32)


def _narrow(values: np.ndarray) -> TensorHandle:
    """What an operation on bf16 returns: bf16, or the truth values of a comparison."""
    if values.dtype == np.bool_:
        return TensorHandle(values, tl.int1)
    return TensorHandle(rounded(values), tl.bfloat16)


def _cast(source: TensorHandle, target: tl.dtype) -> TensorHandle:
    """From bf16, to it, or both."""
    wide = _wide(source)
    if is_bfloat16(target):
        return _narrow(wide.data.astype(np.float32))
    return TensorHandle(wide.data.astype(_get_np_dtype(target)), target.scalar)


def repair() -> dict[str, object]:
    """Repair the interpreter of this process; what was there before, by name."""
    names = "binary_op", "unary_op", "cast_impl", "create_fp_to_fp", "create_dot", "get_bf16"
    broken = {name: getattr(InterpreterBuilder, name, None) for name in names}

    def binary_op(self, left, right, operation):
        if not is_bfloat16(left.dtype):
            return broken["binary_op"](self, left, right, operation)
        return _narrow(operation(_wide(left).data, _wide(right).data))

    def unary_op(self, argument, operation):
        if not is_bfloat16(argument.dtype):
            return broken["unary_op"](self, argument, operation)
        return _narrow(operation(_wide(argument).data))

    def cast_impl(self, source, target):
        if is_bfloat16(source.dtype) or is_bfloat16(target):
            return _cast(source, target)
        return broken["cast_impl"](self, source, target)

    def create_fp_to_fp(self, source, target, rounding):
        if is_bfloat16(source.dtype) or is_bfloat16(target):
            return _cast(source, target)
        return broken["create_fp_to_fp"](self, source, target, rounding)

    def create_dot(self, a, b, accumulator, *options):
        return broken["create_dot"](self, _wide(a), _wide(b), accumulator, *options)

    def get_bf16(self, value):
        return _narrow(np.array([value], np.float32))

    for repaired in (binary_op, unary_op, cast_impl, create_fp_to_fp, create_dot, get_bf16):
        setattr(InterpreterBuilder, repaired.__name__, repaired)
    return broken
