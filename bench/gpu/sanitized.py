"""A small case for compute-sanitizer: every operation, on sizes that no tile divides."""

from __future__ import annotations

import os
from unittest import mock

import torch

from bench.gpu.build import TRITON, cuda_backend
from bench.gpu.promises import network, updates_of
from dfa_kernels import backends, ops
from dfa_kernels.backends.contract import Point
from dfa_kernels.feedback import Feedback


def main() -> None:
    """By each backend that is there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for backend in filter(None, (TRITON, cuda_backend(device))):
        with backends.use(backend):
            _all_operations(device)
        print(f"{backend}: done")
    print("small case: done")


def _all_operations(device: torch.device) -> None:
    on_gpu = device.type == "cuda"
    feedback, bf16 = Feedback(seed=5), torch.bfloat16
    rows = 130 if on_gpu else 34  # several blocks, the last not full
    for width in (129, 136):  # copied one by one, and in whole vectors
        error, layers = network(device, bf16, rows, 10, [width, 72])
        points = [Point(width, 0, 1, bf16), Point(72, 1, 1, bf16)]
        ops.project(error, feedback, 0.1, points)
        for delta in ("stored", "on-the-fly"):
            asked = {f"DFA_KERNELS_{name}_DELTA": delta for name in ("TRITON", "CUDA")}
            with mock.patch.dict(os.environ, asked):
                ops.gradients(error, feedback, 0.1, layers, torch.float32)
                ops.step_(feedback, "adamw", updates_of(error, layers))
    # a sum over N in parts
    error, layers = network(device, bf16, 2000 if on_gpu else 520, 10, [64])
    ops.gradients(error, feedback, 0.1, layers, torch.float32)
    if on_gpu:
        torch.cuda.synchronize()


if __name__ == "__main__":
    if not torch.cuda.is_available():
        from bench.gpu import rehearsal

        rehearsal.prepare()
    main()
