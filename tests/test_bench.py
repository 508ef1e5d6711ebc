"""The contestants of bench.step do the same work, and the command writes what it says."""

import json

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the extra: dfa_kernels[bench]")

from bench import step
from bench.contestants import CONTESTANTS, Shape
from bench.memory import Peak
from dfa_kernels.throughput import counting

SHAPE = Shape(7, 3, 17, 5)
METHODS = {
    "bp": ["backpropagation", "hand-written backpropagation"],
    "dfa": [
        "hand-written DFA",
        "dfa_kernels",
        "dfa_kernels, torch.optim",
        'dfa_kernels, update="backward"',
    ],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_contestant_of_a_method_has_the_same_losses(method):
    losses = {}
    for name in METHODS[method]:
        run = CONTESTANTS[name](SHAPE)
        losses[name] = torch.stack([run().detach() for _ in range(30)])
    first = losses.pop(METHODS[method][0])
    assert first[-1] < first[0]
    for other in losses.values():
        torch.testing.assert_close(other, first, rtol=1e-5, atol=1e-6)


def test_the_flops_are_those_of_the_formula():
    n, depth, width, outputs = SHAPE
    forward = 2 * n * (784 * width + (depth - 1) * width**2 + width * outputs)
    upward = 2 * n * ((depth - 1) * width**2 + width * outputs)  # every Wᵀδ but the first layer's
    projection = 2 * n * outputs * width
    assert counting.performed(CONTESTANTS["backpropagation"](SHAPE)) == 2 * forward + upward
    for name in METHODS["dfa"]:
        assert counting.performed(CONTESTANTS[name](SHAPE)) == 2 * forward + projection, name


def test_the_command_writes_a_table_a_figure_and_the_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "bench.memory.peak", lambda *_: Peak(1_000_000, (900_000, 1_100_000), 800_000)
    )
    only = ["backpropagation", "hand-written DFA", "dfa_kernels", "TinyDFA"]
    given = ["--shape", str(SHAPE), "--seconds", "0", "--threads", "1", "--out", str(tmp_path)]
    assert step.main([*given, "--only", *only]) == 0
    (shape,) = json.loads((tmp_path / "step.json").read_text())["shapes"]
    assert shape["rounds"] == 9
    assert set(shape["rows"]) | set(shape["missing"]) == set(only)
    assert shape["rows"]["dfa_kernels"]["in_use_bytes"] == 800_000
    table = (tmp_path / "step.md").read_text()
    assert table in capsys.readouterr().out
    assert f"{shape['rows']['dfa_kernels']['ratio']:.2f}" in table
    assert (tmp_path / "step.png").stat().st_size > 10_000
