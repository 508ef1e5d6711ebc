"""Samples along rays, and the colour they add up to."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.paper.view.cameras import Rays
from bench.paper.view.model import Size
from bench.paper.view.rendering import Volume, composite, hierarchical, render, stratified

WHITE, ENDLESS = Volume(2.0, 6.0, 1.0), Volume(2.0, 6.0, None)
OPAQUE, EMPTY = 1e4, -1e4


def rays(count, length=1.0):
    directions = length * torch.nn.functional.normalize(torch.randn(count, 3), dim=1)
    return Rays(torch.zeros(count, 3), directions, directions / length)


def raw(colours, densities):
    """From colours in (0, 1) (rays, samples, 3) and raw densities (rays, samples)."""
    return torch.cat([torch.logit(colours), densities.unsqueeze(2)], 2)


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_stratified_draws_one_t_from_each_interval(samples):
    t = stratified(WHITE, 50, samples, torch.Generator().manual_seed(1))
    intervals = ((t - 2) / (4 / samples)).floor()
    assert torch.equal(intervals, torch.arange(samples).expand(50, samples).float())
    again = stratified(WHITE, 50, samples, torch.Generator().manual_seed(1))
    assert torch.equal(t, again) and t.std(0).min() > 0
    middles = stratified(WHITE, 3, samples, None)
    torch.testing.assert_close(middles[0], 2 + 4 / samples * (torch.arange(samples) + 0.5))


def test_the_first_opaque_sample_is_seen():
    colours, t = torch.rand(5, 6, 3) * 0.8 + 0.1, stratified(WHITE, 5, 6, None)
    densities = torch.full((5, 6), EMPTY)
    densities[:, 2] = densities[:, 4] = OPAQUE
    seen = composite(raw(colours, densities), t, rays(5), WHITE)
    torch.testing.assert_close(seen.colour, colours[:, 2])
    torch.testing.assert_close(seen.depth, t[:, 2])
    torch.testing.assert_close(seen.opacity, torch.ones(5))


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_through_empty_space_the_background_is_seen(grey):
    t = stratified(WHITE, 3, 4, None)
    seen = composite(
        raw(torch.full((3, 4, 3), 0.3), torch.full((3, 4), EMPTY)), t, rays(3),
        WHITE._replace(background=grey),
    )  # fmt: skip
    torch.testing.assert_close(seen.colour, torch.full((3, 3), grey))
    assert seen.opacity.max() == 0 and (seen.depth == 6).all()


def test_without_a_background_what_passes_ends_at_the_last_sample():
    colours, t = torch.rand(3, 4, 3) * 0.8 + 0.1, stratified(ENDLESS, 3, 4, None)
    densities = torch.full((3, 4), EMPTY)
    densities[:, 3] = -80.0
    seen = composite(raw(colours, densities), t, rays(3), ENDLESS)
    torch.testing.assert_close(seen.colour, colours[:, 3])
    torch.testing.assert_close(seen.opacity, torch.ones(3))
    assert composite(raw(colours, densities), t, rays(3), WHITE).opacity.max() < 1e-2


@pytest.mark.parametrize("length", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("samples", [1, 3, 40])
def test_a_homogeneous_fog_is_as_opaque_as_beers_law_says(samples, length):
    """1 − exp(−σ · length · (far − t₀)) from the first sample on; σ = softplus(−1)."""
    t = stratified(WHITE, 4, samples, torch.Generator().manual_seed(0))
    fog = raw(torch.full((4, samples, 3), 0.5), torch.zeros(4, samples))
    seen = composite(fog, t, rays(4, length), WHITE)
    sigma = math.log1p(math.exp(-1))
    torch.testing.assert_close(seen.opacity, 1 - torch.exp(-sigma * length * (6 - t[:, 0])))
    torch.testing.assert_close(seen.weights.sum(1), seen.opacity)


def test_extreme_densities_have_finite_gradients():
    values = torch.tensor([[-1e30, 1e30, -50.0, 80.0, 0.0]])
    asked = raw(torch.full((1, 5, 3), 0.4), values).requires_grad_()
    for volume in (WHITE, ENDLESS):
        seen = composite(asked, stratified(volume, 1, 5, None), rays(1), volume)
        assert seen.colour.isfinite().all()
        (gradient,) = torch.autograd.grad(seen.colour.sum(), asked)
        assert gradient.isfinite().all()


def test_all_new_samples_fall_where_all_the_weight_is():
    t = stratified(WHITE, 2, 10, None)
    weights = torch.zeros(2, 10)
    weights[0, 3] = weights[1, 7] = 1.0
    more = hierarchical(t, weights, 64, torch.Generator().manual_seed(0))
    assert ((more[0] - t[0, 3]).abs() <= 0.2 + 1e-4).float().mean() > 0.99
    assert ((more[1] - t[1, 7]).abs() <= 0.2 + 1e-4).float().mean() > 0.99


def test_samples_are_as_many_as_the_weights_are_large():
    t = stratified(WHITE, 1, 6, None)
    weights = torch.tensor([[9.0, 3.0, 0.0, 0.0, 1.0, 9.0]])  # the ends have no interval
    more = hierarchical(t, weights, 4000, torch.Generator().manual_seed(0))
    assert ((more < 4).float().mean() - 0.75).abs() < 0.03
    regular = hierarchical(t, weights, 4000, None)
    assert ((regular < 4).float().mean() - 0.75).abs() < 0.001
    # Within an interval the samples are spread evenly: its middle halves them.
    within = regular[regular < 4]
    assert ((within < t[0, 1]).float().mean() - 0.5).abs() < 0.01


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 12), st.integers(1, 9), st.booleans(), st.integers(0, 2**31))
def test_new_samples_stay_between_the_old_ones(samples, count, drawn, seed):
    g = torch.Generator().manual_seed(seed)
    t = stratified(WHITE, 3, samples, g)
    weights = torch.rand(3, samples, generator=g) ** 8 * (torch.rand(3, 1, generator=g) > 0.3)
    more = hierarchical(t, weights, count, g if drawn else None)
    assert more.shape == (3, count)
    assert (more >= t[:, :1]).all() and (more <= t[:, -1:]).all()


def test_render_asks_the_fine_field_about_all_samples_in_order():
    asked = []

    def field(query):
        asked.append(query)
        return torch.zeros(*query.positions.shape[:2], 4, requires_grad=True)

    size = Size(2, 4, 0, 1, 1, coarse=5, fine=3)
    many = rays(4)
    first, second = render(field, many, WHITE, size, torch.Generator().manual_seed(0))
    assert [(q.fine, q.positions.shape) for q in asked] == [
        (False, (4, 5, 3)), (True, (4, 8, 3)),
    ]  # fmt: skip
    t = asked[1].positions.norm(dim=2)
    assert (t.diff(dim=1) >= 0).all()
    torch.testing.assert_close(asked[1].directions, many.views)
    old = asked[0].positions.norm(dim=2)
    near = (t.unsqueeze(2) - old.unsqueeze(1)).abs().min(1).values
    assert near.max() < 1e-5  # every coarse sample is asked about again
    assert first.weights.shape == (4, 5) and second.weights.shape == (4, 8)
