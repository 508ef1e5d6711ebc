"""Ranges are there while a step is watched, on its usual way, and leave nothing behind."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

import dfa_kernels as dfa
from dfa_kernels import autograd, backends, chain, in_backward, pending
from dfa_kernels.backends import reference, steps
from dfa_kernels.profiling.options import Input, Options
from dfa_kernels.profiling.ranges import recorded, watched
from dfa_kernels.profiling.subject import Subject, factory_of
from dfa_kernels.throughput.networks import Shape

PATCHED = (
    (chain, "F"), (chain, "lowered"), (autograd, "_records"), (pending.Ledger, "add"),
    (in_backward.Applied, "add"),
    (backends, "function"), (reference, "_delta"), (steps, "product"), (steps.Step, "add"),
)  # fmt: skip


def subject(method="dfa", make=None, shape=(3, 4), **options):
    if make is None:
        given = Options(shape=Shape(3, 2, 5, 4), method=(method,), device="cpu", **options)
        return Subject(given, method, factory_of(given))
    given = Options("its:own", (Input(shape),), method=(method,), device="cpu", **options)
    return Subject(given, method, make)


def opened(taken):
    """Every range of a step, with the one around it."""
    seen, stack = [], [""]

    @contextmanager
    def open_(name):
        seen.append((stack[-1], name))
        stack.append(name)
        yield
        assert stack.pop() == name

    with watched(taken, open_):
        taken.step()
    assert stack == [""]
    return seen


def names(taken):
    return {name for _, name in opened(taken)}


LAYERS = ("hidden1", "hidden2", "output")


def ranges(part, layers=LAYERS):
    return {f"dfa/{part}/{layer}" for layer in layers}


STEP = {"dfa/step", "dfa/forward", "dfa/error", "dfa/backward", "dfa/optimizer"}


def test_the_short_way_is_taken_and_named():
    taken = subject()
    with watched(taken):
        output = taken.forward()
    assert type(output.grad_fn).__name__ == "ChainNodeBackward"
    seen = names(taken)
    assert seen >= STEP | ranges("forward") | ranges("projection") | ranges("update")
    assert ("dfa/optimizer", "dfa/update") in opened(taken)


def test_the_forward_ranges_of_a_chain_do_not_overlap():
    seen = opened(subject())
    for layer in LAYERS:
        assert ("dfa/forward", f"dfa/forward/{layer}") in seen


def test_the_layers_of_a_chain_under_autocast_are_named():
    seen = opened(subject(dtype="autocast"))
    for part, around in (("forward", "forward"), ("update", "update")):
        for layer in LAYERS:
            assert (f"dfa/{around}", f"dfa/{part}/{layer}") in seen


def test_gradients_of_torch_optim_are_named():
    seen = opened(subject(fused=False))
    assert {name for _, name in seen} >= STEP | ranges("projection") | ranges("update")
    assert ("dfa/backward", "dfa/update") in seen
    assert ("dfa/update", "dfa/update/hidden2") in seen


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_both_rules_are_named(optimizer):
    assert names(subject(optimizer=optimizer)) >= ranges("update")


def test_an_update_in_the_backward_pass_is_named():
    def make():
        taken = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        return dfa.DFA(dfa.fuse(taken))

    taken = subject(make=make)
    taken.optimizer = dfa.optim.SGD(taken.net, lr=1e-3, update="backward")
    assert ("dfa/update", "dfa/update/0") in opened(taken)
    assert ("dfa/projection", "dfa/projection/0") not in opened(taken)


def test_points_of_opaque_layers_are_one_projection():
    def make():
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))

    seen = opened(subject(make=make, shape=(2, 1, 4, 4)))
    assert ("dfa/backward", "dfa/projection") in seen
    assert ("dfa/forward", "dfa/forward/0") in seen and ("dfa/forward", "dfa/forward/1") in seen


def test_backpropagation_has_neither_projection_nor_update():
    seen = names(subject("bp"))
    assert seen >= STEP | ranges("forward")
    assert not any("projection" in name or "update" in name for name in seen)


def test_nested_modules_are_nested_ranges():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.inner(x)

    seen = opened(subject("bp", lambda: nn.Sequential(Block(), nn.Linear(4, 2))))
    assert ("dfa/forward/0", "dfa/forward/0.inner") in seen


@pytest.mark.parametrize("failing", [False, True])
def test_everything_is_put_back(failing):
    taken = subject()
    before = [vars(owner)[name] for owner, name in PATCHED]
    attributes = [set(vars(m)) for m in (taken, *taken.net.modules())]
    with pytest.raises(ZeroDivisionError) if failing else _nothing(), watched(taken):
        taken.step()
        assert [vars(owner)[name] for owner, name in PATCHED] != before
        if failing:
            raise ZeroDivisionError
    assert [vars(owner)[name] for owner, name in PATCHED] == before
    assert [set(vars(m)) for m in (taken, *taken.net.modules())] == attributes


@contextmanager
def _nothing():
    yield


@pytest.mark.parametrize("method", ["dfa", "bp", "shallow"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_watched_step_trains_as_a_plain_one(method, fused):
    ours, plain = subject(method, fused=fused), subject(method, fused=fused)
    for _ in range(3):
        with watched(ours):
            watched_loss = ours.step()
        assert torch.equal(watched_loss, plain.step())
    for a, b in zip(ours.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_on_a_gpu_a_range_is_nvtxs_too(monkeypatch):
    pushed = []

    @contextmanager
    def nvtx(name):
        pushed.append(name)
        yield
        pushed.append(None)

    monkeypatch.setattr(torch.cuda.nvtx, "range", nvtx)
    with recorded("dfa/forward"):
        pass
    assert pushed == ([] if not torch.cuda.is_available() else ["dfa/forward", None])
    pushed.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with recorded("dfa/forward"):
        assert pushed == ["dfa/forward"]
    assert pushed == ["dfa/forward", None]


def test_each_launch_of_a_grouped_backend_is_a_range(monkeypatch):
    from dfa_kernels.backends.cuda import launch

    started = []
    monkeypatch.setattr(
        launch.Launcher, "run", lambda self, launches, device: started.extend(launches)
    )
    launches = [launch.Launch(kernel, 0, 1, [], None) for kernel in ("project", "update", "update")]
    seen = []

    @contextmanager
    def open_(name):
        seen.append(name)
        yield

    with watched(subject(), open_):
        launch.Launcher.run(None, launches, torch.device("cpu"))
    assert seen == ["dfa/projection#project", "dfa/update#update", "dfa/update#update"]
    assert started == launches


def test_a_backend_of_somebody_elses_is_a_range():
    class Optical:
        def unavailable(self, device):
            return None

        def describe(self):
            return "light"

        def project(self, *given):
            return backends.get("reference").project(*given)

    backends.register("optical", Optical())
    try:
        with backends.use("optical"):
            make = lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))  # noqa: E731
            taken = subject(make=lambda: dfa.DFA(make()))
            assert ("dfa/backward", "dfa/projection") in opened(taken)
    finally:
        backends.unregister("optical")
