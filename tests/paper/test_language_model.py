"""The Transformer: what each attention sees, and what each method teaches which layer."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dfa_kernels as dfa
from bench.paper.language import attention
from bench.paper.language.model import ERROR_AT, PAPER, POINTS, Size, Transformer, sinusoids

TINY = Size(blocks=3, width=8, heads=4, hidden=20, context=7, dropout=0.0)
VOCABULARY = 11
KINDS = list(attention.KINDS)


def transformer(kind="standard", size=TINY):
    torch.manual_seed(5)
    return Transformer(size, VOCABULARY, kind)


def wrapped(method="dfa", granularity="macro", error_at="before", kind="standard", size=TINY):
    return dfa.DFA(
        transformer(kind, size),
        feedback=dfa.Feedback("rademacher", seed=3),
        points=POINTS[granularity],
        error_at=ERROR_AT[error_at],
        method=method,
    )


def batch(length=TINY.context, rows=3):
    drawn = torch.randint(VOCABULARY, (rows, length + 1), generator=torch.manual_seed(2))
    return drawn[:, :-1], drawn[:, 1:]


def cross_entropy(logits, y):
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def gradients(net):
    x, y = batch()
    net.zero_grad()
    cross_entropy(net(x), y).backward()
    return {name: p.grad for name, p in net.module.named_parameters()}


# Attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 5, 7])
def test_no_position_sees_what_follows(kind, length):
    model = transformer(kind)
    x, _ = batch(length)
    logits = model(x)
    for at in range(length):
        other = x.clone()
        other[:, at] = (x[:, at] + 1) % VOCABULARY
        changed = (model(other) - logits).abs().amax((0, 2))
        assert changed[:at].max() == 0 if at else True
        assert changed[at] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_do_not_see_each_other(kind):
    model = transformer(kind)
    x, _ = batch()
    together = model(x)
    for i in range(len(x)):
        torch.testing.assert_close(model(x[i : i + 1])[0], together[i])


@pytest.mark.parametrize("kind", ["standard", "dense", "random"])
def test_earlier_positions_are_seen(kind):
    layer = attention.KINDS[kind](8, 2, 6, 0.0)
    x = torch.randn(1, 6, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, -1].sum(), x)
    assert (gradient[0].abs().amax(1) > 0).all()


def test_standard_is_pytorchs_multi_head_attention():
    ours, theirs = attention.Standard(8, 2, 6, 0.0), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.enter.weight), theirs.in_proj_bias.copy_(ours.enter.bias)
        theirs.out_proj.weight.copy_(ours.leave.weight), theirs.out_proj.bias.copy_(ours.leave.bias)
    x = torch.randn(3, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=mask, need_weights=False)[0])


@pytest.mark.parametrize("context", [1, 2, 3, 4, 9])
def test_fixed_heads_see_what_they_should(context):
    wanted = torch.zeros(4, context, context)
    for i in range(context):
        wanted[0, i, i] = 1
        wanted[1, i, max(i - 1, 0)] = 1
        seen = range(i - 2)
        cubes = sum((j + 1) ** 3 for j in seen)
        for j in seen:
            wanted[2, i, j] = 1 / len(seen)
            wanted[3, i, j] = (j + 1) ** 3 / cubes
        if not len(seen):
            wanted[2:, i, 0] = 1
    torch.testing.assert_close(attention.fixed_weights(context), wanted)


def test_dense_writes_its_weights_from_the_positions_own_features():
    layer = attention.Dense(6, 2, 5, 0.0)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x = torch.randn(2, 4, 6)
    seen, values = layer.enter(x).chunk(2, -1)
    heads = []
    for h in range(2):
        part = slice(3 * h, 3 * h + 3)
        hidden = (seen[..., part] @ layer.weight1[h] + layer.bias1[h]).relu()
        logits = (hidden @ layer.weight2[h] + layer.bias2[h])[..., :4]
        weights = logits.exp().tril()
        heads.append(weights / weights.sum(-1, keepdim=True) @ values[..., part])
    torch.testing.assert_close(layer(x), layer.leave(torch.cat(heads, -1)))


def test_random_has_the_same_weights_for_every_input():
    layer = attention.Random(6, 2, 5, 0.0)
    nn.init.normal_(layer.logits)
    x = torch.randn(2, 4, 6)
    weights = layer.logits[:, :4, :4].exp().tril()
    weights = weights / weights.sum(-1, keepdim=True)
    values = layer.enter(x)
    heads = [weights[h] @ values[..., 3 * h : 3 * h + 3] for h in range(2)]
    torch.testing.assert_close(layer(x), layer.leave(torch.cat(heads, -1)))


@pytest.mark.parametrize("width", [6, 7])
def test_positions(width):
    table = sinusoids(5, width)
    for t in range(5):
        for j in range(width):
            angle = t / 10000 ** ((j - j % 2) / width)
            wave = math.cos(angle) if j % 2 else math.sin(angle)
            assert table[t, j].item() == pytest.approx(wave, abs=1e-6)


# Methods ----------------------------------------------------------------------------------------


def test_the_papers_size():
    model = Transformer(PAPER, 50)
    block = 4 * (512 * 512 + 512) + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
    embedding, head = 50 * 512, 50 * 513
    assert sum(p.numel() for p in model.parameters()) == 6 * block + 1024 + embedding + head


@pytest.mark.parametrize("granularity, each", [("macro", 1), ("micro", 3)])
def test_how_many_points_a_block_has(granularity, each):
    assert len(wrapped(granularity=granularity).point_names) == each * TINY.blocks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error_at", ERROR_AT)
@pytest.mark.parametrize("granularity", POINTS)
def test_what_each_method_teaches(granularity, error_at, kind):
    true = gradients(wrapped("bp", granularity, error_at, kind))
    shallow = gradients(wrapped("shallow", granularity, error_at, kind))
    ours = gradients(wrapped("dfa", granularity, error_at, kind))
    top = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert {name for name, gradient in shallow.items() if gradient is not None} == top
    for name in top:
        torch.testing.assert_close(ours[name], true[name])
        torch.testing.assert_close(shallow[name], true[name])
    for name in true.keys() - top:
        assert ours[name] is not None and ours[name].abs().max() > 0, name
        assert not torch.allclose(ours[name], true[name], rtol=0.1), name


@pytest.mark.parametrize("error_at", ERROR_AT)
def test_macro_hands_every_block_the_projected_error(error_at):
    """Against autograd through one block at a time, with B written out."""
    ours = gradients(wrapped(error_at=error_at))
    model = transformer()
    seen, outputs = {}, {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, args, out, i=i: seen.update({i: (args[0], out)}))
    for name in ("norm", "head"):
        model.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: outputs.update({name: out})
        )
    x, y = batch()
    loss = cross_entropy(model(x), y)
    (error,) = torch.autograd.grad(loss, outputs[ERROR_AT[error_at]], retain_graph=True)
    B = dfa.Feedback("rademacher", seed=3).matrix(error.shape[-1], TINY.width)
    delta = error @ B.float() / math.sqrt(3 * TINY.width)
    for i, block in enumerate(model.blocks):
        (below, _), parameters = seen[i], dict(block.named_parameters())
        if i:  # from its own input on; the first block hands it to the embedding too
            output = block(below.detach())
        else:
            parameters["embed"] = model.embed.weight
            output = seen[i][1]
        made = torch.autograd.grad(output, list(parameters.values()), delta, retain_graph=True)
        for name, gradient in zip(parameters, made, strict=True):
            key = "embed.weight" if name == "embed" else f"blocks.{i}.{name}"
            torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("granularity", POINTS)
def test_alignment_names_every_point(granularity):
    net = wrapped(granularity=granularity)
    cosines = dfa.alignment(net, cross_entropy, *batch())
    assert set(cosines) == set(net.point_names)
    assert all(abs(cosine.mean) <= 1 for cosine in cosines.values())


@pytest.mark.parametrize("place", ["drop", "blocks.0.drop", "blocks.1.attend"])
def test_dropout_is_at_every_place_and_in_training_alone(place):
    net = transformer(size=replace(TINY, dropout=0.5))
    for name, module in net.named_modules():
        if name != place and isinstance(module, nn.Dropout):
            module.p = 0.0
        if name != place and isinstance(module, attention.Standard):
            module.dropout = 0.0
    x, _ = batch()
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


# torch.compile and autocast ---------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", POINTS)
def test_autocast_gives_nearly_the_same_gradients(granularity, kind):
    net = wrapped(granularity=granularity, kind=kind)
    exact = gradients(net)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(net)
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32
        wanted = exact[name]  # here and there a relu is on in one of the two alone
        assert (gradient - wanted).norm() <= 0.15 * wanted.norm() + 1e-6, name
        if name != "embed.weight":
            assert not torch.equal(gradient, wanted), name


@pytest.mark.parametrize(
    "method, granularity, error_at, kind, autocast",
    [
        ("dfa", "macro", "before", "standard", False),
        ("dfa", "micro", "after", "dense", True),
        ("bp", "macro", "before", "random", False),
        ("shallow", "macro", "before", "fixed", True),
    ],
)
def test_compiled_whole(fresh_compiler, method, granularity, error_at, kind, autocast):
    size = replace(TINY, blocks=1)
    eager = wrapped(method, granularity, error_at, kind, size)
    compiled = wrapped(method, granularity, error_at, kind, size)
    compiled.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted, ours = gradients(eager), gradients(compiled)
    assert any(gradient is not None for gradient in ours.values())
    near = 0.05 if autocast else 1e-5
    for name, gradient in wanted.items():
        assert (gradient is None) == (ours[name] is None)
        if gradient is not None:
            assert (ours[name] - gradient).norm() <= near * gradient.norm() + 1e-7, name
