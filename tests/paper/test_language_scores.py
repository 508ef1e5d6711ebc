"""Perplexity over windows, learning rates over steps, and the share of the gap."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench.paper.language import gap, perplexity, schedules

# Perplexity -------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_every_target_counts_once(inputs, context, data):
    stride = data.draw(st.integers(1, context))
    starts, fresh = perplexity.windows(inputs, context, stride)
    length = min(context, inputs)
    counted = np.zeros(inputs, int)
    for start, new in zip(starts, fresh, strict=True):
        assert start >= 0 and start + length <= inputs and 0 < new <= length
        counted[start + length - new : start + length] += 1
    assert (counted == 1).all()
    if stride == context:
        assert len(starts) == math.ceil(inputs / length)


class Bigram(nn.Module):
    """Looks one token back, and notes how far back each position could have looked."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(7, 7, dtype=torch.float64))

    def forward(self, x):
        return self.logits[x]


@pytest.mark.parametrize("length", [2, 9, 50])
@pytest.mark.parametrize("context, stride", [(8, 8), (8, 3), (8, 1), (64, 64), (1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_sum_is_that_over_the_text(length, context, stride, batch):
    tokens = np.random.default_rng(0).integers(0, 7, length).astype(np.uint16)
    model = Bigram()
    text = torch.from_numpy(tokens.astype(np.int64))
    wanted = F.cross_entropy(model.logits[text[:-1]], text[1:], reduction="sum").item()
    found = perplexity.negative_log_likelihood(model, tokens, context, stride, batch)
    assert found == pytest.approx(wanted, rel=1e-6)


def test_a_shorter_stride_lets_each_word_see_more():
    class Length(nn.Module):
        """Says token 0 with a probability that falls with every position it can see."""

        def forward(self, x):
            zero = torch.arange(1.0, x.shape[1] + 1).expand(x.shape)
            return torch.stack([zero, torch.zeros_like(zero)], -1)

    tokens = np.zeros(41, np.uint16)
    by_stride = [
        perplexity.negative_log_likelihood(Length(), tokens, 8, stride, 4) for stride in (8, 4, 1)
    ]
    assert by_stride[0] > by_stride[1] > by_stride[2] > 0


def test_scores_are_per_word_and_do_not_overflow():
    scores = perplexity.scores(12.0, 4)
    assert scores == {"perplexity": pytest.approx(math.exp(3)), "log perplexity": 3.0}
    assert perplexity.scores(1e6, 10)["perplexity"] == math.inf
    assert math.isnan(perplexity.scores(math.nan, 10)["perplexity"])


def test_windows_come_with_the_token_after_each():
    x, y = perplexity.gather(np.arange(20, dtype=np.uint16), np.array([0, 7]), 4)
    assert x.tolist() == [[0, 1, 2, 3], [7, 8, 9, 10]] and torch.equal(y, x + 1)
    assert x.dtype == torch.int64


# Rates ------------------------------------------------------------------------------------------


def rates_of(schedule, steps, total=40, warm_up=10, losses=()):
    weight = nn.Parameter(torch.ones(3))
    optimizer = schedules.optimizer("adam", [weight], 0.1, 0.98)
    scheduler = schedules.schedule(schedule, optimizer, total, warm_up)
    seen = []
    for step in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(3)
        optimizer.step()
        if step < len(losses):
            scheduler.watch(losses[step])
        if scheduler is not None:
            scheduler.step()
    return seen


def test_noam_rises_and_falls_as_the_root():
    seen = rates_of("noam", 400)
    assert max(seen) == seen[9] == pytest.approx(0.1)
    for step, rate in enumerate(seen, 1):  # the formula of the Transformer's paper, to a factor
        assert rate == pytest.approx(0.1 * 10**0.5 * min(step**-0.5, step * 10**-1.5))


def test_cosine_rises_falls_to_zero_and_stays():
    seen = rates_of("cosine", 45)
    assert seen[:10] == pytest.approx([0.01 * i for i in range(1, 11)])
    assert seen[9:] == sorted(seen[9:], reverse=True)
    assert seen[25] == pytest.approx(0.05) and seen[40:] == [0.0] * 5


def test_constant_is_constant():
    assert rates_of("constant", 50) == [0.1] * 50


def test_plateau_falls_after_two_validations_without_a_better_one():
    seen = rates_of("plateau", 8, losses=(5.0, 4.0, 4.0, 4.0))
    assert seen == pytest.approx([0.1] * 4 + [0.02] * 4)
    assert rates_of("plateau", 8, losses=(5.0, 4.0, 3.0, 2.0)) == [0.1] * 8


def test_gradients_are_clipped_together():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    c = nn.Parameter(torch.zeros(2))  # without a gradient, as below the error point in shallow
    optimizer = schedules.optimizer("adam", [a, b, c], 0.1, 0.98)
    a.grad, b.grad = torch.tensor([30.0, 0.0]), torch.tensor([0.0, 40.0])
    optimizer.step()
    assert a.grad[0].item() == pytest.approx(0.3) and b.grad[1].item() == pytest.approx(0.4)
    assert optimizer.defaults["betas"] == (0.9, 0.98)


@pytest.mark.parametrize("name", schedules.OPTIMIZERS)
def test_optimizers_learn(name):
    weight = nn.Parameter(torch.full((3,), 2.0))
    optimizer = schedules.optimizer(name, [weight], 0.1, 0.999)
    for _ in range(60):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.abs().max() < 1.5


# The gap ----------------------------------------------------------------------------------------


def test_the_share_of_the_papers_figures():
    scores = {"bp": [math.log(29.8)], "dfa": [math.log(52.0)], "shallow": [math.log(400)]}
    assert gap.shares(scores)["dfa"].mean == pytest.approx(0.786, abs=5e-4)


def test_shares_are_of_means_and_spread_over_seeds():
    scores = {
        "bp": [5.0, 5.2], "shallow": [7.0, 7.2], "dfa": [5.5, 6.1], "micro": [7.0, 7.2],
    }  # fmt: skip
    found = gap.shares(scores)
    assert set(found) == {"dfa", "micro"}
    assert found["dfa"].mean == pytest.approx((7.1 - 5.8) / 2)
    assert found["dfa"].std == pytest.approx(abs(0.75 - 0.55) / 2**0.5)
    assert found["micro"] == (pytest.approx(0), pytest.approx(0))


@pytest.mark.parametrize(
    "scores",
    [
        {"dfa": [1.0], "bp": [0.5]},
        {"dfa": [1.0], "shallow": [0.5]},
        {"dfa": [1.0], "bp": [3.0], "shallow": [2.0]},
        {"dfa": [1.0], "bp": [math.nan], "shallow": [2.0]},
    ],
)
def test_without_a_gap_there_is_no_share(scores):
    assert gap.shares(scores) == {}
