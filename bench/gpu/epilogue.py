"""Would a hidden layer's ReLU pay in its product's own kernel, as `torch._addmm_activation` has it
on CUDA? It saves a launch and a pass over h; what becomes of a NaN must be seen before it is used.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from bench.gpu.context import Context
from bench.gpu.rows import compared, fact
from dfa_kernels.throughput.timing import rounds

#: Rows and width.
SHAPES, TINY = ((8192, 4096), (65536, 256), (256, 256)), ((8, 16), (16, 8), (4, 4))
TOGETHER, APART = "product with ReLU in its kernel", "product, then ReLU"


def measure(context: Context) -> None:
    """Both ways in bf16, the device's work alone; and whether they agree, with NaN and without."""
    for rows, width in context.pick(SHAPES, TINY):
        x = torch.randn(rows, width, device=context.device, dtype=torch.bfloat16)
        weight, bias = torch.randn_like(x[: min(rows, width)]), torch.randn_like(x[0])
        runs = {
            TOGETHER: lambda x=x, w=weight, b=bias: torch._addmm_activation(b[: len(w)], x, w.t()),
            APART: lambda x=x, w=weight, b=bias: F.linear(x, w, b[: len(w)]).relu_(),
        }
        label = f"N {rows}, K {width}, D {len(weight)}, bf16"
        context.emit(
            fact(f"{label}: the same bits", torch.equal(*(run() for run in runs.values())))
        )
        x[0, 0] = math.nan
        through = bool(runs[TOGETHER]()[0].isnan().all())
        context.emit(fact(f"{label}: a NaN passes the product's own ReLU", through))
        x[0, 0] = 1.0
        times = rounds(
            runs, context.device, context.share(2 * len(SHAPES)), ahead=True, least=context.least
        )
        context.emit(compared(label, times[TOGETHER], times[APART], APART, None))
