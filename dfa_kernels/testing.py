"""The conformance suite: what a backend must do to be one of ours. What its results are compared
with, and how far off they may be: see `comparison`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dfa_kernels import backends, ops
from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.backends.contract import (
    HEAD,
    RULES,
    Backend,
    Layer,
    LayerUpdate,
    Point,
    Segment,
    Update,
)
from dfa_kernels.backends.reference import Reference
from dfa_kernels.comparison import (
    check_apart,
    check_counted,
    check_near,
    check_same,
    rounding_noise,
    spread_of_terms,
    uncounted,
)
from dfa_kernels.feedback import DISTRIBUTIONS, Feedback

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# rows N, error width E, (x width K, h width D, rows k) of each layer: 1, tiles ± 1, primes.
_SHAPES = (
    (1, 1, ((1, 1, 1),)),
    (17, 10, ((31, 127, 1), (127, 129, 1), (129, 7, 3))),
    (64, 33, ((65, 128, 2), (128, 64, 1))),
    (0, 5, ((13, 11, 1),)),
)
# One row of each layer for each of the error's, as a perceptron has.
_ONE_ROW = (33, 10, ((31, 127, 1), (127, 129, 1), (129, 7, 1)))


def check_backend(
    backend: str | Backend, device: torch.device | str = "cpu", *, seed: int = 0
) -> list[str]:
    """Run the suite on ``device``; the names of the checks that passed, which are all.

    Args:
        backend: a registered name, or a backend object, which is registered for as long as it is
            checked.
        device: where every check makes its tensors.
        seed: of torch's generator, before each check.

    Raises:
        AssertionError: naming the first check that fails, the element, and the numbers.
        RuntimeError: the backend cannot run there, or torch knows no such device.
        TypeError: the object is no backend: it lacks ``project``, ``unavailable`` or ``describe``.
        ValueError: no backend is registered under that name.
    """
    device = torch.device(device)
    if not isinstance(backend, str):
        name = f"{type(backend).__name__}-under-test"
        backends.register(name, backend)
        try:
            return check_backend(name, device, seed=seed)
        finally:
            backends.unregister(name)
    passed = []
    with backends.use(backend):
        backends.chosen(device)
        for name, check in _checks(device):
            torch.manual_seed(seed)
            try:
                check()
            except AssertionError as failed:
                raise AssertionError(f"backend {backend!r} on {device}: {name}: {failed}") from None
            passed.append(name)
    return passed


def _checks(device: torch.device) -> Iterator[tuple[str, Callable[[], None]]]:
    for distribution in DISTRIBUTIONS:
        yield f"stream {distribution}", partial(_stream, distribution, device)
    feedbacks = [Feedback(d, seed=2**40 + 7) for d in DISTRIBUTIONS]
    feedbacks += [Feedback(seed=3, shared=False), Feedback.from_matrix(_matrix(device))]
    cases = list(itertools.product(_SHAPES, _DTYPES))
    for (shape, dtype), feedback in itertools.product(cases, feedbacks):
        label = f"{feedback.distribution} {_label(shape, dtype)} shared={feedback.shared}"
        yield f"project {label}", partial(_project, feedback, shape, dtype, device)
    for f, (shape, dtype) in itertools.product(ACTIVATIONS, cases):
        label = f"{f.name} {_label(shape, dtype)}"
        yield f"gradients {label}", partial(_gradients, f.name, shape, dtype, device)
    for rule, hypers in _HYPERS.items():
        for hyper, (shape, dtype) in itertools.product(hypers, cases):
            label = f"{rule} {hyper} {_label(shape, dtype)}"
            yield f"step_ {label}", partial(_step, rule, [hyper], False, shape, dtype, device)
        for hyper, dtype in [*((h, torch.float32) for h in hypers), (hypers[-1], torch.bfloat16)]:
            label = f"{rule} by rows in memory {hyper} {_label(_SHAPES[1], dtype)}"
            steps = [hyper, _next(rule, hyper)]
            yield f"step_ {label}", partial(_step, rule, steps, True, _SHAPES[1], dtype, device)
        for shape, dtype in _COPIED:
            label = f"{rule} with copies {_label(shape, dtype)}"
            yield f"step_ {label}", partial(_copies, rule, shape, dtype, device)
        for shape in (*_SHAPES, _ONE_ROW):
            label = f"{rule} repeated {_label(shape, torch.float32)}"
            yield f"step_ {label}", partial(_repeated, rule, shape, device)
    yield "layouts", partial(_layouts, device)
    yield "nan and inf", partial(_not_finite, device)


def _label(shape: tuple, dtype: torch.dtype) -> str:
    n, e, layers = shape
    return f"N={n} E={e} {'+'.join(f'{k}x{d}' for k, d, _ in layers)} {str(dtype)[6:]}"


def _matrix(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 160, generator=generator).to(device)


# Cases ----------------------------------------------------------------------------------------


def _case(
    shape: tuple, dtype: torch.dtype, device: torch.device, activation: str, head: bool = True
) -> tuple[Tensor, list[Layer]]:
    """An error and the records of a network, the last of them a head of the error's own width."""
    rows, width, sizes = shape
    error = torch.randn(rows, width, device=device, dtype=dtype)
    layers = []
    for i, (k, d, repeat) in enumerate(sizes):
        x = torch.randn(rows * repeat, k, device=device, dtype=dtype)
        a = torch.randn(rows * repeat, d, device=device, dtype=dtype)
        f = next(f for f in ACTIVATIONS if f.name == activation)
        saved = a if f.from_preactivations else f.forward_(a.clone())
        layers.append(Layer(x, saved, activation, i % 2, repeat))
    if head:
        x = torch.randn(rows, sizes[-1][1], device=device, dtype=dtype)
        layers.append(Layer(x, error.clone(), "identity", HEAD, 1))
    return error, layers


