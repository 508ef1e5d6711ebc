"""A small case for compute-sanitizer: every operation once, on sizes that no tile divides."""

from __future__ import annotations

import os

import torch

from bench.gpu.promises import network, updates_of
from dfa_kernels import ops
from dfa_kernels.backends.contract import Point
from dfa_kernels.feedback import Feedback


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    feedback = Feedback(seed=5)
    for dtype in (torch.bfloat16, torch.float32):
        # 130 rows: several blocks, the last not full; widths aligned and not
        for width in (129, 136):
            error, layers = network(device, dtype, 130, 10, [width, 72])
            points = [Point(width, 0, 1, dtype), Point(72, 1, 1, dtype)]
            ops.project(error, feedback, 0.1, points)
            for delta in ("stored", "on-the-fly"):
                os.environ["DFA_KERNELS_TRITON_DELTA"] = delta
                ops.gradients(error, feedback, 0.1, layers, torch.float32)
                ops.step_(feedback, "adamw", updates_of(error, layers))
    # a sum over N in parts
    error, layers = network(device, torch.bfloat16, 2000, 10, [64])
    ops.gradients(error, feedback, 0.1, layers, torch.float32)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("small case: done")


if __name__ == "__main__":
    main()
