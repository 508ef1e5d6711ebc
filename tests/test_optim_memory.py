"""Nothing that a fused update makes is of a weight's size, and nothing outlives `zero_grad`."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import dfa_kernels as dfa

WIDTH, ROWS = 1536, 8
WEIGHT_BYTES = WIDTH * WIDTH * 4
STATES = {"SGD": 1, "AdamW": 2}


class Allocations(TorchDispatchMode):
    """The largest storage that any operation makes, and the number of live new bytes at most."""

    def __init__(self):
        super().__init__()
        self.largest, self.live, self.peak, self.known = 0, 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in _plain((args, kwargs or {}))}
        made = func(*args, **(kwargs or {}))
        for t in _plain((made,)):
            storage = t.untyped_storage()
            if storage.data_ptr() in given or storage.data_ptr() in self.known:
                continue
            self.known.add(storage.data_ptr())
            self.largest = max(self.largest, storage.nbytes())
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, storage.data_ptr(), storage.nbytes())
        return made

    def _freed(self, pointer, size):
        self.known.discard(pointer)
        self.live -= size


def _plain(tree):
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [t for t in leaves if type(t) in (torch.Tensor, nn.Parameter) and t.numel()]


def network(optimizer, **kwargs):
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    net = dfa.DFA(dfa.fuse(nn.Sequential(*layers, nn.Linear(WIDTH, 10))))
    if optimizer == "torch":
        return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return net, getattr(dfa.optim, optimizer)(net, lr=0.1, **kwargs)


def step(net, optimizer):
    x, y = torch.randn(ROWS, WIDTH), torch.arange(ROWS) % 10
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()


CASES = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"momentum": 0.9, "update": "backward"}),
    ("AdamW", {"maximize": True}),
    ("AdamW", {"update": "backward"}),
]


@pytest.mark.parametrize(("optimizer", "kwargs"), CASES)
def test_a_step_makes_nothing_of_a_gradients_size(optimizer, kwargs):
    net, optimizer = network(optimizer, **kwargs)
    step(net, optimizer)  # makes B and the optimizer's state
    with Allocations() as seen:
        step(net, optimizer)
    # slices of rows of 2 MiB and what AdamW makes of one, against weights of 9 MiB
    assert 0 < seen.largest <= WEIGHT_BYTES / 4
    assert seen.peak <= WEIGHT_BYTES / 2


def test_the_measure_sees_a_gradient_where_there_is_one():
    net, optimizer = network("torch")
    step(net, optimizer)
    with Allocations() as seen:
        step(net, optimizer)
    assert seen.largest >= WEIGHT_BYTES
    assert seen.peak >= 2 * WEIGHT_BYTES


@pytest.mark.parametrize("optimizer", STATES)
def test_all_that_stays_after_a_step_is_the_state(optimizer):
    net, optimizer_ = network(optimizer, **({"momentum": 0.9} if optimizer == "SGD" else {}))
    step(net, optimizer_)
    optimizer_.zero_grad()
    held = sum(
        t.numel() * t.element_size()
        for state in optimizer_.state.values()
        for t in state.values()
        if t.dim()
    )
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    assert held == STATES[optimizer] * weights


@pytest.mark.parametrize("update", ["step", "backward"])
def test_activations_are_freed(update):
    """By `zero_grad`, or with update="backward" by `backward` already."""
    net, optimizer = network("SGD", update=update)
    x = torch.randn(ROWS, WIDTH)
    alive = weakref.ref(x.untyped_storage())
    loss = F.cross_entropy(net(x), torch.arange(ROWS) % 10)
    del x
    loss.backward()
    gc.collect()
    assert (alive() is None) == (update == "backward")
    optimizer.step()
    optimizer.zero_grad()
    gc.collect()
    assert alive() is None
