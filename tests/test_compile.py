"""torch.compile(fullgraph=True): no graph break, and plain eager's gradients."""

import copy
import threading
import warnings

import pytest
import torch
from models import Branching, Classifier, Residual, assert_same, both, gradients, mlp, wrap
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import dfa_kernels as dfa
from dfa_kernels.in_backward import UPDATES_COMPILE


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def agree(net, inputs, backend="aot_eager", dynamic=None, **tolerance):
    """The compiled module's outputs and gradients on every input against the eager copy's."""
    eager = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend=backend, dynamic=dynamic)
    for x in inputs:
        net.zero_grad(), eager.zero_grad()
        ours, wanted = compiled(x), eager(x)
        torch.testing.assert_close(ours, wanted, **tolerance)
        error = torch.randn_like(wanted)
        ours.backward(error), wanted.backward(error)
        assert any(p.grad is not None for p in net.parameters())
        assert_same(gradients(net), gradients(eager), **tolerance)


@both
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu"])
def test_activations(fused, activation):
    agree(wrap(mlp((5, 7, 6, 3), activation), fused), torch.randn(2, 4, 5))


@both
@pytest.mark.parametrize(
    "feedback",
    [
        dfa.Feedback("uniform", shared=False),
        dfa.Feedback("normal", seed=2**33),
        dfa.Feedback.from_matrix(torch.linspace(-1, 1, 24).reshape(3, 8)),
    ],
    ids=["uniform", "normal", "matrix"],
)
def test_feedbacks(fused, feedback):
    agree(wrap(mlp((5, 7, 6, 3)), fused, feedback=feedback), torch.randn(1, 4, 5))


@both
@pytest.mark.parametrize("method", dfa.module.METHODS)
def test_methods(fused, method):
    agree(wrap(mlp((5, 7, 6, 3)), fused, method=method), torch.randn(1, 4, 5))


@both
def test_a_switched_method_is_compiled_again(fused):
    net = wrap(mlp((5, 7, 3)), fused)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    made = {}
    for method in ("dfa", "bp", "dfa"):
        net.method = method
        net.zero_grad()
        compiled(x).backward(error)
        made.setdefault(method, []).append(gradients(net))
    assert_same(*made["dfa"], rtol=0, atol=0)
    assert not torch.allclose(made["dfa"][0][0], made["bp"][0][0])


def tied():
    layer = nn.Linear(6, 6)
    return dfa.fuse(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 3)))


class Body(nn.Module):
    """An error point inside the model, and a skip past a fused layer."""

    def __init__(self):
        super().__init__()
        self.first = dfa.Linear(6, 6, activation="tanh")
        self.body = dfa.Linear(6, 4)
        self.decoder = nn.Linear(4, 9)

    def forward(self, x):
        return self.decoder(self.body(x + self.first(x)))


@pytest.mark.parametrize(
    ("model", "shape", "options"),
    [
        (tied, (4, 6), {}),
        (Branching, (4, 6), {}),
        (lambda: nn.Sequential(Residual(6), Residual(6), nn.Linear(6, 3)), (4, 6), {}),
        (
            lambda: nn.Sequential(Residual(6), Residual(6), nn.Linear(6, 3)),
            (2, 4, 6),
            {"points": ["0", "1"]},
        ),
        (Body, (4, 6), {"error_at": "body"}),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), dfa.Linear(12, 5)),
            (2, 2, 4, 4),
            {},
        ),
        (
            lambda: nn.Sequential(
                dfa.Linear(6, 7, activation="relu"), nn.LayerNorm(7), dfa.Linear(7, 3)
            ),
            (4, 6),
            {},
        ),
    ],
    ids=["tied", "branching", "residual", "blocks", "error_at", "convolution", "norm"],
)
def test_models(model, shape, options):
    agree(dfa.DFA(model(), **options), [torch.randn(shape)])


def test_an_embedding_and_frozen_layers():
    net = dfa.DFA(Classifier())
    net.module.second.requires_grad_(False)
    agree(net, [torch.randint(0, 11, (6,))])


def _frozen(net):
    net.module[2].weight.requires_grad_(False)


def _cast(net):
    net.double()


def _exchanged(net):
    net.module[2].weight = nn.Parameter(torch.ones(6, 7))


@both
@pytest.mark.parametrize("change", [_frozen, _cast, _exchanged])
@pytest.mark.parametrize("optimized", [False, True])
def test_a_network_that_is_changed_is_compiled_again(change, optimized, fused):
    net = wrap(mlp((5, 7, 6, 3)), fused)
    nets = [net, copy.deepcopy(net)]
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    runs = compiled, nets[1]
    kind = dfa.optim.SGD if optimized and fused and UPDATES_COMPILE else None
    optimizers = [
        kind(net, lr=0.1, update="backward") if kind else torch.optim.SGD(net.parameters(), lr=0.1)
        for net in nets
    ]
    for i in range(4):
        x, error = torch.randn(4, 5), torch.randn(4, 3)
        for net, run, optimizer in zip(nets, runs, optimizers, strict=True):
            if i == 2:
                change(net)
            dtype = net.module[0].weight.dtype
            optimizer.zero_grad()
            run(x.to(dtype)).backward(error.to(dtype))
            optimizer.step()
    assert_same(list(nets[0].parameters()), list(nets[1].parameters()), rtol=1e-6, atol=1e-6)


