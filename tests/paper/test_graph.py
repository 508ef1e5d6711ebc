"""The graph task: six architectures by every method from one definition."""

import argparse
import json

import pytest
import torch
import torch.nn.functional as F

import dfa_kernels as dfa
from bench.paper import training
from bench.paper.graph import TASK, blocks
from bench.paper.graph.autoencoder import Autoencoder
from bench.paper.graph.classification import Classification
from bench.paper.graph.models import ARCHITECTURES
from bench.paper.graph.problem import Setting
from bench.paper.study import Study

NAMES = [name for name in ARCHITECTURES if name != "dna"]  # its small twin is the same code


@pytest.fixture(scope="module")
def graph():
    """A part of the embedded graph: 150 nodes."""
    whole = blocks.load()
    kept = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:150].sort().values
    number = torch.full((1000,), -1).scatter(0, kept, torch.arange(150))
    edges = number[whole.edges]
    edges = edges[:, (edges >= 0).all(dim=0)]
    nodes = torch.arange(150)
    return whole._replace(
        x=whole.x[kept], edges=edges, y=whole.y[kept],
        train=nodes[::3], validation=nodes[1::3], test=nodes[2::3],
    )  # fmt: skip


def problem(graph, model, variant=None, steps=4):
    variant = variant or next(iter(ARCHITECTURES[model].variants))
    kind = Autoencoder if model == "gae" else Classification
    return kind(graph, Setting(model, variant, "rademacher", steps))


def weights(run):
    return {name: p.detach().clone() for name, p in run.net.module.named_parameters()}


@pytest.mark.parametrize("model", NAMES)
def test_dfa_and_backpropagation_train_everything_and_shallow_the_head_alone(graph, model):
    made = problem(graph, model)
    start = None
    for method in ("dfa", "bp", "shallow"):
        run = made.run(method, 0.01, seed=3)
        before = weights(run)
        start = start or before
        assert all(torch.equal(start[name], before[name]) for name in before), "one seed, one start"
        for _ in range(2):
            run.step()
        for name, after in weights(run).items():
            learns = method != "shallow" or name.startswith("head.")
            assert learns != torch.equal(before[name], after), (method, name)


@pytest.mark.parametrize("method", ["dfa", "dfa-output"])
@pytest.mark.parametrize("model", NAMES)
def test_below_a_point_the_gradient_is_the_projected_error(graph, model, method):
    """δh = e·B·scale at each activation, by autograd through what lies below that one alone."""
    run = problem(graph, model).run(method, 0.01, seed=5)
    net = run.net.eval()  # no dropout
    given = run.problem.inputs

    def loss(output):
        if model == "gae":
            pairs = run.problem.graph.edges, run.problem.absent(torch.Generator().manual_seed(7))
            return _loss_of_pairs(output, *pairs)
        return run._loss(output, run.problem.graph.train)

    loss(net(given)).backward()
    found = {name: p.grad for name, p in net.module.named_parameters()}

    outputs = {}
    names = [name for name, m in net.module.named_modules() if name in net.point_names]
    modules = dict(net.module.named_modules())

    def keep(name):
        def hook(module, args, output):
            outputs[name] = output
            return output.detach()

        return hook

    at = net.module.error_at if method == "dfa" else None
    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    reached = []
    if at is not None:
        hook = modules[at].register_forward_hook(
            lambda module, args, output: reached.append(output)
        )
        handles.append(hook)
    output = net.module(given)
    for handle in handles:
        handle.remove()
    value = loss(output)
    (error,) = torch.autograd.grad(value, reached[0] if reached else output, retain_graph=True)
    if model in ("gcn", "gat", "cheb", "spline"):
        labelled = len(run.problem.graph.train)
        rows = int((error != 0).any(dim=1).sum())
        assert rows > labelled if method == "dfa" else rows == labelled
    width = max(output.shape[1] for output in outputs.values())
    signs = {"cheb": [1, -1], "cheb-wide": [1, -1], "spline": [1, 1, 1]}.get(model, [1])
    if method == "dfa-output":
        signs = [1]
    part = error.shape[1] // len(signs)
    matrix = dfa.Feedback("rademacher", seed=5).matrix(part, width) / (3 * width) ** 0.5
    error = sum(s * e for s, e in zip(signs, error.split(part, dim=1), strict=True))
    surrogate = sum((o * (error @ matrix[:, : o.shape[1]])).sum() for o in outputs.values())
    wanted = torch.autograd.grad(surrogate + value, list(net.module.parameters()))
    for (name, grad), true in zip(found.items(), wanted, strict=True):
        assert torch.allclose(grad, true, atol=1e-6 + 1e-4 * float(true.abs().max())), name


def _loss_of_pairs(z, present, absent):
    one = (z[present[0]] * z[present[1]]).sum(1)
    none = (z[absent[0]] * z[absent[1]]).sum(1)
    return F.binary_cross_entropy_with_logits(
        one, torch.ones_like(one)
    ) + F.binary_cross_entropy_with_logits(none, torch.zeros_like(none))


