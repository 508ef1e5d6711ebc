"""How a step grows with depth, width, batch and the error's width: ours beside eager
backpropagation, one axis at a time, the others as in the middle of the table."""

from __future__ import annotations

import gc

import torch

from bench.gpu.contestants import CONTESTANTS, EAGER, OURS, Setting
from bench.gpu.context import Context
from bench.gpu.rows import compared
from dfa_kernels.throughput.networks import MLP
from dfa_kernels.throughput.timing import rounds, warm

#: batch, inputs, depth, width, outputs.
MIDDLE, TINY = MLP(2048, 1024, 8, 1024, 100), MLP(8, 16, 2, 16, 4)
AXES: dict[str, tuple[int, ...]] = {
    "width": (128, 256, 512, 2048, 4096, 8192),
    "batch": (128, 512, 8192, 32768),
    "depth": (2, 4, 16, 32),
    "outputs": (10, 1000, 10_000, 50_000),
}


def shapes(context: Context) -> list[MLP]:
    """The middle, then every axis by turns: where time is short, each has had some."""
    if context.tiny:
        return [TINY, TINY._replace(depth=3)]
    longest = max(map(len, AXES.values()))
    turns = [
        MIDDLE._replace(**{axis: values[i]})
        for i in range(longest)
        for axis, values in AXES.items()
        if i < len(values)
    ]
    return [MIDDLE, *turns]


def curves(context: Context) -> None:
    setting = Setting(context.device, "autocast", "adamw")
    every = shapes(context)
    for number, shape in enumerate(every):
        if context.left() < 3 and not context.tiny:
            context.say(f"{len(every) - number} shapes of {len(every)} were left out: no time")
            return
        try:
            steps = {name: CONTESTANTS[name](shape, setting).run for name in (OURS, EAGER)}
            for step in steps.values():
                warm(step, context.device, context.pick(5, 1))
        except torch.OutOfMemoryError:
            context.say(f"{shape}: does not fit into this device's memory")
            continue
        seconds = context.share(len(every))
        times = rounds(steps, context.device, seconds, least=context.least)
        context.emit(compared(f"step, {shape}", times[OURS], times[EAGER], EAGER, None))
        steps.clear()
        gc.collect()
        if context.device.type == "cuda":
            torch.cuda.empty_cache()