@both
def test_dynamic_batches(fused):
    """One graph for every batch size."""
    counter = CompileCounterWithBackend("aot_eager")
    net = wrap(mlp((5, 7, 6, 3)), fused)
    compiled = torch.compile(net, fullgraph=True, backend=counter, dynamic=True)
    compiled(torch.randn(4, 5)).sum().backward()
    once = counter.frame_count
    for rows in (7, 64, 9):
        x, error = torch.randn(rows, 5), torch.randn(rows, 3)
        made = []
        for run in (net, compiled):
            net.zero_grad()
            run(x).backward(error)
            made.append(gradients(net))
        assert_same(*made)
    assert counter.frame_count == once


@both
def test_autocast(fused):
    net = wrap(mlp((5, 7, 6, 3)), fused)
    with torch.autocast("cpu", torch.bfloat16):
        agree(net, torch.randn(1, 4, 5), rtol=0.02, atol=0.02)


def test_the_first_pass_of_a_thread_is_not_compiled_again():
    counts = []

    def run():
        counter = CompileCounterWithBackend("aot_eager")
        net = torch.compile(dfa.DFA(dfa.fuse(mlp())), fullgraph=True, backend=counter)
        for _ in range(3):
            net(torch.randn(4, 5)).sum().backward()
            counts.append(counter.frame_count)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(counts) == 3
    assert counts[0] == counts[2]


def test_eval_under_no_grad():
    net = dfa.DFA(dfa.fuse(mlp()))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))


@both
def test_several_passes_before_one_backward(fused):
    net = wrap(mlp((5, 7, 3)), fused)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x, error = torch.randn(2, 4, 5), torch.randn(2, 4, 3)
    made = []
    for run in (net, compiled):
        net.zero_grad()
        one, two = run(x[0]), run(x[1])
        torch.autograd.backward([one, two], list(error))
        made.append(gradients(net))
    assert_same(*made)


@both
def test_inductor(fused):
    agree(wrap(mlp((5, 7, 6, 3)), fused), torch.randn(2, 4, 5), backend="inductor")


@pytest.mark.parametrize("name", ["project", "gradients", "step_", "hyper"])
def test_cuda_graphs_of_the_compilers_own_leave_it_out(name):
    op = getattr(torch.ops.dfa_kernels, name).default
    assert torch._C.Tag.cudagraph_unsafe in op.tags


def test_a_refusal_is_still_one_sentence():
    net = torch.compile(dfa.DFA(dfa.fuse(mlp())), backend="aot_eager")
    with pytest.raises(Exception, match=r"Linear\(5, 7\).*whose last dimension should be 5"):
        net(torch.randn(4, 6))


@pytest.mark.parametrize("how", ["a layer", "the model", "the model before"])
def test_compiled_inside_a_forward_pass_that_is_not(how):
    x, error = torch.randn(4, 5), torch.randn(4, 3)
    torch.manual_seed(0)
    net = dfa.DFA(dfa.fuse(mlp()))
    eager = copy.deepcopy(net)
    if how == "a layer":
        net.module[2].compile(backend="aot_eager")
    elif how == "the model":
        net.module.compile(backend="aot_eager")
    else:
        net = dfa.DFA(torch.compile(net.module, backend="aot_eager"))
    for _ in range(2):
        for module in (net, eager):
            module.zero_grad()
            module(x).backward(error)
        assert_same(gradients(net), gradients(eager))


# What the compiler has given up ------------------------------------------------------------------


class Broken(nn.Module):
    """Layers with a break of the graph after each: every frame is compiled alone, or not at all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        widths = range(5, 11)
        self.layers = nn.ModuleList(dfa.Linear(w, w + 1, activation="tanh") for w in widths)
        self.head = nn.Linear(11, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            torch._dynamo.graph_break()
        return self.head(x)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, dfa.optim.SGD])
@pytest.mark.parametrize("limit", [1, 2, 8])
def test_frames_that_are_compiled_alone(limit, kind, checkpointed):
    nets = [dfa.DFA(Broken()) for _ in range(2)]
    given = [n if kind is dfa.optim.SGD else n.parameters() for n in nets]
    optimizers = [kind(params, lr=0.1) for params in given]
    with torch._dynamo.config.patch(recompile_limit=limit):
        runs = torch.compile(nets[0], backend="aot_eager"), nets[1]
        for rows in (4, 4, 7, 9):
            x, error = torch.randn(rows, 5), torch.randn(rows, 3)
            for run, optimizer in zip(runs, optimizers, strict=True):
                y = checkpoint(run, x, use_reentrant=False) if checkpointed else run(x)
                y.backward(error)
                optimizer.step()
                optimizer.zero_grad()
    assert_same(list(nets[0].parameters()), list(nets[1].parameters()), rtol=1e-6, atol=1e-6)


def test_a_chain_that_the_compiler_has_given_up_is_not_looked_into():
    net = wrap(mlp((5, 7, 6, 3)), True)
    optimizer = dfa.optim.SGD(net, lr=0.1)
    torch._dynamo.utils.warn_once_cache.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.compile(net, backend="aot_eager")(torch.randn(4, 5)).sum().backward()
    assert optimizer.ledger.records
    optimizer.zero_grad()
