"""Whatever has changed between two steps is seen, where the second would repeat the first."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_optim import batches
from test_repeat import adamw, assert_same, momentum, plain_sgd, square, step, trained
from torch import nn

import dfa_kernels as dfa


def _another_rate(net, optimizer):
    optimizer.param_groups[0]["lr"] = 0.03


def _a_rate_in_a_tensor(net, optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.03, dtype=torch.float64)


def _other_tensors_of_a_state(net, optimizer):
    for p in net.parameters():
        own = optimizer.state[p]
        own.update({name: torch.ones_like(state) for name, state in own.items()})
        own.setdefault("momentum_buffer", torch.ones_like(p))


def _a_state_exchanged(net, optimizer):
    (*_, last) = net.parameters()
    own = optimizer.state[last]
    optimizer.state[last] = {name: torch.ones_like(state) for name, state in own.items()}


def _counts_set_back(net, optimizer):
    for own in optimizer.state.values():
        if "step" in own:
            own["step"].fill_(1)


def _a_count_set_back(net, optimizer):
    *_, own = optimizer.state.values() or [{}]
    if "step" in own:
        own["step"].fill_(1)


def _a_count_of_its_own(net, optimizer):
    *_, own = optimizer.state.values() or [{}]
    if "step" in own:
        own["step"] = own["step"].clone()


def _states_cleared(net, optimizer):
    optimizer.state.clear()


def _a_checkpoint_loaded(net, optimizer):
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 0.03
    optimizer.load_state_dict(saved)


def _two_weights_exchanged(net, optimizer):
    """Of layers of one shape."""
    a, b = net.module[1], net.module[2]
    a.weight, b.weight = b.weight, a.weight


def _weights_written_to(net, optimizer):
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.5)


def _a_parameters_step_is_dropped(net, optimizer):
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    net.module[1].weight.grad = None
    optimizer.step()
    optimizer.zero_grad()


def _a_penalty(net, optimizer):
    """Autograd brings a gradient beside the pending one, in either order."""
    ((x, y),) = batches(1)
    for loss in (F.cross_entropy(net(x), y), net.module[1].weight.square().sum()):
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    for loss in (net.module[1].weight.square().sum(), F.cross_entropy(net(x), y)):
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _two_records(net, optimizer):
    for x, y in batches(2):
        F.cross_entropy(net(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def _a_gradient_by_hand(net, optimizer):
    ((x, y),) = batches(1)
    F.cross_entropy(net(x), y).backward()
    bias = net.module[1].bias
    bias.grad = torch.ones_like(bias)
    optimizer.step()
    optimizer.zero_grad()


def _a_second_record_of_other_parameters(net, optimizer):
    """Cleared of the first layers' gradients, the last layer's count from the first record on."""
    for x, y in batches(2):
        F.cross_entropy(net(x), y).backward()
        for p in net.module[:2].parameters():
            p.grad = None
    optimizer.step()
    optimizer.zero_grad()


def _records_counted_from_the_second(net, optimizer):
    (a, y), (b, _) = batches(2)
    F.cross_entropy(net(a), y).backward()
    net.module[0].weight.grad = None
    F.cross_entropy(net(b), y).backward()
    optimizer.ledger.records.pop(0)
    optimizer.step()
    optimizer.zero_grad()


def _a_frozen_bias(net, optimizer):
    net.module[1].bias.requires_grad_(False)


def _a_hook(net, optimizer):
    net.module[1].register_forward_hook(lambda *_: None)


def _a_parameter_taken_away(net, optimizer):
    optimizer.param_groups[0]["params"].pop()


def _no_momentum(net, optimizer):
    optimizer.param_groups[0]["momentum"] = 0.0


def _nesterov_momentum(net, optimizer):
    optimizer.param_groups[0]["nesterov"] = True


def _other_betas(net, optimizer):
    optimizer.param_groups[0]["betas"] = (0.5, 0.6)


def _decay(net, optimizer):
    optimizer.param_groups[0]["weight_decay"] = 0.3


CHANGES = {
    name.lstrip("_").replace("_", " "): change
    for name, change in list(globals().items())
    if name.startswith("_") and callable(change) and not name.startswith("__")
}


@pytest.mark.parametrize("optimizer", [plain_sgd, momentum, adamw])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_steps_is_seen(change, optimizer, repeated):
    wanted = trained(optimizer, square(), CHANGES[change], steps=8, plain=True)
    assert_same(trained(optimizer, square(), CHANGES[change], steps=8), wanted)
    assert len(repeated) >= 2  # before the change


@pytest.mark.parametrize("change", [_weights_written_to, _a_checkpoint_loaded])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_change_between_two_steps_with_masters_is_seen(name, change, repeated):
    def optimizer(net):
        return getattr(dfa.optim, name)(net, lr=0.1, master_weights=True)

    made = [
        trained(optimizer, square().bfloat16(), change, 8, plain, torch.bfloat16)
        for plain in (True, False)
    ]
    assert_same(*made)
    assert len(repeated) >= 2


def test_a_master_exchanged_is_seen(repeated):
    made = []
    for plain in (True, False):
        net = square().bfloat16()
        optimizer = dfa.optim.SGD(net, lr=0.1, master_weights=True)
        if plain:
            optimizer._remember = lambda *_: None
        for i, (x, y) in enumerate(batches(6, torch.bfloat16)):
            if i == 4:
                for own in optimizer.state.values():
                    own["master"] = own["master"] + 2.0**-14
            step(net, optimizer, x, y)
        made.append([own["master"] for own in optimizer.state.values()])
    assert_same(*made)
    assert len(repeated) == 3


def test_parameters_that_became_wider():
    """bf16, then fp32 under autocast, whose activations are what they were."""
    made = []
    for plain in (True, False):
        net = square().bfloat16()
        optimizer = plain_sgd(net)
        if plain:
            optimizer._remember = lambda *_: None
        for i, (x, y) in enumerate(batches(7, torch.bfloat16)):
            if i == 4:
                net.float()
            with torch.autocast("cpu", torch.bfloat16, enabled=i >= 4):
                loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        made.append([p.detach() for p in net.parameters()])
    assert_same(*made)


def test_parameters_of_two_groups_exchanged():
    made = []
    for plain in (True, False):
        net = square()
        first, second = (list(m.parameters()) for m in (net.module[:1], net.module[1:2]))
        rest = {"params": net}
        groups = [{"params": first, "lr": 0.3}, {"params": second, "lr": 0.01}, rest]
        optimizer = dfa.optim.SGD(groups, lr=0.1)
        if plain:
            optimizer._remember = lambda *_: None
        for i, (x, y) in enumerate(batches(8)):
            if i == 4:
                one, other = optimizer.param_groups[:2]
                one["params"], other["params"] = other["params"], one["params"]
            if i == 6:
                one["params"][:], other["params"][:] = [*other["params"]], [*one["params"]]
            if plain:
                optimizer._prepare()
            step(net, optimizer, x, y)
        made.append([p.detach() for p in net.parameters()])
    assert_same(*made)


def test_a_layer_that_runs_twice_is_stepped_again():
    """Two steps of one retained graph: of one weight two segments."""
    layer = dfa.Linear(6, 6, activation="tanh").double()
    model = nn.Sequential(layer, layer, dfa.Linear(6, 5).double())
    made = []
    for kind in (torch.optim.SGD, dfa.optim.SGD):
        net = dfa.DFA(copy.deepcopy(model))
        optimizer = kind(net.parameters() if kind is torch.optim.SGD else net, lr=0.1)
        torch.manual_seed(2)
        x, y = torch.randn(4, 6).double(), torch.arange(4)
        for _ in range(3):
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.step()
            optimizer.zero_grad()
        made.append([p.detach() for p in net.parameters()])
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
