"""Which backend a step of what size belongs to: Triton's kernels beside CUDA's, host and device.

The rows are what `dfa_kernels.backends.by_work` is to choose by once there are any: beside each is
the work that it counts now.
"""

from __future__ import annotations

import gc
from functools import partial

import torch

from bench.gpu.build import TRITON, cuda_backend
from bench.gpu.context import Context
from bench.gpu.promises import network, updates_of
from bench.gpu.rows import compared
from bench.launch import repeating
from dfa_kernels import backends
from dfa_kernels.backends.by_work import AGAIN, HOST, work_of
from dfa_kernels.feedback import Feedback
from dfa_kernels.throughput.timing import rounds

#: Rows and width of 8 layers and a head of 10, from the least work to the most.
SHAPES = ((128, 128), (256, 256), (2048, 256), (1024, 1024), (16384, 256), (4096, 1024),
          (65536, 256), (2048, 4096), (8192, 4096))  # fmt: skip
TINY = ((8, 16), (16, 16))


def measure(context: Context) -> None:
    """A step of AdamW on bf16 activations and fp32 parameters: as a loop takes it, which repeats
    its last one; planned anew, as after a change; and the device's work alone."""
    cuda = cuda_backend(context.device)
    if cuda is None:
        context.say("csrc/ is not built: there is nothing to choose between.")
        return
    shapes = context.pick(SHAPES, TINY)
    for rows, width in shapes:
        error, layers = network(context.device, torch.bfloat16, rows, 10, [width] * 8)
        updates = updates_of(error, layers)
        both = {name: backends.get(name) for name in (TRITON, cuda)}
        anew = {n: partial(b.step_, Feedback(), "adamw", updates) for n, b in both.items()}  # type: ignore[attr-defined]
        again = {
            n: repeating(b.repeated, Feedback(), error, layers, updates)  # type: ignore[attr-defined]
            for n, b in both.items()
        }
        for how, runs, ahead, most in (
            ("in a loop", again, False, AGAIN),
            ("planned anew", anew, False, HOST),
            ("on the device", again, True, AGAIN),
        ):
            times = rounds(
                runs, context.device, context.share(3 * len(shapes)), ahead=ahead,
                least=context.least,
            )  # fmt: skip
            counted = f"{work_of(updates) / most:.2g} of the most"
            label = f"step_ of 8 layers of {width}, N {rows}, {how}, {counted}"
            context.emit(compared(label, times[cuda], times[TRITON], TRITON, None))
        del error, layers, updates, anew, again, runs
        gc.collect()
