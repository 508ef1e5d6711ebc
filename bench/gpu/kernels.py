"""`project` and `update` on their own: the launches as the backend makes them, made beforehand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu import build, compiling, contestants
from bench.gpu.contestants import Setting
from bench.gpu.context import Context
from bench.gpu.rows import compared, timed
from dfa_kernels import backends, ops
from dfa_kernels.backends.contract import HEAD, RULES, Layer, Point
from dfa_kernels.backends.grouped.plan import Applied, Group, Grouped, Target, Term
from dfa_kernels.backends.reference import Reference
from dfa_kernels.feedback import Feedback
from dfa_kernels.throughput import counting
from dfa_kernels.throughput.timing import Run, kernel, warm

#: Error widths of `project`'s rows.
ERRORS = (10, 32, 64, 128, 256, 512)
#: Layers, and in a rehearsal.
LAYERS = 8, 2


class Kernels(NamedTuple):
    """A backend's: `launches` of its project and update, told by its rules, run by its launcher."""

    suffix: str  # of the rows' names
    project: ModuleType
    update: ModuleType
    rules: ModuleType
    launcher: Callable[[], Any]
    update_target: str


def triton() -> Kernels:
    from dfa_kernels.backends.triton import launch, project, rules, update

    return Kernels("", project, update, rules, launch.Launcher, "update")


def cuda(device: torch.device) -> Kernels:
    """Those of csrc/.

    Raises:
        RuntimeError: they are not built.
    """
    from dfa_kernels.backends.cuda import launch, project, rules, update

    name = build.cuda_backend(device)
    if name is None:
        raise RuntimeError("the CUDA backend is not built")
    core = backends.get(name)._core()  # type: ignore[attr-defined]
    launcher = functools.partial(launch.Launcher, core)
    return Kernels(", CUDA backend", project, update, rules, launcher, "update, mma.sync")


def prepared(kernels: Kernels, launches: list[Any], device: torch.device, *keep: object) -> Run:
    """The launches, to be run over and over; they hold addresses alone, of what ``keep`` keeps."""
    launcher = kernels.launcher()

    def run() -> object:
        launcher.run(launches, device)
        return keep

    return run


def projections(context: Context) -> None:
    _projections(context, triton(), ERRORS)


def cuda_projections(context: Context) -> None:
    _projections(context, cuda(context.device), ERRORS[::2])


def _projections(context: Context, kernels: Kernels, errors: tuple[int, ...]) -> None:
    """δ of 8 fused layers: f′ read from h, δ written; one B for all, and one for each."""
    n, d = context.pick((8192, 4096), (16, 64))
    layers = context.pick(*LAYERS)
    device, dtype, rate = context.device, torch.bfloat16, "bf16"
    saved = [torch.randn(n, d, device=device, dtype=dtype).tanh_() for _ in range(layers)]
    out = [torch.empty_like(h) for h in saved]
    errors = context.pick(errors, errors[:2])
    cases = [(shared, e) for shared in (True, False) for e in errors]
    for shared, e in cases:
        error = torch.randn(n, e, device=device, dtype=dtype)
        launches = of_layers(kernels, error, saved, out, shared, device)
        run = prepared(kernels, launches, device, error)
        times = kernel(run, device, context.share(len(cases)), context.least)
        work = counting.project(n, e, [d] * layers, shared, dtype.itemsize)
        whose = "one B" if shared else "a B each"
        name = f"project, {layers} layers of {d}, N {n}, E {e}, {whose}, {rate}{kernels.suffix}"
        context.emit(timed(name, times, work, rate, "project"))


def of_layers(
    kernels: Kernels,
    error: Tensor,
    saved: list[Tensor],
    out: list[Tensor],
    shared: bool,
    device: torch.device,
) -> list[Any]:
    """`project` of fused tanh layers."""
    targets = [Target(o, h.shape[1], 1, h, "tanh") for h, o in zip(saved, out, strict=True)]
    groups = [Group(error, 0.01, 0, targets)]
    if not shared:
        groups = [Group(error, 0.01, i, [t]) for i, t in enumerate(targets)]
    return kernels.project.launches(groups, Feedback(), kernels.rules.device_of(device))


def updates(context: Context) -> None:
    _updates(context, triton())


def cuda_updates(context: Context) -> None:
    _updates(context, cuda(context.device))


