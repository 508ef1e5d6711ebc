"""The short way through a stack of fused layers: the general way's numbers, and when it is left."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from test_optim import batches
from torch import distributed, nn

import dfa_kernels as dfa
from dfa_kernels.activation import ACTIVATIONS
from dfa_kernels.chain import Chain

NAMES = [f.name for f in ACTIVATIONS]


def network(activations=("tanh", "gelu", "identity"), **kwargs):
    torch.manual_seed(0)
    sizes = (13, 31, 17, 5)
    layers = [
        dfa.Linear(a, b, activation=f)
        for a, b, f in zip(sizes, sizes[1:], activations, strict=False)
    ]
    return dfa.DFA(nn.Sequential(*layers).double(), **kwargs)


@pytest.fixture
def taken(monkeypatch):
    """Whether each forward pass took the short way."""
    answers = []
    run = Chain.run

    def spy(self, args, kwargs):
        output = run(self, args, kwargs)
        answers.append(output is not None)
        return output

    monkeypatch.setattr(Chain, "run", spy)
    return answers


def train(net, optimizer, steps=3):
    for x, y in batches(steps):
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("head", ["identity", "tanh", "gelu"])
@pytest.mark.parametrize("hidden", NAMES)
def test_it_gives_the_bits_of_the_general_way(hidden, head, taken):
    made = []
    for hooked in (False, True):
        net = network((hidden, "relu", head), feedback=dfa.Feedback(seed=3))
        if hooked:
            net.module.register_forward_hook(lambda *_: None)
        made.append(train(net, dfa.optim.SGD(net, lr=0.1, momentum=0.9)))
    assert taken == [True] * 3 + [False] * 3
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("feedback", [{"shared": False}, {"distribution": "normal"}, "matrix"])
def test_any_feedback(feedback, taken):
    made = []
    for hooked in (False, True):
        matrix = torch.linspace(-1, 1, 5 * 40, dtype=torch.float64).reshape(5, 40)
        given = (
            dfa.Feedback.from_matrix(matrix) if feedback == "matrix" else dfa.Feedback(**feedback)
        )
        net = network(feedback=given)
        if hooked:
            net.module[1].register_forward_pre_hook(lambda *_: None)
        made.append(train(net, dfa.optim.AdamW(net, lr=1e-3)))
    assert taken == [True] * 3 + [False] * 3
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_a_users_matrix_of_another_shape_is_refused_before_the_forward_pass():
    net = network(feedback=dfa.Feedback.from_matrix(torch.ones(5, 30, dtype=torch.float64)))
    optimizer = dfa.optim.SGD(net, lr=0.1)
    with pytest.raises(ValueError, match="30 columns, but the widest point has 31"):
        net(torch.ones(2, 13, dtype=torch.float64))
    optimizer.zero_grad()


def _freeze(net):
    net.module[1].bias.requires_grad_(False)


def _override(net):
    layer = net.module[1]
    layer.forward = lambda x: 2 * dfa.Linear.forward(layer, x)


def _widen(net):
    """The widest of all, so that the scale is another."""
    for i, shape in ((0, (40, 13)), (1, (17, 40))):
        layer = net.module[i]
        layer.out_features, layer.in_features = shape
        layer.weight = nn.Parameter(torch.ones(shape, dtype=torch.float64) / 20)
        layer.bias = nn.Parameter(torch.zeros(shape[0], dtype=torch.float64))


def _replace_parameter(net):
    net.module[1].weight = nn.Parameter(torch.ones(17, 31, dtype=torch.float64))


LEFT = {
    "no bias": lambda net: net.module[1].register_parameter("bias", None),
    "a parameter replaced": _replace_parameter,
    "a hook": lambda net: net.module[0].register_forward_hook(lambda m, a, h: h * 2),
    "a frozen parameter": _freeze,
    "a layer added": lambda net: net.module.append(dfa.Linear(5, 5).double()),
    "a backward hook": lambda net: net.module[1].register_full_backward_hook(lambda *_: None),
    "a backward pre-hook": lambda net: net.module[1].register_full_backward_pre_hook(
        lambda *_: None
    ),
    "shallow": lambda net: setattr(net, "method", "shallow"),
    "a forward of its own": _override,
    "another model": lambda net: setattr(net, "module", nn.Sequential(*net.module).double()),
    "a wider layer": _widen,
}


@pytest.mark.parametrize("change", LEFT)
def test_what_is_unusual_takes_the_general_way(change, taken):
    """And gives what the same network gives that never was a chain."""
    made = []
    for hooked in (False, True):
        net = network()
        if hooked:
            net.module.register_forward_hook(lambda *_: None)
        optimizer = dfa.optim.SGD(net, lr=0.1)
        torch.manual_seed(6)
        LEFT[change](net)
        if change == "a wider layer":
            optimizer = dfa.optim.SGD(net, lr=0.1)
        ((x, y),) = batches(1)
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        made.append([p.detach().clone() for p in net.parameters()])
    assert True not in taken
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (torch.ones(3, 12, dtype=torch.float64), ValueError, "last dimension should be 13"),
        (torch.ones(3, 13, device="meta", dtype=torch.float64), RuntimeError, "cpu.*meta"),
        (torch.ones(3, 13, dtype=torch.int64), TypeError, "real floating"),
    ],
)
def test_bad_input_is_refused_as_elsewhere(x, error, match):
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    with pytest.raises(error, match=match):
        net(x)
    optimizer.step()


def _prune(net, to):
    """Fewer features between the first layer and the second, in the same parameters."""
    first, second, _ = net.module
    first.weight.data, first.bias.data = first.weight.data[:to], first.bias.data[:to]
    second.weight.data = second.weight.data[:, :to].contiguous()


def test_parameters_of_other_shapes_take_the_scale_of_theirs(taken):
    """D_max is another: ``p.data = …`` in the same parameters, as pruning does it."""
    net, other = network(), network()
    optimizers = [dfa.optim.SGD(net, lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)]
    train(net, optimizers[0])
    train(other, optimizers[1])
    for each in (net, other):
        _prune(each, 29)
    with pytest.raises(
        ValueError, match=r"Linear\(31, 17\) was given an input of shape \(11, 29\)"
    ):
        train(net, optimizers[0])
    for each in (net, other):
        each.module[0].out_features = each.module[1].in_features = 29
    ours, wanted = (train(*pair) for pair in zip((net, other), optimizers, strict=True))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert not any(taken[-3:])


def test_a_head_that_no_longer_is_one_is_named():
    net = network(points=["0", "1"])
    net.module.append(dfa.Linear(5, 5).double())
    with pytest.raises(RuntimeError, match="layer '2' ended the model.*wrap the changed"):
        net(torch.ones(2, 13, dtype=torch.float64))


def test_sequences_and_inputs_that_want_a_gradient_are_general(taken):
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    net(torch.ones(2, 13, 13, dtype=torch.float64))
    net(torch.ones(2, 13, dtype=torch.float64, requires_grad=True))
    net(nn.Parameter(torch.ones(2, 13, dtype=torch.float64), requires_grad=False))
    x = torch.ones(2, 13, dtype=torch.float64)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        net(x, scale=2)
    with pytest.raises(TypeError, match="positional arguments"):
        net(x, x)
    assert taken == [False] * 5
    optimizer.zero_grad()


def test_an_input_changed_in_place_after_the_forward_pass_is_refused(taken):
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, y),) = batches(1)
    loss = F.cross_entropy(net(x), y)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert taken == [True]
    optimizer.zero_grad()


def test_an_output_that_the_head_reads_changed_in_place_is_refused(taken):
    net = network(("tanh", "gelu", "tanh"))
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, y),) = batches(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        F.cross_entropy(net(x).mul_(2), y).backward()
    assert taken == [True]
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_every_module_are_called(kind, taken):
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, _),) = batches(1)
    register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    handle = register(lambda *_: None)
    net(x)
    handle.remove()
    net(x)
    assert taken == [False, True]
    optimizer.zero_grad()


def test_a_copy_sees_its_own_hooks(taken):
    net = network()
    twin = copy.deepcopy(net)
    optimizer = dfa.optim.SGD(twin, lr=0.1)
    ((x, _),) = batches(1)
    net.module[0].register_forward_hook(lambda *_: None)
    twin(x)
    twin.module[0].register_forward_hook(lambda *_: None)
    twin(x)
    assert taken == [True, False]
    optimizer.zero_grad()


def test_checkpointing_is_general(taken):
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    x = torch.ones(2, 13, dtype=torch.float64)
    torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)
    assert taken == [False]
    optimizer.zero_grad()


# Autocast ---------------------------------------------------------------------------------------

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def train_autocast(net, optimizer, dtype, given, steps=4):
    """The outputs of every step, and the parameters after the last."""
    seen = []
    for x, y in batches(steps, given):
        with torch.autocast("cpu", dtype):
            output = net(x)
            loss = F.cross_entropy(output, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(output.detach())
    assert all(output.dtype == dtype for output in seen)
    return [*seen, *(p.detach().clone() for p in net.parameters())]


@pytest.mark.parametrize("rule", [dfa.optim.SGD, dfa.optim.AdamW])
@pytest.mark.parametrize("given", [F32, BF16])
@pytest.mark.parametrize(("dtype", "own"), [(BF16, F32), (F16, F32), (BF16, BF16), (F16, BF16)])
@pytest.mark.parametrize("activations", [("relu", "gelu", "identity"), ("tanh", "relu", "tanh")])
def test_autocast_gives_the_bits_of_the_general_way(activations, dtype, own, given, rule, taken):
    """``own``: the parameters' dtype, ``given``: the input's."""
    made = []
    for hooked in (False, True):
        net = network(activations, feedback=dfa.Feedback(seed=3)).to(own)
        if hooked:
            net.module.register_forward_hook(lambda *_: None)
        made.append(train_autocast(net, rule(net, lr=0.01), dtype, given))
    assert taken == [True] * 4 + [False] * 4
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_one_layer_of_another_dtype_under_autocast(taken):
    made = []
    for hooked in (False, True):
        net = network().float()
        net.module[1].bfloat16()
        if hooked:
            net.module.register_forward_hook(lambda *_: None)
        made.append(train_autocast(net, dfa.optim.SGD(net, lr=0.1), BF16, F32))
    assert taken == [True] * 4 + [False] * 4
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("layer", [0, 2])
def test_autocast_leaves_fp64_alone(layer, taken):
    """One layer of it fits no other, as in the general way."""
    net = network().float()
    net.module[layer].double()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    with torch.autocast("cpu", BF16), pytest.raises(RuntimeError, match="dtype"):
        net(torch.ones(2, 13))
    net.double()
    with torch.autocast("cpu", BF16):
        assert net(torch.ones(2, 13, dtype=torch.float64)).dtype == torch.float64
    assert taken == [False, True]
    optimizer.zero_grad()


def test_autocast_of_another_device_casts_nothing(taken):
    net = network().float()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    torch.set_autocast_enabled("xpu", True)
    try:
        assert net(torch.ones(2, 13)).dtype == F32
    finally:
        torch.set_autocast_enabled("xpu", False)
    assert taken == [True]
    optimizer.zero_grad()


def test_a_weight_that_the_chain_has_cast_still_learns_elsewhere(taken):
    """Autocast keeps what it casts, and one without a graph would be found again."""
    net = network().float()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    weight, x = net.module[0].weight, torch.ones(2, 13)
    with torch.autocast("cpu", BF16):
        net(x)
        F.linear(x, weight).sum().backward()
    assert weight.grad.abs().sum() > 0
    assert taken == [True]
    optimizer.zero_grad()


def test_a_second_backward_says_what_was_freed(taken):
    net = network()
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, _),) = batches(1)
    output = net(x)
    output.sum().backward()
    with pytest.raises(RuntimeError, match="3 fused layers, whose records the first one freed"):
        output.sum().backward()
    assert taken == [True]
    optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_a_record_keeps_no_graph(taken):
    """Not that of the error where there is one, and not that of an output that the head reads."""
    net = network(("tanh", "gelu", "tanh"))
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward(create_graph=True)
    (record,) = optimizer.ledger.records
    for _, _, _, (error, _, layer) in record.layers:
        assert not any(t.requires_grad for t in (error, layer.inputs, layer.saved))
    assert taken == [True]
    optimizer.zero_grad()


def test_a_retained_graph_is_run_again_and_then_freed(taken):
    net = network(("gelu", "tanh", "tanh"))
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, _),) = batches(1)
    output = net(x)
    output.sum().backward(retain_graph=True)
    output.sum().backward()
    first, second = optimizer.ledger.records
    for (*_, a), (*_, b) in zip(first.layers, second.layers, strict=True):
        assert a.layer.inputs.data_ptr() == b.layer.inputs.data_ptr()
        assert a.layer.saved.data_ptr() == b.layer.saved.data_ptr()
    with pytest.raises(RuntimeError, match="3 fused layers, whose records the first one freed"):
        output.sum().backward()
    assert taken == [True]
    optimizer.zero_grad()


def test_hidden_activations_live_no_longer_than_their_record(taken):
    """Though the output, whose graph made them, is still there."""
    net = network(("gelu", "tanh", "tanh"))
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, _),) = batches(1)
    output = net(x)
    output.sum().backward()
    (record,) = optimizer.ledger.records
    hidden = [s.layer.inputs for *_, s in record.layers[1:]]
    hidden += [s.layer.saved for *_, s in record.layers[:-1]]
    left = [weakref.ref(h) for h in hidden]
    del record, hidden
    optimizer.zero_grad()
    assert [h() for h in left] == [None] * 4
    assert output.requires_grad and taken == [True]


@pytest.mark.parametrize("changed", ["the input", "the output"])
def test_what_others_write_to_before_the_backward_pass_is_noticed(changed, taken):
    net = network(("tanh", "tanh", "tanh"))
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, _),) = batches(1)
    output = net(x)
    loss = output.sum()
    with torch.no_grad():
        (x if changed == "the input" else output).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert taken == [True] and optimizer.ledger.records == []


def test_a_node_is_freed_with_its_output(taken):
    """A head's output is kept by autograd alone: the node must not keep it alive."""
    net = network(("tanh", "tanh", "tanh"))
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, _),) = batches(1)
    output = net(x)
    left = weakref.ref(output)
    gc.disable()
    del output
    gc.enable()
    assert left() is None
    assert taken == [True] and optimizer.ledger.records == []


@pytest.fixture
def replicated():
    """DistributedDataParallel around a network, in a group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield nn.parallel.DistributedDataParallel
    distributed.destroy_process_group()


@pytest.mark.parametrize("hooked", [False, True])
def test_replicas_whose_gradients_are_averaged_are_refused(hooked, replicated, taken):
    net = network()
    if hooked:
        net.module.register_forward_hook(lambda *_: None)
    optimizer = dfa.optim.SGD(net, lr=0.1)
    ((x, _),) = batches(1)
    with pytest.raises(RuntimeError, match="averages gradients, and dfa_kernels.optim.SGD makes"):
        replicated(net)(x)
    assert optimizer.ledger.records == []
    assert taken == [False]
