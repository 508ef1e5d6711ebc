"""What a launch is told of the device, and whether δ is stored: fixed rules, not yet timed."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from dfa_kernels.backends.grouped.layout import LIMIT
from dfa_kernels.backends.tf32 import tf32_allowed
from dfa_kernels.backends.variable import Variable

# The codes of csrc/tables.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_COMPUTE = {torch.bfloat16: 0, torch.float16: 1}
_TF32, _F32 = 2, 3
DISTRIBUTIONS = {"matrix": 0, "rademacher": 1, "uniform": 2, "normal": 3}
RULES = {"store": 0, "sgd": 1, "adamw": 2}


class Device(NamedTuple):
    """A device's number, how many programs it runs side by side at the least, and whether it is no
    CPU, for which a torch device makes a string each time that it is asked."""

    ordinal: int
    multiprocessors: int
    is_gpu: bool = False


@functools.lru_cache
def device_of(device: torch.device) -> Device:
    """What the rules know of a torch device; a CPU is the emulator's."""
    if device.type == "cpu":
        return Device(0, 8)
    index = torch.cuda.current_device() if device.index is None else device.index
    return Device(index, torch.cuda.get_device_properties(index).multi_processor_count, True)


def compute(dtype: torch.dtype) -> int:
    """What a product of such operands is computed in: tf32 only where the user lets torch's own
    products use it."""
    code = _COMPUTE.get(dtype)
    if code is not None:
        return code
    return _TF32 if tf32_allowed() else _F32


VARIABLE = "DFA_KERNELS_CUDA_DELTA"
_variable = Variable(VARIABLE)

#: δ made once by `project` and read by `update`; or made by `update` where it is needed.
STORED, ON_THE_FLY = "stored", "on-the-fly"

#: The widest error that `update` takes (csrc/launch.h), and the widest input by the rule.
FLY_ERROR, FLY_INPUT = 32, 512


def on_the_fly(error_width: int, widest: int) -> bool:
    """Whether δ is made on the fly: it saves a launch and the write of δ, and costs a product and
    an f′ for every tile along K.

    Raises:
        ValueError: DFA_KERNELS_CUDA_DELTA is neither "stored" nor "on-the-fly".
    """
    limit = widest_input()
    return error_width <= FLY_ERROR and widest <= limit


def widest_input() -> int:
    """The widest input of a layer whose δ is made on the fly.

    Raises:
        ValueError: as `on_the_fly`.
    """
    asked = _variable.get()
    if not asked:
        return FLY_INPUT
    if asked not in (STORED, ON_THE_FLY):
        raise ValueError(f"{VARIABLE} must be {STORED!r} or {ON_THE_FLY!r}, got {asked!r}")
    return 0 if asked == STORED else LIMIT - 1


def flies(error: torch.dtype, saved: torch.dtype) -> bool:
    """Whether δ of these dtypes can be made on the fly: a launch computes in one."""
    return error == saved


def describe() -> str:
    """The rule, for ``dfa-kernels info``."""
    asked = _variable.get()
    if asked:
        return f"δ {asked} ({VARIABLE})"
    return f"δ on the fly for E ≤ {FLY_ERROR} and K ≤ {FLY_INPUT}, else stored (counted, not timed)"
