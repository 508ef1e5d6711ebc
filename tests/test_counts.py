"""Step counts: torch.optim's, one for each parameter, though one addition counts them all."""

from operator import is_

import pytest
import torch
import torch.nn.functional as F
from test_optim import batches, network

import dfa_kernels as dfa
from dfa_kernels.counts import Counts


@pytest.mark.parametrize(
    "chosen", [[0, 1, 2], [0, 1], [2, 1, 0], [1], [0, 0, 1]], ids=lambda chosen: str(chosen)
)
def test_any_of_them_are_counted(chosen):
    counts = Counts()
    each = [counts.start(3) for _ in range(3)]
    each[1].fill_(5)
    counts.add([each[i] for i in chosen])
    wanted = [0.0 + chosen.count(0), 5.0 + chosen.count(1), 0.0 + chosen.count(2)]
    assert [float(count) for count in each] == wanted
    assert counts.read([each[i] for i in chosen]) == [wanted[i] for i in chosen]


def test_more_than_were_expected_are_counts_too():
    counts = Counts()
    each = [counts.start(2) for _ in range(5)]
    counts.add(each[1:])
    assert [float(count) for count in each] == [0, 1, 1, 1, 1]


def test_those_made_together_are_one_tensor():
    counts = Counts([3, 4])
    assert [(count.shape, count.dtype) for count in counts.each] == [((), torch.float32)] * 2
    versions = counts.each[0]._version
    counts.add(list(counts.each))
    assert counts.each[1]._version == versions + 1
    assert counts.read(list(counts.each)) == [4, 5]


def step(net, optimizer):
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_loaded_counts_are_the_optimizers_own():
    net, other = network(), network()
    first, second = dfa.optim.AdamW(net), dfa.optim.AdamW(other)
    for _ in range(3):
        step(net, first)
    second.load_state_dict(first.state_dict())
    step(other, second)
    assert {float(own["step"]) for own in first.state.values()} == {3}
    assert {float(own["step"]) for own in second.state.values()} == {4}
    each = [own["step"] for own in second.state.values()]
    assert all(map(is_, second._counts.each, each)) and len(each) == 6


def test_a_state_dict_on_disk_has_every_count(tmp_path):
    net = network()
    optimizer = dfa.optim.AdamW(net)
    for _ in range(2):
        step(net, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt")
    assert [float(own["step"]) for own in loaded["state"].values()] == [2.0] * 6