@pytest.mark.parametrize("model", NAMES)
def test_alignment_has_every_point_and_leaves_the_run_as_it_was(graph, model):
    run = problem(graph, model).run("dfa", 0.01, seed=0)
    before, state, drawn = weights(run), torch.get_rng_state(), run.generator.get_state()
    measured = run.alignment()
    layers = [f"states.{i}" for i in range(4)] if model == "dna-small" else ["hidden"]
    assert list(measured) == layers
    assert all(-1 <= cosine.mean <= 1 for cosine in measured.values())
    assert all(torch.equal(before[name], after) for name, after in weights(run).items())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(drawn, run.generator.get_state())


@pytest.mark.parametrize("model", ["gat", "gae"])
def test_an_interrupted_run_goes_on_with_the_same_bits(graph, tmp_path, model):
    made = problem(graph, model, steps=9)
    whole, _ = training.train(made, "dfa", 0.01, 0, tmp_path / "whole")
    seen = []
    with pytest.raises(training.Stopped):
        training.train(
            made, "dfa", 0.01, 0, tmp_path / "cut",
            watch=lambda step, loss: seen.append(step), stop=lambda: seen[-1] == 5,
        )  # fmt: skip
    torch.manual_seed(99)
    resumed, _ = training.train(made, "dfa", 0.01, 0, tmp_path / "cut")
    for name in ("test", "validation", "loss", "alignment", "selection"):
        assert resumed[name] == whole[name], name


def test_the_variants_differ_in_what_they_say_alone(graph):
    made = problem(graph, "gcn").variants()
    assert list(made) == ["strong", "light", "inputs"]
    strong, light, inputs = (each.description for each in made.values())
    assert {k for k in strong if strong[k] != light[k]} == {"regularisation", "hidden", "decay"}
    assert {k for k in strong if strong[k] != inputs[k]} == {"regularisation", "input"}
    run = made["strong"].run("dfa", 0.01, 0)
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [5e-4, 0]
    assert sum(len(g["params"]) for g in run.optimizer.param_groups) == 4


def test_the_autoencoder_never_sees_a_held_out_edge(graph):
    made = problem(graph, "gae")
    whole = {tuple(e) for e in graph.edges.T.tolist()}
    seen = {tuple(e) for e in made.inputs.edges.T.tolist()}  # what the encoder is given
    assert seen == {tuple(e) for e in made.graph.edges.T.tolist()}  # what the loss asks for
    assert seen == {(b, a) for a, b in seen} and seen < whole
    total = len(whole) // 2
    for split, share in (("validation", 0.05), ("test", 0.1)):
        pairs, label = made.held[split]
        pairs = [tuple(pair) for pair in pairs.T.tolist()]
        assert sum(label.tolist()) == int(total * share) == len(label) / 2
        for pair, present in zip(pairs, label.tolist(), strict=True):
            assert (pair in whole) == bool(present) and pair not in seen
    again = problem(graph, "gae", "light")
    assert torch.equal(again.graph.edges, made.graph.edges)
    assert torch.equal(again.held["test"][0], made.held["test"][0])


def test_the_pairs_of_a_step_are_no_edges_and_are_drawn_anew(graph):
    made = problem(graph, "gae")
    seen = {tuple(e) for e in made.graph.edges.T.tolist()}
    generator = torch.Generator().manual_seed(0)
    first, second = made.absent(generator), made.absent(generator)
    assert first.shape[1] > 0.9 * made.graph.edges.shape[1]
    assert not seen & {tuple(pair) for pair in first.T.tolist()}
    assert (first[0] != first[1]).all() and not torch.equal(first[:, :20], second[:, :20])


def test_on_the_embedded_graph_dfa_learns_what_shallow_does_not():
    made = problem(blocks.load(), "gcn", "light", steps=60)
    scores = {}
    for method in ("dfa", "bp", "shallow"):
        run = made.run(method, 0.01, seed=0)
        for _ in range(60):
            run.step()
        scores[method] = run.scores("test")["accuracy"]
    assert scores["dfa"] > scores["shallow"] + 20
    assert scores["dfa"] > scores["bp"] - 10


@pytest.mark.parametrize("model", ["gcn", "gae"])
def test_a_diverged_run_has_a_score_that_beats_nothing(graph, model):
    made = problem(graph, model)
    run = made.run("bp", 0.01, seed=0)
    whole = run.scores("validation")
    with torch.no_grad():
        for parameter in run.net.parameters():
            parameter.fill_(float("nan"))
    lost = run.scores("validation")
    for metric in made.metrics:
        assert not metric.better(lost[metric.name], whole[metric.name])


def test_a_study_leaves_rows_and_a_picture(graph, tmp_path, monkeypatch):
    times = Study._times
    monkeypatch.setattr(Study, "_times", lambda self, seconds: times(self, 0.0))
    asked = argparse.Namespace(
        method=["dfa", "shallow"], lr=[0.01], seeds=2, seed=0, quick=True, out=tmp_path,
        json=tmp_path / "rows.json", overwrite=False,
    )  # fmt: skip
    Study(TASK, problem(graph, "gae"), asked).run()
    rows = json.loads(asked.json.read_text())
    assert [(row["method"], row["metric"]) for row in rows] == [
        ("dfa", "AUC"), ("dfa", "AP"), ("shallow", "AUC"), ("shallow", "AP"),
    ]  # fmt: skip
    assert all(0 <= row["mean"] <= 100 and row["variant"] in ("plain", "light") for row in rows)
    assert list(rows[0]["alignment"]) == ["hidden"] and rows[0]["feedback_bytes"] > 0
    picture = tmp_path / "gae-sbm" / "gae-sbm.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
