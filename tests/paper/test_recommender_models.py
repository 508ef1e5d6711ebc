"""The five models: what they compute, and what each method trains in them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dfa_kernels as dfa
from bench.paper.recommender import TASK
from bench.paper.recommender.models import (
    MODELS,
    PAPER,
    SMALL,
    CrossLayer,
    Logarithmic,
    Sizes,
    pairwise,
)
from bench.paper.recommender.prediction import FROZEN, cross_entropy, wrap

FIELDS = (3, 7, 2, 5)
TINY = {
    "deepfm": Sizes(3, (8, 5)),
    "dcn": Sizes(3, (8, 5), cross_layers=3),
    "autoint": Sizes(3, (8, 5), attention=4, heads=2, attention_layers=2),
    "afn": Sizes(3, (8, 5), logarithmic=6),
    "fm": Sizes(3),
}
DEEP = [name for name in TINY if name != "fm"]
HEADS = ("head", "interaction_head", "first_order")


def build(name, *, norm=False):
    torch.manual_seed(1)
    model = MODELS[name](FIELDS, replace(TINY[name], norm=norm))
    for parameter in model.parameters():  # a first order of zeros would hide a missing term
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(rows=11):
    draw = torch.Generator().manual_seed(2)
    ids = torch.stack([torch.randint(n, (rows,), generator=draw) for n in FIELDS], 1)
    return ids.int(), torch.randint(2, (rows,), generator=draw).float()


def gradients(name, method, *, norm=False):
    net = wrap(build(name, norm=norm), method, "rademacher", 0)
    ids, labels = batch()
    cross_entropy(net(ids), labels).backward()
    return {n: p.grad for n, p in net.module.named_parameters()}


def learns(gradient):
    return gradient is not None and bool(gradient.any())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.integers(1, 6), st.integers(1, 5))
def test_the_pairwise_term_is_the_sum_over_pairs(rows, fields, width):
    e = torch.randn(rows, fields, width, dtype=torch.float64)
    pairs = torch.zeros(rows, 1, dtype=torch.float64)
    for f in range(fields):
        for g in range(f + 1, fields):
            pairs += (e[:, f] * e[:, g]).sum(1, keepdim=True)
    torch.testing.assert_close(pairwise(e), pairs)


def test_a_factorization_machine_is_its_formula():
    model = build("fm")
    ids, _ = batch(1)
    rows = [3 * (f > 0) + 7 * (f > 1) + 2 * (f > 2) + int(i) for f, i in enumerate(ids[0])]
    e, w = model.embedding.weight[rows], model.first_order.weight.weight[rows]
    second = sum(e[f] @ e[g] for f in range(4) for g in range(f))
    assert model(ids).item() == pytest.approx(
        (w.sum() + model.first_order.bias + second).item(), rel=1e-5
    )


def test_a_cross_layer_is_its_formula():
    layer = CrossLayer(4)
    torch.nn.init.normal_(layer.bias)
    first, x = torch.randn(5, 4), torch.randn(5, 4)
    w = layer.weight.weight[0]
    for n in range(5):
        expected = first[n] * (w @ x[n]) + layer.bias + x[n]
        torch.testing.assert_close(layer(first, x)[n], expected)


def test_the_logarithmic_layer_multiplies_powers_of_its_fields():
    layer = Logarithmic(3, 2)
    embedded = torch.randn(4, 3, 5)
    powers, bias = layer.combine.weight, layer.combine.bias
    for neuron in range(2):
        product = ((1 + embedded.abs()) ** powers[neuron, :, None]).prod(1) * bias[neuron].exp()
        made = layer(embedded).reshape(4, 5, 2)[:, :, neuron]
        torch.testing.assert_close(made, (product - 1).relu())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 2, 13])
def test_a_row_is_predicted_alone(name, rows):
    model = build(name).eval()
    ids, _ = batch(13)
    assert model(ids[:rows]).shape == (rows, 1)
    torch.testing.assert_close(model(ids[:rows]), model(ids)[:rows])


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("norm", [True, False])
def test_every_parameter_learns_by_dfa_and_by_backpropagation(name, norm):
    for method in ("dfa", "bp"):
        still = {n for n, g in gradients(name, method, norm=norm).items() if not learns(g)}
        # A bias that batch normalisation takes away again has a gradient of rounding alone.
        assert still <= {f"tower.{i}.0.bias" for i in range(2) if norm}, method


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("norm", [True, False])
def test_shallow_trains_what_is_above_every_point(name, norm):
    trained = {n for n, g in gradients(name, "shallow", norm=norm).items() if learns(g)}
    above = {n for n in trained if n.startswith(HEADS)}
    assert above
    # DeepFM's embeddings are above its points: the factorization machine reads them.
    assert trained - above == ({"embedding.weight"} if name == "deepfm" else set())


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("norm", [True, False])
def test_frozen_is_dfa_but_for_the_tower(name, norm):
    by_dfa, frozen = gradients(name, "dfa", norm=norm), gradients(name, FROZEN, norm=norm)
    for parameter, gradient in frozen.items():
        if parameter.startswith("tower."):
            assert gradient is None and learns(by_dfa[parameter]), parameter
        else:
            torch.testing.assert_close(gradient, by_dfa[parameter], rtol=1e-6, atol=1e-8)


def test_for_deepfm_frozen_is_shallow():
    frozen, shallow = gradients("deepfm", FROZEN), gradients("deepfm", "shallow")
    for parameter, gradient in frozen.items():
        assert learns(gradient) == learns(shallow[parameter]), parameter
        if learns(gradient):
            assert torch.equal(gradient, shallow[parameter])


@pytest.mark.parametrize("name", DEEP)
def test_the_heads_get_their_true_gradient(name):
    by_dfa, by_bp = gradients(name, "dfa"), gradients(name, "bp")
    above = [n for n in by_bp if n.startswith(HEADS)]
    assert above
    for parameter in above:
        torch.testing.assert_close(by_dfa[parameter], by_bp[parameter])


def test_deepfms_embeddings_learn_through_the_machine_alone():
    net = wrap(build("deepfm"), "dfa", "rademacher", 0)
    ids, labels = batch()
    output = net(ids)
    (error,) = torch.autograd.grad(cross_entropy(output, labels), output, retain_graph=True)
    cross_entropy(output, labels).backward()
    table = net.module.embedding.weight
    second = pairwise(net.module.embedding(net.module.rows_of(ids)))
    (through_machine,) = torch.autograd.grad(second, table, error)
    torch.testing.assert_close(table.grad, through_machine)


def test_points_are_where_the_paper_has_them():
    tower = {"tower.0", "tower.1"}
    points = {name: set(wrap(build(name, norm=True), "dfa", "rademacher", 0).point_names)
              for name in DEEP}  # fmt: skip
    assert points == {
        "deepfm": tower,
        "dcn": tower | {"embedding", "cross.0", "cross.1", "stack"},
        "autoint": tower | {"embedding", "project", "attention.0", "interaction"},
        "afn": tower | {"logarithmic"},
    }


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("norm", [True, False])
def test_alignment_names_every_point(name, norm):
    net = wrap(build(name, norm=norm), "dfa", "rademacher", 0).eval()
    cosines = dfa.alignment(net, cross_entropy, *batch())
    assert sorted(cosines) == sorted(net.point_names)
    assert len(cosines) == len(net.module.points)
    assert all(abs(c.mean) <= 1 for c in cosines.values())


@pytest.mark.parametrize("name", DEEP)
def test_without_normalisation_the_whole_tower_is_fused(name):
    net = wrap(build(name), "dfa", "rademacher", 0)
    optimizer = dfa.optim.AdamW(net, lr=1e-2)
    ids, labels = batch()
    before = {n: p.detach().clone() for n, p in net.module.named_parameters()}
    cross_entropy(net(ids), labels).backward()
    for layer in net.module.tower.points:
        with pytest.raises(RuntimeError):  # pending: nothing was made that could be read
            layer.weight.grad.norm()
    optimizer.step()
    assert all(not torch.equal(before[n], p) for n, p in net.module.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_papers_sizes_build(name):
    assert set(PAPER) == set(SMALL) == set(MODELS) == set(TASK.models)
    model = MODELS[name]((50,) * 39, PAPER[name])
    widths = {"deepfm": [400] * 3, "dcn": [1024] * 2, "autoint": [400] * 3, "afn": [400] * 3}
    linear = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert [m.num_features for m in linear] == widths.get(name, [])
    assert model.embedding.embedding_dim == (10 if name in ("deepfm", "afn") else 16)