def _wide(layer: Layer) -> Layer:
    return layer._replace(inputs=layer.inputs.double(), saved=layer.saved.double())


def _fitting(feedback: Feedback, width: int) -> Feedback:
    if feedback.values is None:
        return feedback
    return Feedback.from_matrix(feedback.values[:width])


# Checks ---------------------------------------------------------------------------------------


def _stream(distribution: str, device: torch.device) -> None:
    """The identity as the error brings out B itself: bit for bit, but for the normal's 1e-5."""
    for seed, stream, rows, width in ((0, 0, 1, 1), (2**63 - 1, 5, 37, 129), (1234, 5, 4, 300)):
        feedback = Feedback(distribution, seed)
        error = torch.eye(rows, device=device)
        (made,) = ops.project(error, feedback, 1.0, [Point(width, stream, 1, torch.float32)])
        wanted = feedback.matrix(rows, width, stream, device=device)
        worst = (made - wanted).abs().max().item()
        allowed = 1e-5 if distribution == "normal" else 0.0
        assert worst <= allowed, f"seed {seed}, stream {stream}: B differs by {worst}"


def _project(feedback: Feedback, shape: tuple, dtype: torch.dtype, device: torch.device) -> None:
    rows, width, sizes = shape
    feedback = _fitting(feedback, width)
    error = torch.randn(rows, width, device=device, dtype=dtype)
    points = [Point(d, feedback.stream(i), k, dtype) for i, (_, d, k) in enumerate(sizes)]
    scale = feedback.scale_for(129)
    made = ops.project(error, feedback, scale, points)
    again = ops.project(error, feedback, scale, points)
    plain = Reference().project(error, feedback, scale, points)
    wide = [p._replace(dtype=torch.float64) for p in points]
    truth = Reference().project(error.double(), feedback, scale, wide)
    check_apart(made, [error])
    loose = 1e-5 if feedback.distribution == "normal" else 0.0
    for i, point in enumerate(points):
        assert made[i].shape == (rows * point.rows, point.width), f"point {i}: {made[i].shape}"
        assert made[i].dtype == dtype, f"point {i}: {made[i].dtype}"
        spread = error.double().norm(dim=1, keepdim=True).repeat_interleave(point.rows, 0) * scale
        slack = (4 * torch.finfo(dtype).eps + loose) * spread
        check_near(f"point {i}", made[i], plain[i], truth[i], slack)
        check_same(f"point {i}", made[i], again[i])


