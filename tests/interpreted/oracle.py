"""Cases, and the three-way oracle: the reference in fp64, plain PyTorch, the kernels."""

import math

import torch

from dfa_kernels import ops
from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.backends.contract import HEAD, RULES, Layer, LayerUpdate, Segment, Update
from dfa_kernels.backends.reference import Reference
from dfa_kernels.comparison import check_near, rounding_noise, spread_of_terms

FORWARD = {f.name: f for f in ACTIVATIONS}

# lr, momentum, dampening, weight_decay, nesterov, maximize, first
SGD = {
    "plain": (0.1, 0, 0, 0, 0, 0, 0),
    "decay": (0.1, 0, 0, 0.3, 0, 0, 0),
    "maximize": (0.1, 0, 0, 0.3, 0, 1, 0),
    "momentum": (0.1, 0.9, 0, 0, 0, 0, 0),
    "first": (0.1, 0.9, 0.5, 0.3, 0, 1, 1),
    "dampening": (0.1, 0.9, 0.5, 0.3, 0, 0, 0),
    "nesterov": (0.1, 0.9, 0, 0.3, 1, 0, 0),
    "nesterov first": (0.1, 0.9, 0, 0.3, 1, 1, 1),
}
# lr, beta1, beta2, eps, weight_decay, maximize, step
ADAMW = {
    "plain": (0.1, 0.9, 0.999, 1e-8, 0, 0, 3),
    "decay": (0.1, 0.8, 0.9, 1e-3, 0.3, 0, 7),
    "maximize": (0.1, 0.8, 0.9, 0.5, 0.3, 1, 1),
}
HYPER = {"sgd": SGD["dampening"], "adamw": ADAMW["decay"]}
#: By its name, each rule with hyperparameters.
RULE_CASES = {
    f"{rule} {name}": (rule, hyper)
    for rule, cases in (("sgd", SGD), ("adamw", ADAMW))
    for name, hyper in cases.items()
}


def record(n, k, d, activation="tanh", stream=0, rows=1, dtype=torch.float32):
    """What a layer of K inputs and D outputs kept for n error rows."""
    a = torch.randn(n * rows, d)
    f = FORWARD[activation]
    saved = a if f.from_preactivations else f.forward_(a.clone())
    x = torch.randn(n * rows, k)
    return Layer(x.to(dtype), saved.to(dtype), activation, stream, rows)


def head(error, k, dtype=None):
    """The layer at the error point."""
    dtype = dtype or error.dtype
    x = torch.randn(error.shape[0], k).to(dtype)
    return Layer(x, error.to(dtype), "identity", HEAD, 1)


def parameter(rule, *shape, hyper=None, dtype=torch.float32, state=None, copy=None):
    """With states of at least 1/4: AdamW divides by the root of one of them. ``copy``: its dtype;
    nothing is there yet."""
    hyper = HYPER[rule] if hyper is None else hyper
    states = tuple((torch.rand(shape) + 0.25).to(state or dtype) for _ in RULES[rule].states)
    made = torch.randn(shape).to(dtype)
    unwritten = None if copy is None else torch.full(shape, math.nan, dtype=copy)
    return Update(made, states, hyper, unwritten)


def stepped(rule, segments, bias=True, **given):
    """A layer that is stepped with the sum of its segments."""
    saved, inputs = segments[0].layer.saved, segments[0].layer.inputs
    d, k = saved.shape[1], inputs.shape[1]
    own = parameter(rule, d, **given) if bias else None
    return LayerUpdate(parameter(rule, d, k, **given), own, segments)


def tensors(updates):
    """Parameters and states, in their order."""
    return [t for u in parameters(updates) for t in (u.parameter, *u.states)]


def parameters(updates):
    """The weights and biases that are stepped."""
    return [u for update in updates for u in update[:2] if u is not None]


def check_step(feedback, rule, updates):
    """Step a copy of ``updates``, compare element by element, and return what was made."""
    start = [t.clone() for t in tensors(updates)]
    made = _run(ops.step_, feedback, rule, updates)
    for before, now in zip(start, tensors(updates), strict=True):
        assert torch.equal(before.nan_to_num(), now.nan_to_num()), "the original was changed"
    plain = _run(Reference().step_, feedback, rule, updates)
    truth = _run(Reference().step_, _wide_feedback(feedback), rule, _wide(updates))
    slack = _slack(feedback, rule, updates)
    for i, (ours, theirs, right) in enumerate(zip(made, plain, truth, strict=True)):
        if not ours.numel():
            continue
        size = right.abs() + start[i].double().nan_to_num().abs()
        rounding = 2 * torch.finfo(ours.dtype).eps * size
        check_near(f"tensor {i}", ours, theirs, right, slack[i] + rounding)
    return made


