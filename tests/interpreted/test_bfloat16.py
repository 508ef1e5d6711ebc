"""The repair of the interpreter's bf16: needed, and right."""

import pytest
import torch
import triton
import triton.language as tl
from conftest import BROKEN
from triton.runtime.interpreter import InterpreterBuilder


@triton.jit
def product(a, b, out, N: tl.constexpr):
    """out = a·b for (N, N) matrices, in fp32."""
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def arithmetic(a, b, out, N: tl.constexpr):
    """Rows of out: a + b, a · b, √|a|, the larger of both."""
    i = tl.arange(0, N)
    x, y = tl.load(a + i), tl.load(b + i)
    tl.store(out + i, x + y)
    tl.store(out + N + i, x * y)
    tl.store(out + 2 * N + i, tl.sqrt(tl.abs(x).to(tl.float32)).to(tl.bfloat16))
    tl.store(out + 3 * N + i, tl.where(x < y, y, x))


@triton.jit
def rounding(values, out, N: tl.constexpr):
    """out = values, from fp32."""
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(values + i).to(tl.bfloat16))


@pytest.fixture
def unrepaired(monkeypatch):
    for name, original in BROKEN.items():
        if original is not None:
            monkeypatch.setattr(InterpreterBuilder, name, original)


def _product():
    a, b = torch.randn(2, 16, 16).bfloat16()
    out = torch.empty(16, 16)
    product[(1,)](a, b, out, 16)
    return out, a.float() @ b.float()


def test_a_product_is_right():
    made, wanted = _product()
    torch.testing.assert_close(made, wanted)


def test_a_product_is_wrong_without_the_repair(unrepaired):
    made, wanted = _product()
    assert ((made - wanted).abs() > 1e3).all()


def _awkward():
    """Halfway cases, large and tiny numbers, and what has no neighbours."""
    halves = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20])
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3e38, 1e-40])
    return torch.cat((halves, special, torch.randn(64 - 11) * 100))


def test_rounding_is_to_nearest_even():
    values = _awkward()
    out = torch.empty(64, dtype=torch.bfloat16)
    rounding[(1,)](values, out, 64)
    torch.testing.assert_close(out, values.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_rounding_is_wrong_without_the_repair(unrepaired):
    values = torch.randn(64)
    out = torch.empty(64, dtype=torch.bfloat16)
    rounding[(1,)](values, out, 64)
    assert not torch.equal(out, values.bfloat16())


def test_arithmetic_is_torchs():
    a, b = _awkward().bfloat16(), _awkward().flip(0).bfloat16()
    out = torch.empty(4, 64, dtype=torch.bfloat16)
    arithmetic[(1,)](a, b, out, 64)
    wanted = torch.stack((a + b, a * b, a.abs().sqrt(), torch.where(a < b, b, a)))
    torch.testing.assert_close(out, wanted, rtol=0, atol=0, equal_nan=True)
