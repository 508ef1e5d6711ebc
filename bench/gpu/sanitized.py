"""A small case for compute-sanitizer: every operation, on sizes that no tile divides."""

from __future__ import annotations

import os
from unittest import mock

import torch

from bench.gpu.promises import network, updates_of
from dfa_kernels import ops
from dfa_kernels.backends.contract import Point
from dfa_kernels.feedback import Feedback


def main() -> None:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    feedback, bf16 = Feedback(seed=5), torch.bfloat16
    rows = 130 if on_gpu else 34  # several blocks, the last not full
    for width in (129, 136):  # copied one by one, and in whole vectors
        error, layers = network(device, bf16, rows, 10, [width, 72])
        points = [Point(width, 0, 1, bf16), Point(72, 1, 1, bf16)]
        ops.project(error, feedback, 0.1, points)
        for delta in ("stored", "on-the-fly"):
            with mock.patch.dict(os.environ, {"DFA_KERNELS_TRITON_DELTA": delta}):
                ops.gradients(error, feedback, 0.1, layers, torch.float32)
                ops.step_(feedback, "adamw", updates_of(error, layers))
    # a sum over N in parts
    error, layers = network(device, bf16, 2000 if on_gpu else 520, 10, [64])
    ops.gradients(error, feedback, 0.1, layers, torch.float32)
    if on_gpu:
        torch.cuda.synchronize()
    print("small case: done")


if __name__ == "__main__":
    if not torch.cuda.is_available():
        from bench.gpu import rehearsal

        rehearsal.prepare()
    main()
