"""Philox4x32-10 against the published known answers, and against plain Python integers."""

import definition
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfa_kernels.feedback import philox

# Random123's kat_vectors, philox4x32 10: key, counter, output.
KNOWN = [
    ((0, 0), (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
WORD = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("key", "counter", "answer"), KNOWN)
def test_known_answers(key, counter, answer):
    wanted = [int(w, 16) for w in answer.split()]
    assert [int(w) for w in philox(key, counter)] == wanted
    assert list(definition.philox(key, counter)) == wanted


@settings(max_examples=100, deadline=None)
@given(key=st.tuples(WORD, WORD), counter=st.tuples(WORD, WORD, WORD, WORD))
def test_equals_python_integers(key, counter):
    assert tuple(int(w) for w in philox(key, counter)) == definition.philox(key, counter)


def test_broadcasts_its_counter():
    words = philox((7, 9), (torch.arange(5), torch.arange(3)[:, None], 2, 0))
    assert [w.shape for w in words] == [(3, 5)] * 4
    for k in range(3):
        for block in range(5):
            one = definition.philox((7, 9), (block, k, 2, 0))
            assert tuple(int(w[k, block]) for w in words) == one
