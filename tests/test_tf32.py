"""tf32 is allowed by whichever of torch's settings says so; the older raises after the newer."""

import pytest
import torch

from dfa_kernels.backends.tf32 import tf32_allowed


@pytest.fixture(autouse=True)
def untouched():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = torch.backends.fp32_precision = "none"


def allow(allowed):
    torch.backends.cuda.matmul.allow_tf32 = allowed


def precision(allowed):
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def of_products(allowed):
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"


def of_everything(allowed):
    torch.backends.fp32_precision = "tf32" if allowed else "ieee"


@pytest.mark.parametrize("setting", [allow, precision, of_products, of_everything])
def test_each_setting_is_followed(setting):
    assert not tf32_allowed()
    for allowed in (True, False, True):
        setting(allowed)
        assert tf32_allowed() is allowed


def test_the_older_setting_raises_after_the_newer():
    """Else this could be read instead."""
    of_products(True)
    with pytest.raises(RuntimeError, match="legacy and new APIs"):
        torch.backends.cuda.matmul.allow_tf32  # noqa: B018


def test_the_narrower_of_the_newer_settings_decides():
    of_everything(True)
    of_products(False)
    assert not tf32_allowed()


@pytest.mark.parametrize(
    ("hip", "capability", "compiled"),
    [(None, (9, 0), True), ("6.4", (9, 4), True), ("6.4", (9, 0), False), ("6.4", (11, 0), False)],
)
def test_triton_compiles_it_for_few_of_amds(hip, capability, compiled, monkeypatch):
    rules = pytest.importorskip("dfa_kernels.backends.triton.rules")
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    rules._compiles_tf32.cache_clear()
    allow(True)
    assert rules.precision(torch.float32) == ("tf32" if compiled else "ieee")
    rules._compiles_tf32.cache_clear()
