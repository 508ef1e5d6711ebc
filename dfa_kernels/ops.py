"""The three custom ops: schema, fake implementation, dispatch to the chosen backend.

``dfa_kernels::project``, ``::gradients`` and ``::step_`` carry flat lists, which is all that a
torch schema can hold; `project`, `gradients` and `step_` here flatten what
``backends.contract`` names, and the ops rebuild it for the backend. A fourth, ``::hyper``, is a
compiled step's way to its hyperparameters. What is not being traced goes to the backend directly:
on a small network the dispatcher and the lists show in the step. Nothing below this file knows of
modules or autograd; nothing above it knows which backend runs.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dfa_kernels import backends
from dfa_kernels.activation import ACTIVATIONS, CODES
from dfa_kernels.backends.contract import (
    RULES,
    Layer,
    LayerUpdate,
    Point,
    Segment,
    Update,
)
from dfa_kernels.feedback import MATRIX, Feedback

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_NONE = -1


@functools.lru_cache(maxsize=64)
def described(distribution: str, seed: int) -> Feedback:
    """The same object for the same stream."""
    return Feedback(distribution, seed)


def _feedback(matrix: Tensor | None, distribution: str, seed: int) -> Feedback:
    if matrix is None:
        return described(distribution, seed)
    return Feedback(MATRIX, values=matrix)


def traced(tensor: Tensor) -> bool:
    """Whether an op must be seen as one: by torch.compile, or on fake tensors."""
    return torch.compiler.is_compiling() or type(tensor) not in _PLAIN


_PLAIN = (Tensor, torch.nn.Parameter)

# torch.compile(mode="reduce-overhead") leaves the ops out of the CUDA graphs that it makes. In one
# they would keep scratch and tables that are the graph's, and a replay would step by the rate and
# the count of the step that was captured. Who captures a whole step leaves nothing out.
_OUTSIDE = (torch.Tag.cudagraph_unsafe,)

_library = torch.library.Library("dfa_kernels", "FRAGMENT")


def _define(
    name: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    mutates: tuple[str, ...] = (),
) -> None:
    """What `torch.library.custom_op` does, but for its way through autograd, which takes up to a
    quarter of a compiled step of small layers. The ops run in backward passes, and nobody asks them
    for gradients."""
    schema = torch.library.infer_schema(run, mutates_args=mutates)
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, *_OUTSIDE))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dfa_kernels::{name}", fake, lib=_library)


# project --------------------------------------------------------------------------------------


def project(
    error: Tensor, feedback: Feedback, scale: float, points: Sequence[Point]
) -> list[Tensor]:
    """δh = e·B·scale (N·k, D) for every opaque point; ``error`` is (N, E)."""
    if not traced(error):
        run = backends.function("project", error.device, error.dtype)
        return run(error, feedback, scale, points)
    return torch.ops.dfa_kernels.project(
        error,
        feedback.values,
        feedback.distribution,
        feedback.seed,
        scale,
        [p.width for p in points],
        [p.stream for p in points],
        [p.rows for p in points],
        [DTYPES.index(p.dtype) for p in points],
    )


def _project(
    error: Tensor,
    matrix: Tensor | None,
    distribution: str,
    seed: int,
    scale: float,
    widths: list[int],
    streams: list[int],
    rows: list[int],
    dtypes: list[int],
) -> list[Tensor]:
    points = [
        Point(width, stream, k, DTYPES[dtype])
        for width, stream, k, dtype in zip(widths, streams, rows, dtypes, strict=True)
    ]
    run = backends.function("project", error.device, error.dtype)
    return run(error, _feedback(matrix, distribution, seed), scale, points)


def _empty_points(error, matrix, distribution, seed, scale, widths, streams, rows, dtypes):
    return [
        error.new_empty((error.shape[0] * k, width), dtype=DTYPES[dtype])
        for width, k, dtype in zip(widths, rows, dtypes, strict=True)
    ]


_define("project", _project, _empty_points)


# gradients ------------------------------------------------------------------------------------


def gradients(
    error: Tensor, feedback: Feedback, scale: float, layers: Sequence[Layer], dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """dW = δᵀ·x (D, K) and db = Σₙ δ (D,) in ``dtype`` for every fused layer."""
    if not traced(error):
        run = backends.function("gradients", error.device, error.dtype)
        return run(error, feedback, scale, layers, dtype)
    flat = torch.ops.dfa_kernels.gradients(
        error,
        feedback.values,
        feedback.distribution,
        feedback.seed,
        scale,
        [x.inputs for x in layers],
        [x.saved for x in layers],
        [CODES[x.activation] for x in layers],
        [x.stream for x in layers],
        [x.rows for x in layers],
        dtype,
    )
    return list(zip(flat[0::2], flat[1::2], strict=True))


def _layers(inputs, saved, activations, streams, rows) -> list[Layer]:
    return [
        Layer(x, h, ACTIVATIONS[code].name, stream, k)
        for x, h, code, stream, k in zip(inputs, saved, activations, streams, rows, strict=True)
    ]


def _gradients(
    error: Tensor,
    matrix: Tensor | None,
    distribution: str,
    seed: int,
    scale: float,
    inputs: list[Tensor],
    saved: list[Tensor],
    activations: list[int],
    streams: list[int],
    rows: list[int],
    dtype: torch.dtype,
) -> list[Tensor]:
    run = backends.function("gradients", error.device, error.dtype)
    layers = _layers(inputs, saved, activations, streams, rows)
    made = run(error, _feedback(matrix, distribution, seed), scale, layers, dtype)
    return [gradient for pair in made for gradient in pair]


def _empty_gradients(
    error, matrix, distribution, seed, scale, inputs, saved, activations, streams, rows, dtype
):
    made = []
    for x, h in zip(inputs, saved, strict=True):
        made.append(error.new_empty((h.shape[1], x.shape[1]), dtype=dtype))
        made.append(error.new_empty((h.shape[1],), dtype=dtype))
    return made


_define("gradients", _gradients, _empty_gradients)


# step_ ----------------------------------------------------------------------------------------


def step_(
    feedback: Feedback, rule: str, updates: Sequence[LayerUpdate], on_device: bool = False
) -> None:
    """The gradients, straight into parameters and optimizer state, in place.

    ``on_device``: what is traced is to leave rows of hyperparameters, which are tensors then, in
    memory, rather than read them when it runs.
    """
    first = updates[0].weight.parameter
    if not traced(first):
        run = backends.function("step_", first.device, first.dtype)
        run(feedback, rule, updates)
        return
    biases = [u.bias for u in updates if u.bias is not None]
    segments = [s for u in updates for s in u.segments]
    errors: list[Tensor] = []
    error_of = []
    for s in segments:
        if not errors or errors[-1] is not s.error:
            errors.append(s.error)
        error_of.append(len(errors) - 1)
    parameters = [u.weight for u in updates] + biases
    rows = [torch.as_tensor(p.hyper, dtype=torch.float64) for p in parameters]
    torch.ops.dfa_kernels.step_(
        [p.parameter for p in parameters],
        [state for p in parameters for state in p.states],
        [p.copy for p in parameters if p.copy is not None],
        [p.copy is not None for p in parameters],
        torch.stack(rows),
        on_device,
        rule,
        [u.bias is not None for u in updates],
        [len(u.segments) for u in updates],
        errors,
        feedback.values,
        feedback.distribution,
        feedback.seed,
        error_of,
        [s.scale for s in segments],
        [s.layer.inputs for s in segments],
        [s.layer.saved for s in segments],
        [CODES[s.layer.activation] for s in segments],
        [s.layer.stream for s in segments],
        [s.layer.rows for s in segments],
    )


class _Provider(Protocol):
    def hyper(self, slots: list[int]) -> list[Any]: ...


_providers: weakref.WeakValueDictionary[int, _Provider] = weakref.WeakValueDictionary()
_handles = itertools.count()


def provide_hyper(provider: _Provider) -> int:
    """A handle by which a compiled step asks ``provider`` for its table each time it runs."""
    handle = next(_handles)
    _providers[handle] = provider
    return handle


def hyper(
    error: Tensor, handle: int, rule: str, slots: list[int], on_device: bool = False
) -> Sequence[Any]:
    """The row of `Update.hyper` for each of the provider's ``slots``, as they are when a compiled
    step runs: of a float64 tensor that an op makes anew each time, where ``error`` is if they are
    tensors ``on_device``; ``error`` is also there to order it.
    """
    columns = len(RULES[rule].hyper)
    return torch.ops.dfa_kernels.hyper(error, handle, columns, slots, on_device).unbind(0)


def no_optimizer() -> RuntimeError:
    """It has been deleted since the forward pass."""
    return RuntimeError("the optimizer that this backward pass should step no longer exists")


def _hyper(error: Tensor, handle: int, columns: int, slots: list[int], on_device: bool) -> Tensor:
    provider = _providers.get(handle)
    if provider is None:
        raise no_optimizer()
    rows = provider.hyper(slots)
    if on_device:
        return torch.stack(rows)
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, columns)


def _empty_rows(error, handle, columns, slots, on_device):
    device = error.device if on_device else "cpu"
    return torch.empty((len(slots), columns), dtype=torch.float64, device=device)


_define("hyper", _hyper, _empty_rows)


def _step(
    parameters: list[Tensor],
    states: list[Tensor],
    copies: list[Tensor],
    copied: list[bool],
    hyper: Tensor,
    on_device: bool,
    rule: str,
    biased: list[bool],
    counts: list[int],
    errors: list[Tensor],
    matrix: Tensor | None,
    distribution: str,
    seed: int,
    error_of: list[int],
    scales: list[float],
    inputs: list[Tensor],
    saved: list[Tensor],
    activations: list[int],
    streams: list[int],
    rows: list[int],
) -> None:
    layers = _layers(inputs, saved, activations, streams, rows)
    terms = iter(
        Segment(errors[i], scale, layer)
        for i, scale, layer in zip(error_of, scales, layers, strict=True)
    )
    kept = len(RULES[rule].states)
    table, copy = hyper if on_device else hyper.tolist(), iter(copies)
    every = [
        Update(p, tuple(states[kept * i : kept * i + kept]), table[i], next(copy) if has else None)
        for i, (p, has) in enumerate(zip(parameters, copied, strict=True))
    ]
    weights, biases = every[: len(counts)], iter(every[len(counts) :])
    updates = [
        LayerUpdate(weight, next(biases) if has_bias else None, [next(terms) for _ in range(n)])
        for weight, has_bias, n in zip(weights, biased, counts, strict=True)
    ]
    run = backends.function("step_", parameters[0].device, parameters[0].dtype)
    run(_feedback(matrix, distribution, seed), rule, updates)


_define("step_", _step, lambda *_: None, mutates=("parameters", "states", "copies"))