def _updates(context: Context, kernels: Kernels) -> None:
    """dW, db and AdamW's step for 8 layers, δ given; fp32 parameters and states, then bf16."""
    n, d = context.pick((8192, 4096), (16, 64))
    layers = context.pick(*LAYERS)
    device, bf16 = context.device, torch.bfloat16
    x = [torch.randn(n, d, device=device, dtype=bf16) for _ in range(layers)]
    delta = [torch.randn(n, d, device=device, dtype=bf16) for _ in range(layers)]
    sizes = [(d, d)] * layers
    shape = f"{layers} × {d}², N {n}, bf16"
    held = kernels.update_target
    cases = [("adamw", torch.float32, held), ("adamw", bf16, held), ("sgd", bf16, None)]
    for rule, dtype, target in cases:
        run = of_weights(kernels, rule, dtype, x, delta)
        times = kernel(run, device, context.share(4), context.least)
        states = len(RULES[rule].states)
        work = counting.update(n, sizes, bf16.itemsize, dtype.itemsize, states)
        name = f"update with {rule}, {shape}, {_name(dtype)} parameters{kernels.suffix}"
        context.emit(timed(name, times, work, "bf16", target))
    run = of_weights(kernels, "store", bf16, x, delta)
    times = kernel(run, device, context.share(4), context.least)
    work = counting.store(n, sizes, bf16.itemsize, bf16.itemsize)
    context.emit(timed(f"update, gradients stored, {shape}{kernels.suffix}", times, work))


_HYPER = {
    "store": (),
    "sgd": (1e-4, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0),
    "adamw": (1e-4, 0.9, 0.999, 1e-8, 0.01, 0.0, 10.0),
}


def of_weights(
    kernels: Kernels, rule: str, dtype: torch.dtype, x: list[Tensor], delta: list[Tensor]
) -> Run:
    """`update` of layers whose δ is stored, with fresh parameters and states."""
    device = x[0].device

    def applied(*shape: int) -> Applied:
        parameter = torch.randn(shape, device=device, dtype=dtype)
        states = [] if rule == "store" else RULES[rule].states
        made = tuple(torch.rand_like(parameter) for _ in states)
        return Applied(parameter, made, None, _HYPER[rule])

    grouped = [
        Grouped(applied(s.shape[1], i.shape[1]), applied(s.shape[1]), [Term(i, s)])
        for i, s in zip(x, delta, strict=True)
    ]
    made = kernels.update.launches(rule, Feedback(), grouped, kernels.rules.device_of(device))
    return prepared(kernels, made, device, grouped)


def against_reference(context: Context) -> None:
    """The operations as a whole beside `torch.compile` of the reference's own."""
    n, d = context.pick((8192, 4096), (32, 64))
    small_n, small = context.pick((256, 256), (8, 16))
    field_n, field = context.pick((65536, 256), (64, 16))
    cases = [(n, d, 10), (n, d, 512), (small_n, small, 10), (field_n, field, 4)]
    for rows, width, e in cases:
        _one_against_reference(context, rows, width, e, context.share(2 * len(cases)))


def _one_against_reference(context: Context, rows: int, width: int, e: int, seconds: float) -> None:
    device, dtype = context.device, torch.bfloat16
    torch.compiler.reset()
    setting = Setting(device, compiler=context.compiler)
    feedback = Feedback()
    error = torch.randn(rows, e, device=device, dtype=dtype)
    number = context.pick(*LAYERS)
    points = [Point(width, 0, 1, dtype)] * number
    layers = [
        Layer(
            torch.randn(rows, width, device=device, dtype=dtype),
            torch.randn(rows, width, device=device, dtype=dtype).tanh_(),
            "tanh", 0, 1,
        )
        for _ in range(number)
    ]  # fmt: skip
    head = torch.randn(rows, width, device=device, dtype=dtype)
    layers.append(Layer(head, error.clone(), "identity", HEAD, 1))
    compiled = {
        name: contestants.compiled_reference(setting, Reference(), name)
        for name in ("project", "gradients")
    }
    pairs: dict[str, tuple[Run, Run]] = {
        "project": (
            lambda: ops.project(error, feedback, 0.01, points),
            lambda: compiled["project"](error, feedback, 0.01, points),
        ),
        "gradients": (
            lambda: ops.gradients(error, feedback, 0.01, layers, dtype),
            lambda: compiled["gradients"](error, feedback, 0.01, layers, dtype),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        label = f"{name}, {number} layers of {width}, N {rows}, E {e}"
        rival = contestants.REFERENCE
        with compiling.to_the_end():
            warm(theirs, device, 2)  # its first call is eager
            times = compiling.rounds({"ours": ours, rival: theirs}, context, seconds, label)
        if len(times) == 2:
            context.emit(compared(label, times["ours"], times[rival], rival, 1.15))


def _name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