def _gradients(activation: str, shape: tuple, dtype: torch.dtype, device: torch.device) -> None:
    error, layers = _case(shape, dtype, device, activation)
    feedback, scale = Feedback(seed=11), 0.1
    made = ops.gradients(error, feedback, scale, layers, dtype)
    again = ops.gradients(error, feedback, scale, layers, dtype)
    plain = Reference().gradients(error, feedback, scale, layers, dtype)
    check_apart([t for pair in made for t in pair], [error, *(t for x in layers for t in x[:2])])
    _compare_gradients(made, plain, error, feedback, scale, layers, dtype)
    for i, (ours, same) in enumerate(zip(made, again, strict=True)):
        check_same(f"layer {i} dW", ours[0], same[0])
        check_same(f"layer {i} db", ours[1], same[1])


def _compare_gradients(made, plain, error, feedback, scale, layers, dtype) -> None:
    wide = [_wide(layer) for layer in layers]
    truth = Reference().gradients(error.double(), feedback, scale, wide, torch.float64)
    for i, layer in enumerate(wide):
        spread = spread_of_terms(error.double(), feedback, scale, layer)
        slack = rounding_noise(layer.inputs.shape[0], dtype)
        assert made[i][0].dtype == made[i][1].dtype == dtype, f"layer {i}: {made[i][0].dtype}"
        for what, ours, theirs, right, s in zip(
            ("dW", "db"), made[i], plain[i], truth[i], spread, strict=True
        ):
            assert ours.shape == right.shape, f"layer {i} {what}: {tuple(ours.shape)}"
            check_near(f"layer {i} {what}", ours, theirs, right, slack * s)


_HYPERS: dict[str, list[tuple[float, ...]]] = {
    "sgd": [
        # lr, momentum, dampening, weight_decay, nesterov, maximize, first
        (0.1, 0, 0, 0, 0, 0, 0),
        (0.1, 0, 0, 0.01, 0, 1, 0),
        (0.1, 0.9, 0, 0, 0, 0, 1),
        (0.1, 0.9, 0.5, 0.01, 0, 1, 0),
        (0.1, 0.9, 0.5, 0.01, 0, 0, 1),
        (0.1, 0.9, 0, 0.01, 1, 0, 0),
    ],
    "adamw": [
        # lr, beta1, beta2, eps, weight_decay, maximize, step
        (0.1, 0.9, 0.999, 1e-3, 0.01, 0, 1),
        (0.1, 0.8, 0.99, 1e-3, 0, 1, 7),
    ],
}


def _next(rule: str, hyper: tuple[float, ...]) -> tuple[float, ...]:
    """What the step after this one may have: another rate, and the momentum or the count there."""
    return (hyper[0] / 4, *hyper[1:-1], hyper[-1] + 1 if rule == "adamw" else 0)


