"""An environment variable as a step looks it up is what os.environ says, whoever sets it."""

import os

import pytest

from dfa_kernels.backends.variable import Variable

NAME = "DFA_KERNELS_OF_A_TEST"


@pytest.mark.parametrize("value", [None, "", "stored", "δ", "a=b", "\udc80"])
def test_it_is_what_the_environment_holds(value, monkeypatch):
    variable = Variable(NAME)
    assert variable.get() is None is variable.held()
    if value is not None:
        monkeypatch.setenv(NAME, value)
    assert variable.get() == os.environ.get(NAME) == value
    held = variable.held()
    assert (held is None) == (value is None)
    monkeypatch.setenv(NAME, "another")
    assert variable.get() == "another"
    assert variable.held() != held
    monkeypatch.delenv(NAME)
    assert variable.get() is None
