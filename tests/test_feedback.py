"""B, entry by entry: the random stream of the design, its scale, its streams, its errors."""

import math

import definition
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfa_kernels import Feedback
from dfa_kernels.feedback import DISTRIBUTIONS, philox

SEEDS = st.sampled_from([0, 1, 1234, 2**32 - 1, 2**32, 2**63 - 1])
EXACT = ("rademacher", "uniform")


def test_check_value_of_the_design():
    """Seed 1234, stream 5, k = 3, j = 128..191: w0, w1 of counter (1, 3, 5, 0)."""
    w0, w1, _, _ = (int(w) for w in philox((1234, 0), (1, 3, 5, 0)))
    signs = [1.0 if w >> i & 1 else -1.0 for w in (w0, w1) for i in range(32)]
    row = Feedback("rademacher", seed=1234).matrix(4, 200, stream=5)[3, 128:192]
    assert row.tolist() == signs


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, stream=st.integers(0, 9), rows=st.integers(0, 5), width=st.integers(0, 150))
def test_equals_the_definition(distribution, seed, stream, rows, width):
    ours = Feedback(distribution, seed).matrix(rows, width, stream, dtype=torch.float64)
    wanted = definition.matrix(rows, width, distribution=distribution, seed=seed, stream=stream)
    assert ours.shape == (rows, width)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=0 if distribution in EXACT else 1e-12)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, height=st.integers(1, 9), width=st.integers(1, 400), data=st.data())
def test_a_block_does_not_depend_on_the_whole(distribution, seed, height, width, data):
    feedback = Feedback(distribution, seed)
    rows = data.draw(st.integers(1, height))
    columns = data.draw(st.integers(1, width))
    whole = feedback.matrix(height, width, stream=3)
    assert torch.equal(feedback.matrix(rows, columns, stream=3), whole[:rows, :columns])


def test_tall_matrices_are_generated_in_pieces(monkeypatch):
    whole = Feedback(seed=5).matrix(77, 300)
    monkeypatch.setattr("dfa_kernels.feedback._ENTRIES_PER_CHUNK", 240)
    assert torch.equal(Feedback(seed=5).matrix(77, 300), whole)


@pytest.mark.parametrize("distribution", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_exact_in_every_dtype(distribution, dtype):
    feedback = Feedback(distribution, seed=9)
    truth = feedback.matrix(13, 257, dtype=torch.float64)
    assert torch.equal(feedback.matrix(13, 257, dtype=dtype).double(), truth)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_moments(distribution):
    """200,000 entries: mean within 5 σ/√n, variance within 5 standard errors of a kurtosis ≤ 3."""
    b = Feedback(distribution, seed=3).matrix(200, 1000, dtype=torch.float64)
    variance = definition.VARIANCE[distribution]
    assert abs(b.mean()) < 5 * math.sqrt(variance / b.numel())
    assert abs(b.var() / variance - 1) < 5 * math.sqrt(2 / b.numel())


@pytest.mark.parametrize("what", ["seed", "stream", "row"])
def test_other_seeds_streams_and_rows_are_other_numbers(what):
    b = Feedback(seed=1).matrix(2, 1024)
    other = {
        "seed": Feedback(seed=2).matrix(1, 1024)[0],
        "stream": Feedback(seed=1).matrix(1, 1024, stream=1)[0],
        "row": b[1],
    }[what]
    assert abs((b[0] * other).mean()) < 5 / 32  # 5/√1024


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("widest", [1, 7, 1000])
def test_default_scale_is_the_papers_spread(distribution, widest):
    scale = Feedback(distribution).scale_for(widest)
    variance = DISTRIBUTIONS[distribution].variance * scale**2
    assert variance == pytest.approx(1 / (3 * widest))
    assert Feedback(distribution, scale=0.5).scale_for(widest) == 0.5


def test_streams_of_points():
    assert [Feedback().stream(i) for i in range(3)] == [0, 0, 0]
    assert [Feedback(shared=False).stream(i) for i in range(3)] == [0, 1, 2]


def test_a_matrix_of_ones_own_is_taken_as_it_is():
    own = torch.randn(3, 8)
    feedback = Feedback.from_matrix(own)
    assert torch.equal(feedback.matrix(3, 5), own[:, :5])
    assert feedback.matrix(3, 5, dtype=torch.float64).dtype == torch.float64
    assert feedback.scale_for(1000) == 1.0
    assert Feedback.from_matrix(own, scale=2.0).scale_for(1000) == 2.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"distribution": "cauchy"}, "unknown feedback distribution 'cauchy': known are"),
        ({"distribution": "matrix"}, "Feedback.from_matrix takes a matrix of your own"),
        ({"values": torch.ones(2, 2)}, "Feedback.from_matrix takes a matrix of your own"),
        ({"seed": -1}, "got -1"),
        ({"seed": 2**63}, "got 9223372036854775808"),
        ({"seed": 1.5}, "must be an int, got 1.5"),
        ({"seed": True}, "must be an int, got True"),
        ({"scale": math.inf}, "must be finite, got inf"),
        ({"scale": math.nan}, "must be finite, got nan"),
    ],
)
def test_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Feedback(**arguments)


@pytest.mark.parametrize(
    "matrix", [torch.ones(3), torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2) * 1j]
)
def test_matrices_refused(matrix):
    with pytest.raises(ValueError, match="must be a real floating tensor"):
        Feedback.from_matrix(matrix)


@pytest.mark.parametrize(
    ("shape", "said"), [((4, 5), "3 rows.*width 4"), ((3, 9), "8 columns.*9 features")]
)
def test_a_matrix_that_does_not_fit(shape, said):
    with pytest.raises(ValueError, match=said):
        Feedback.from_matrix(torch.ones(3, 8)).matrix(*shape)


def test_what_is_no_number_or_tensor():
    with pytest.raises(ValueError, match="scale must be a number, got 'a'"):
        Feedback(scale="a")
    with pytest.raises(TypeError, match="must be a tensor, got a list"):
        Feedback.from_matrix([[1.0]])