def _step(
    rule: str,
    hypers: Sequence[tuple[float, ...]],
    in_memory: bool,
    shape: tuple,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """fp32 parameters and states; activations and errors in ``dtype``; two terms in each sum.

    One step for each of ``hypers``, a bias at half the rate. ``in_memory``: the rows are tensors,
    and the next step finds other values in them.
    """
    records = [_case(shape, dtype, device, "tanh") for _ in range(2)]
    feedback, scale = Feedback("uniform", seed=5), 0.1
    start = [
        [_parameter(rule, d, k, device), _parameter(rule, d, None, device)]
        for k, d in ((x.inputs.shape[1], x.saved.shape[1]) for x in records[0][1])
    ]

    def run(step_: Callable, wide: bool, in_memory: bool = False) -> list[Tensor]:
        cast = torch.Tensor.double if wide else torch.Tensor.clone
        table = torch.empty(2, len(hypers[0]), dtype=torch.float64, device=device)
        updates: list[LayerUpdate] = []
        for i, pair in enumerate(start):
            segments = [
                Segment(cast(e), scale, _wide(layers[i]) if wide else layers[i])
                for e, layers in records
            ]
            weight, bias = (Update(cast(p), tuple(map(cast, s)), ()) for p, s in pair)
            updates.append(LayerUpdate(weight, None if i == 1 else bias, segments))
        for hyper in hypers:
            values = torch.tensor([hyper, (hyper[0] / 2, *hyper[1:])], dtype=torch.float64)
            table.copy_(values)
            rows = table.unbind() if in_memory else tuple(values.tolist())
            step_([_with_rows(u, *rows) for u in updates])
            same = torch.equal(table.cpu(), values)
            assert same, "the backend changed a row of hyperparameters"
        return [
            t
            for weight, bias, _ in updates
            for u in (weight, bias)
            if u is not None
            for t in (u.parameter, *u.states)
        ]

    def ours(updates: list[LayerUpdate]) -> None:
        ops.step_(feedback, rule, updates)

    def reference(updates: list[LayerUpdate]) -> None:
        Reference().step_(feedback, rule, updates)

    made, again = run(ours, False, in_memory), run(ours, False, in_memory)
    plain, truth = run(reference, False), run(reference, True)
    rows = max(x.inputs.shape[0] for _, layers in records for x in layers)
    # Where a step divides by √v + eps, an error of the gradient grows by lr / eps at the most,
    # and by far less wherever the gradient is not small: eps is 1e-3 here.
    gain = 1.0 if rule == "sgd" else 10.0
    size = max((t.abs().max().item() for t in truth if t.numel()), default=1.0)
    slack = gain * size * rounding_noise(rows, dtype) * math.sqrt(max(rows, 1))
    for i, (a, b, c, d) in enumerate(zip(made, plain, truth, again, strict=True)):
        check_near(f"tensor {i}", a, b, c, torch.full_like(c, slack))
        check_same(f"tensor {i}", a, d)


def _with_rows(update: LayerUpdate, row: Any, bias_row: Any) -> LayerUpdate:
    bias = None if update.bias is None else update.bias._replace(hyper=bias_row)
    return update._replace(weight=update.weight._replace(hyper=row), bias=bias)


_COPIED = [*((shape, torch.bfloat16) for shape in _SHAPES), (_SHAPES[1], torch.float16)]


def _copies(rule: str, shape: tuple, dtype: torch.dtype, device: torch.device) -> None:
    """A copy is the stepped fp32 parameter rounded, to the bit, and the step is what it is without
    copies; not every parameter has one."""
    error, layers = _case(shape, dtype, device, "tanh")
    hyper, made, unseen = _HYPERS[rule][-1], [], 0
    start = [
        [_parameter(rule, x.saved.shape[1], k, device) for k in (x.inputs.shape[1], None)]
        for x in layers
    ]
    for copied in (True, False):
        updates = []
        for i, (layer, pair) in enumerate(zip(layers, start, strict=True)):
            weight, bias = (
                Update(p.clone(), tuple(s.clone() for s in states), hyper) for p, states in pair
            )
            if copied and i != 1:
                weight = weight._replace(copy=_unwritten(weight.parameter, dtype))
            if copied and i != 2:
                bias = bias._replace(copy=_unwritten(bias.parameter, dtype))
            updates.append(LayerUpdate(weight, bias, [Segment(error, 0.1, layer)]))
        feedback = Feedback("uniform", seed=5)
        unseen += uncounted(updates, ops.step_, feedback, rule, updates)
        made.append([u for weight, bias, _ in updates for u in (weight, bias) if u is not None])
    for i, (ours, plain) in enumerate(zip(*made, strict=True)):
        near = torch.allclose(ours.parameter, plain.parameter, rtol=1e-4, atol=1e-4)
        assert near, f"parameter {i}: a copy of it, or of another, changes the step"
        if ours.copy is not None:
            rounded = ours.parameter.to(dtype)
            wrong = int((ours.copy != rounded).sum())
            assert not wrong, f"copy {i}: {wrong} of {rounded.numel()} are not the rounded ones"
    check_counted(unseen)


def _unwritten(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.full_like(parameter, math.nan, dtype=dtype)


def _repeated(rule: str, shape: tuple, device: torch.device) -> None:
    """Where a backend prepares steps that repeat each other: `step_`'s bits, with a batch of
    another size and other numbers than it was prepared with."""
    prepare = backends.repeated(backends.function("step_", device, torch.float32))
    if prepare is None:
        return
    n, *others = shape
    cases = [_case((rows, *others), torch.float32, device, "tanh") for rows in (n, n + 2)]
    feedback, (error, layers) = Feedback("uniform", seed=5), cases[1]
    start = [
        [_parameter(rule, x.saved.shape[1], k, device) for k in (x.inputs.shape[1], None)]
        for x in layers
    ]
    for hyper, copied in itertools.product(_HYPERS[rule], (False, True)):
        made, unseen = [], 0
        # Of weights and of biases, when it is prepared and when it runs.
        rows = [hyper, (3 * hyper[0], *hyper[1:])]
        later = [_next(rule, row) for row in rows]
        for prepared in (True, False):
            pairs = [
                [
                    Update(
                        p.clone(), tuple(s.clone() for s in states), row,
                        torch.zeros_like(p, dtype=torch.bfloat16) if copied else None,
                    )
                    for (p, states), row in zip(pair, rows if prepared else later, strict=True)
                ]
                for pair in start
            ]  # fmt: skip
            e, given = cases[0] if prepared else cases[1]
            updates = [
                LayerUpdate(weight, bias, [Segment(e, 0.1, layer)])
                for (weight, bias), layer in zip(pairs, given, strict=True)
            ]
            if not prepared:
                ops.step_(feedback, rule, updates)
            elif (run := prepare(feedback, rule, updates)) is None:
                break
            else:
                whole = error, [x.inputs for x in layers], [x.saved for x in layers], later
                unseen = uncounted(updates, run, *whole)
            made.append(
                [
                    tensor
                    for pair in pairs
                    for u in pair
                    for tensor in (u.parameter, *u.states, u.copy)
                    if tensor is not None
                ]
            )
        for i, (ours, plain) in enumerate(zip(*made, strict=True) if made else ()):
            assert torch.equal(ours, plain), f"tensor {i}, {hyper}: a repeated step has other bits"
        check_counted(unseen)


def _parameter(
    rule: str, height: int, width: int | None, device: torch.device
) -> tuple[Tensor, tuple[Tensor, ...]]:
    shape = (height,) if width is None else (height, width)
    states = tuple(torch.rand(shape, device=device) for _ in RULES[rule].states)
    return torch.randn(shape, device=device), states


def _layouts(device: torch.device) -> None:
    """Row-strided, offset, transposed and expanded tensors give what contiguous ones give."""
    error, layers = _case(_SHAPES[1], torch.float32, device, "tanh")
    feedback = Feedback(seed=1)
    wanted = ops.gradients(error, feedback, 0.1, layers, torch.float32)
    for name, change in _LAYOUTS.items():
        changed = [x._replace(inputs=change(x.inputs), saved=change(x.saved)) for x in layers]
        made = ops.gradients(change(error), feedback, 0.1, changed, torch.float32)
        _compare_gradients(made, wanted, error, feedback, 0.1, layers, torch.float32)
        points = [Point(19, 0, 1, torch.float32)]
        (a,), (b,) = (ops.project(e, feedback, 0.1, points) for e in (error, change(error)))
        assert torch.allclose(a, b, atol=1e-6), f"project of a {name} error"


_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "row-strided": lambda t: torch.cat((t, t), dim=1)[:, : t.shape[1]],
    "offset": lambda t: torch.cat((t[:1], t), dim=0)[1:],
    "transposed": lambda t: t.T.contiguous().T,
}


def _not_finite(device: torch.device) -> None:
    """NaN or Inf in a row of the error reach that row of δh, and no other."""
    for bad, k in itertools.product((float("nan"), float("inf")), (1, 2)):
        error = torch.randn(9, 6, device=device)
        error[4, 2] = bad
        (made,) = ops.project(error, Feedback(), 0.1, [Point(21, 0, k, torch.float32)])
        finite = made.isfinite().reshape(9, k, 21)
        assert not finite[4].any(), f"{bad} in row 4 of the error left finite values there"
        finite[4] = True
        assert finite.all(), f"{bad} in row 4 of the error reached other rows"
