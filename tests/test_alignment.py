"""dfa.alignment against the cosine computed by hand, and what it must leave alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dfa_kernels as dfa


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(9, 17), nn.Tanh(), nn.Linear(17, 13), nn.ReLU(), nn.Linear(13, 4)
    )


def data(rows=23):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 9, generator=generator)
    return x, torch.randint(4, (rows,), generator=generator)


def by_hand(m, feedback, x, y):
    """Mean and std of the cosine of e·B with dL/dh at both hidden layers, in fp64."""
    x = x.double()
    w = [p.detach().double() for p in m.parameters()]
    h1 = torch.tanh(x @ w[0].T + w[1])
    a2 = h1 @ w[2].T + w[3]
    h2 = a2.clamp(min=0)
    e = (torch.softmax(h2 @ w[4].T + w[5], 1) - F.one_hot(y, 4)) / len(y)
    true2 = e @ w[4]
    true1 = (true2 * (a2 > 0)) @ w[2]
    matrix = feedback.matrix(4, 17, dtype=torch.float64)
    made = []
    for true, width in ((true1, 17), (true2, 13)):
        fed = e @ matrix[:, :width]
        cosine = (true * fed).sum(1) / (true.norm(dim=1) * fed.norm(dim=1))
        made.append((cosine.mean().item(), cosine.std(correction=0).item()))
    return made


@pytest.mark.parametrize("method", ["dfa", "bp", "shallow"])
@pytest.mark.parametrize("fused", [False, True])
def test_it_is_the_cosine_with_backpropagations_gradient(method, fused):
    m, feedback = model(), dfa.Feedback("uniform", seed=4)
    net = dfa.DFA(dfa.fuse(m) if fused else m, feedback, method=method)
    x, y = data()
    made = dfa.alignment(net, F.cross_entropy, x, y)
    assert list(made) == (["0", "2"] if fused else ["1", "3"])
    for cosine, (mean, std) in zip(made.values(), by_hand(m, feedback, x, y), strict=True):
        assert cosine.mean == pytest.approx(mean, abs=1e-5)
        assert cosine.std == pytest.approx(std, abs=1e-5)


def test_feedback_that_is_the_transposed_weight_aligns_perfectly():
    m = nn.Sequential(nn.Linear(9, 17), nn.Tanh(), nn.Linear(17, 4))
    net = dfa.DFA(m, dfa.Feedback.from_matrix(3 * m[2].weight.detach()))
    made = dfa.alignment(net, F.cross_entropy, *data())["1"]
    assert made.mean == pytest.approx(1, abs=1e-6)
    assert made.std == pytest.approx(0, abs=1e-6)


def test_nothing_is_changed():
    m = nn.Sequential(
        nn.Linear(9, 17), nn.BatchNorm1d(17), nn.Tanh(), nn.Dropout(0.5), nn.Linear(17, 4)
    )
    net = dfa.DFA(m)
    x, y = data()
    F.cross_entropy(net(x), y).backward()
    state = {k: v.clone() for k, v in m.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters()]
    random = torch.random.get_rng_state()
    first = dfa.alignment(net, F.cross_entropy, x, y)
    assert dfa.alignment(net, F.cross_entropy, x, y) == first  # dropout drew the same
    assert torch.equal(random, torch.random.get_rng_state())
    assert m.training
    assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())
    for p, gradient in zip(net.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, gradient)


def test_it_works_where_gradients_are_off_layers_frozen_and_updates_fused():
    net = dfa.DFA(dfa.fuse(model()))
    optimizer = dfa.optim.SGD(net, lr=0.1)
    with torch.no_grad():
        free = dfa.alignment(net, F.cross_entropy, *data())
    for p in net.module[0].parameters():
        p.requires_grad_(False)
    assert dfa.alignment(net, F.cross_entropy, *data()) == free
    assert all(not p.requires_grad for p in net.module[0].parameters())
    assert optimizer.ledger.records == []
    assert all(p.grad is None for p in net.parameters())


def test_rows_without_a_direction_are_left_out():
    net = dfa.DFA(model())
    x, y = data(6)

    def half(output, target):
        return F.cross_entropy(output[:3], target[:3], reduction="sum")

    whole = dfa.alignment(net, half, x, y)
    part = dfa.alignment(net, half, x[:3], y[:3])
    for name, cosine in part.items():
        assert whole[name] == pytest.approx(cosine, abs=1e-6)
    empty = dfa.alignment(net, lambda output, target: 0 * output.sum(), x, y)
    assert all(math.isnan(c.mean) and math.isnan(c.std) for c in empty.values())


def test_an_error_point_inside_the_model_and_convolutions():
    m = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.LogSoftmax(1)
    )
    net = dfa.DFA(m, error_at="3")
    x = torch.randn(7, 1, 4, 4)
    made = dfa.alignment(net, F.nll_loss, x, torch.arange(7) % 5)
    assert list(made) == ["1"]
    assert -1 <= made["1"].mean <= 1


def test_a_model_without_a_point_has_no_alignment():
    assert dfa.alignment(dfa.DFA(nn.Linear(9, 4)), F.cross_entropy, *data()) == {}


def test_a_plain_model_is_refused():
    with pytest.raises(TypeError, match="needs a DFA module, got a Sequential"):
        dfa.alignment(model(), F.cross_entropy, *data())


class Growing(nn.Module):
    """Its buffers are other tensors after a forward pass, and one is there from then on only."""

    def __init__(self):
        super().__init__()
        self.layers = model()
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("cache", None)

    def forward(self, x):
        self.seen = torch.cat((self.seen, x.mean()[None]))
        if self.cache is None:
            self.cache = x.mean(0)
        return self.layers(x - self.cache + self.seen.sum())


def test_it_disturbs_no_graph_that_reads_a_buffer():
    net = dfa.DFA(nn.Sequential(model(), nn.BatchNorm1d(4), nn.Linear(4, 4))).eval()
    x, y = data()
    loss = F.cross_entropy(net(x), y)
    dfa.alignment(net, F.cross_entropy, x, y)
    loss.backward()


def test_buffers_that_a_forward_pass_replaces():
    net, (x, y) = dfa.DFA(Growing()), data()
    for cached in (False, True):
        if cached:
            net.module.cache = torch.ones(9)
        seen = net.module.seen
        dfa.alignment(net, F.cross_entropy, x, y)
        assert net.module.seen is seen
        assert torch.equal(seen, torch.zeros(1))
        assert (net.module.cache is not None) == cached
        if cached:
            assert torch.equal(net.module.cache, torch.ones(9))
