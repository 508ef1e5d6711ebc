"""Whole steps, ours beside its rivals, in turns: `contestants` on `networks`."""

from __future__ import annotations

import gc

import torch

from bench.gpu.contestants import (
    COMPILED,
    CONTESTANTS,
    CUDA,
    EAGER,
    OURS,
    REFERENCE,
    TRITON,
    Setting,
)
from bench.gpu.context import Context
from bench.gpu.rows import Row, compared, fact
from dfa_kernels.throughput import counting
from dfa_kernels.throughput.networks import MLP, NeRF, Task
from dfa_kernels.throughput.timing import Run, graphed, rounds, warm

LARGE, SMALL, FIELD = MLP(8192, 4096, 8, 4096, 1000), MLP(256, 256, 8, 256, 10), NeRF(65536)
NARROW = MLP(128, 784, 3, 256, 10)
TINY, TINY_FIELD = MLP(8, 16, 2, 16, 4), NeRF(8, 16, 5, 3)

#: Ours against compiled backpropagation, in eager steps and as CUDA graphs; and against the
#: compiled reference, in every shape.
LARGE_TARGET, SMALL_TARGET, SMALL_GRAPH_TARGET, FIELD_TARGET = 1.6, 4.0, 1.5, 1.6
REFERENCE_TARGET = 1.15
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
    steps = _built(context, task, setting)
    if OURS not in steps:
        raise RuntimeError("our own step could not be built: see the notes")
    times = rounds(
        steps, context.device, min(0.6 * context.left(), context.share(1, 8)), least=context.least
    )
    how = f"{precision}, {rule}" + (", CUDA graphs" if graph else "")
    for against in (COMPILED, EAGER, REFERENCE):
        if against in times:
            wanted = {COMPILED: target, REFERENCE: REFERENCE_TARGET}.get(against)
            context.emit(
                compared(f"step, {task}, {how}", times[OURS], times[against], against, wanted)
            )
    for name in times:
        if name not in (OURS, EAGER, REFERENCE) and name != COMPILED and COMPILED in times:
            row = compared(f"step, {task}, {how}", times[name], times[COMPILED], COMPILED, None)
            context.emit({**row, "ours": name})
    for against, wanted in (on_cuda or {}).items():
        if CUDA in times and against in times:
            row = compared(f"step, {task}, {how}", times[CUDA], times[against], against, wanted)
            context.emit({**row, "ours": CUDA})
    for row in _counted(task):
        context.emit(row)
    steps.clear()
    gc.collect()
    if context.device.type == "cuda":
        torch.cuda.empty_cache()


def _built(context: Context, task: Task, setting: Setting) -> dict[str, Run]:
    """The steps that could be built and warmed up; of the others a note says why not."""
    steps = {}
    for name, make in CONTESTANTS.items():
        if steps and context.left() < 0.2 * context.seconds:
            context.say(f"{task}: {name} was left out, for its part's time was short")
            continue
        try:
            step = make(task, setting).run
            if setting.graph and not context.tiny:
                step = graphed(step)
            warm(step, context.device, context.pick(5, 1))
            steps[name] = step
        except Exception as failed:
            if context.tiny and not isinstance(failed, NotImplementedError):
                raise
            reason = str(failed).strip().splitlines() or [""]
            context.say(f"{task}: {name} did not run: {type(failed).__name__}: {reason[0][:300]}")
            if context.device.type == "cuda":
                torch.cuda.synchronize()  # raises where the device itself has failed
    return steps


def _counted(task: Task) -> list[Row]:
    """The flops that bound the ratio, without optimizer and activations."""
    sizes = task.sizes()
    error = 4 if isinstance(task, NeRF) else sizes[-1][0]
    theirs = counting.backpropagation(task.batch, sizes)
    ours = counting.direct_feedback(task.batch, sizes, error)
    ratio = round(theirs / ours, 3)
    return [fact(f"{task}: backpropagation's flops by DFA's", ratio)]