def check_gradients(error, feedback, scale, layers, dtype=torch.float32):
    """dW and db against the oracle, and return them."""
    made = ops.gradients(error, feedback, scale, layers, dtype)
    plain = Reference().gradients(error, feedback, scale, layers, dtype)
    wide = [x._replace(inputs=x.inputs.double(), saved=x.saved.double()) for x in layers]
    truth = Reference().gradients(
        error.double(), _wide_feedback(feedback), scale, wide, torch.float64
    )
    for i, layer in enumerate(wide):
        noise = rounding_noise(layer.inputs.shape[0], _coarsest(error, layers[i].saved))
        spread = spread_of_terms(error.double(), feedback, _entry(feedback) * scale, layer)
        for what, ours, theirs, right, s in zip(
            ("dW", "db"), made[i], plain[i], truth[i], spread, strict=True
        ):
            assert ours.dtype == dtype
            assert ours.shape == right.shape
            rounding = torch.finfo(dtype).eps * right.abs()
            check_near(f"layer {i} {what}", ours, theirs, right, noise * s + rounding)
    return made


def check_project(error, feedback, scale, points):
    """δh against the oracle, and return it."""
    made = ops.project(error, feedback, scale, points)
    plain = Reference().project(error, feedback, scale, points)
    wide = [p._replace(dtype=torch.float64) for p in points]
    truth = Reference().project(error.double(), _wide_feedback(feedback), scale, wide)
    for i, point in enumerate(points):
        assert made[i].dtype == point.dtype
        eps = 4 * torch.finfo(_coarsest(error, made[i])).eps
        if feedback.distribution == "normal":
            eps += 1e-5
        spread = error.double().norm(dim=1, keepdim=True).repeat_interleave(point.rows, 0)
        size = (spread * abs(scale) * _entry(feedback)).expand_as(truth[i])
        check_near(f"point {i}", made[i], plain[i], truth[i], eps * size)
    return made


def _run(step_, feedback, rule, updates):
    """The tensors of a copy of ``updates`` after the step, in the original's strides; low-precision
    copies are what they must be."""
    copies = [_copied(u) for u in updates]
    step_(feedback, rule, copies)
    for u in parameters(copies):
        if u.copy is not None:
            assert torch.equal(u.copy, u.parameter.to(u.copy.dtype))
    return tensors(copies)


def _copied(update):
    weight, bias, segments = update
    return LayerUpdate(*(u and mapped(u, _like) for u in (weight, bias)), segments)


def _like(tensor):
    """A copy with the same strides and offset to 16 bytes."""
    offset = tensor.data_ptr() % 16 // tensor.itemsize
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    storage = torch.zeros(offset + max(extent, 0), dtype=tensor.dtype)
    return storage.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)


def mapped(update, change):
    copy = None if update.copy is None else change(update.copy)
    return Update(change(update.parameter), tuple(map(change, update.states)), update.hyper, copy)


def _wide(updates):
    return [
        LayerUpdate(
            *(u and mapped(u, torch.Tensor.double) for u in (weight, bias)),
            [
                Segment(
                    s.error.double(),
                    s.scale,
                    s.layer._replace(inputs=s.layer.inputs.double(), saved=s.layer.saved.double()),
                )
                for s in segments
            ],
        )
        for weight, bias, segments in updates
    ]


def _wide_feedback(feedback):
    if feedback.values is None:
        return feedback
    return type(feedback).from_matrix(feedback.values.double())


def _entry(feedback):
    """The size of B's entries."""
    return 1.0 if feedback.values is None else feedback.values.abs().max().item()


def _coarsest(*tensors):
    return max((t.dtype for t in tensors), key=lambda dtype: torch.finfo(dtype).eps)


def _slack(feedback, rule, updates):
    """What a gradient's noise may add to each tensor: to a parameter, as much as the rate makes of
    it; AdamW's is divided by √v, at least 1/4 here."""
    made = []
    for weight, bias, segments in updates:
        squares = [0.0, 0.0]
        for error, scale, layer in segments:
            wide = layer._replace(inputs=layer.inputs.double(), saved=layer.saved.double())
            noise = rounding_noise(layer.inputs.shape[0], _coarsest(error, layer.saved))
            spread = spread_of_terms(error.double(), feedback, _entry(feedback) * scale, wide)
            squares = [q + (noise * s) ** 2 for q, s in zip(squares, spread, strict=True)]
        for update, square in zip((weight, bias), squares, strict=True):
            if update is None:
                continue
            noise = square.sqrt()
            lr = update.hyper[0]
            if rule == "sgd":
                made += [2 * lr * noise, noise]
            else:
                size = sum(_size(s, feedback) for s in segments)
                made += [4 * lr * noise, noise, 2 * noise * size]
    return made


def _size(segment, feedback):
    """A bound of the gradient's entries, for the noise of their squares."""
    error, scale, layer = segment
    delta = error.double().norm(dim=1).max().item() if error.numel() else 0.0
    if layer.stream != HEAD:
        delta *= abs(scale) * _entry(feedback) * 4
    largest = layer.inputs.abs().max().item() if layer.inputs.numel() else 0.0
    return max(largest, 1.0) * delta * math.sqrt(layer.inputs.shape[0])
