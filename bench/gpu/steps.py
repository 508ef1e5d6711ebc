"""Whole steps, ours beside its rivals, in turns: `contestants` on `networks`."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import torch

from bench.gpu import compiling
from bench.gpu.contestants import (
    COMPILED,
    CONTESTANTS,
    CUDA,
    EAGER,
    IN_BACKWARD,
    OURS,
    OURS_COMPILED,
    REFERENCE,
    TRITON,
    Setting,
)
from bench.gpu.context import Context
from bench.gpu.rows import Row, compared, fact
from dfa_kernels.throughput import counting
from dfa_kernels.throughput.networks import MLP, NeRF, Task
from dfa_kernels.throughput.timing import Run, graphed, warm

LARGE, SMALL, FIELD = MLP(8192, 4096, 8, 4096, 1000), MLP(256, 256, 8, 256, 10), NeRF(65536)
NARROW = MLP(128, 784, 3, 256, 10)
TINY, TINY_FIELD = MLP(8, 16, 2, 16, 4), NeRF(8, 16, 5, 3)

#: Ours against compiled backpropagation, in eager steps and as CUDA graphs; and against the
#: compiled reference, in every shape.
LARGE_TARGET, SMALL_TARGET, SMALL_GRAPH_TARGET, FIELD_TARGET = 1.6, 4.0, 1.5, 1.6
REFERENCE_TARGET = 1.15
#: Built and timed before the others, which torch takes long to compile; what is measured of them
#: beside all others replaces it.
FIRST = (OURS, EAGER, CUDA)

#: The CUDA backend against eager backpropagation, and against Triton's.
NARROW_TARGET, FIELD_CUDA_TARGET = 5.0, 1.0


def large(context: Context) -> None:
    _compare(context, context.pick(LARGE, TINY), LARGE_TARGET)


def large_bf16(context: Context) -> None:
    _compare(context, context.pick(LARGE, TINY), LARGE_TARGET, precision="bfloat16")


def small(context: Context) -> None:
    _compare(context, context.pick(SMALL, TINY), SMALL_TARGET)


def small_bf16(context: Context) -> None:
    _compare(context, context.pick(SMALL, TINY), SMALL_TARGET, precision="bfloat16")


def narrow(context: Context) -> None:
    """Bound by launches: what the CUDA backend is for."""
    _compare(context, context.pick(NARROW, TINY), None, on_cuda={EAGER: NARROW_TARGET})


def small_graph(context: Context) -> None:
    context.say("Every AdamW is capturable=True: its graph goes on counting steps.")
    _compare(context, context.pick(SMALL, TINY), SMALL_GRAPH_TARGET, graph=True)


def small_graph_bf16(context: Context) -> None:
    task = context.pick(SMALL, TINY)
    _compare(context, task, SMALL_GRAPH_TARGET, precision="bfloat16", graph=True)


def small_graph_sgd(context: Context) -> None:
    _compare(context, context.pick(SMALL, TINY), None, rule="sgd", graph=True)


def field(context: Context) -> None:
    _compare(
        context,
        context.pick(FIELD, TINY_FIELD),
        FIELD_TARGET,
        on_cuda={TRITON: FIELD_CUDA_TARGET},
    )


def field_bf16(context: Context) -> None:
    _compare(context, context.pick(FIELD, TINY_FIELD), FIELD_TARGET, precision="bfloat16")


def _compare(
    context: Context,
    task: Task,
    target: float | None,
    *,
    precision: str = "autocast",
    rule: str = "adamw",
    graph: bool = False,
    on_cuda: dict[str, float] | None = None,
) -> None:
    """``target``: of ours against compiled backpropagation; ``on_cuda``: the CUDA backend's against
    others."""
    torch.compiler.reset()
    setting = Setting(context.device, precision, rule, graph, context.compiler)
    label = f"step, {task}, {precision}, {rule}" + (", CUDA graphs" if graph else "")
    targets = {
        (OURS, COMPILED): target,
        (OURS, REFERENCE): REFERENCE_TARGET,
        **{(CUDA, against): wanted for against, wanted in (on_cuda or {}).items()},
    }
    for row in _counted(task):
        context.emit(row)
    steps: dict[str, Run] = {}
    with compiling.to_the_end():
        for names, among in ((FIRST, 16), (CONTESTANTS, 2)):
            known = len(steps)
            _build(context, task, setting, names, steps)
            if OURS not in steps:
                raise RuntimeError("our own step could not be built: see the notes")
            if len(steps) == known:
                continue
            seconds = min(0.6 * context.left(), context.share(among, 8))
            times = compiling.rounds(steps, context, seconds, str(task))
            if OURS not in times:
                raise RuntimeError("our own step could not be timed: see the notes")
            for ours, against in _pairs(times, on_cuda or ()):
                wanted = targets.get((ours, against))
                row = compared(label, times[ours], times[against], against, wanted)
                context.emit(row if ours == OURS else {**row, "ours": ours})
    steps.clear()
    gc.collect()
    if context.device.type == "cuda":
        torch.cuda.empty_cache()


def _pairs(times: Iterable[str], on_cuda: Iterable[str]) -> list[tuple[str, str]]:
    """Who is held against whom: ours against its rivals, its variants against compiled
    backpropagation, and the CUDA backend against whom it has a target."""
    every = [(OURS, against) for against in (COMPILED, EAGER, REFERENCE)]
    every += [(name, COMPILED) for name in (CUDA, TRITON, IN_BACKWARD, OURS_COMPILED)]
    every += [(CUDA, against) for against in on_cuda]
    return [pair for pair in every if set(pair) <= set(times)]


def _build(
    context: Context, task: Task, setting: Setting, names: Iterable[str], steps: dict[str, Run]
) -> None:
    """Add the steps that can be built and warmed up; of the others a note says why not."""
    for name in names:
        if name in steps:
            continue
        if steps and context.left() < 0.2 * context.seconds:
            context.say(f"{task}: {name} was left out, for its part's time was short")
            continue
        try:
            step = CONTESTANTS[name](task, setting).run
            if setting.graph and not context.tiny:
                step = graphed(step)
            # the compiled reference's first step is eager, and its second is compiled
            warm(step, context.device, context.pick(5, 2 if name == REFERENCE else 1))
            steps[name] = step
        except Exception as failed:
            if context.tiny and not isinstance(failed, NotImplementedError):
                raise
            context.say(f"{task}: {name} did not run: {compiling.said(failed)}")
            if context.device.type == "cuda":
                torch.cuda.synchronize()  # raises where the device itself has failed


def _counted(task: Task) -> list[Row]:
    """The flops that bound the ratio, without optimizer and activations."""
    sizes = task.sizes()
    error = 4 if isinstance(task, NeRF) else sizes[-1][0]
    theirs = counting.backpropagation(task.batch, sizes)
    ours = counting.direct_feedback(task.batch, sizes, error)
    ratio = round(theirs / ours, 3)
    return [fact(f"{task}: backpropagation's flops by DFA's", ratio)]
