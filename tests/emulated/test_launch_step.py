"""`bench.launch step`: the host's time of whole steps whose launches start nothing."""

import re

import pytest
import torch

from bench import launch, launch_step
from dfa_kernels import backends
from dfa_kernels.throughput.networks import MLP


@pytest.mark.parametrize("precision", launch_step.PRECISIONS)
def test_a_whole_step_is_timed_beside_its_rival(precision, tmp_path, monkeypatch):
    monkeypatch.setattr(launch_step, "TASKS", {"two layers": MLP(3, 4, 2, 5, 6)})
    monkeypatch.setattr(launch_step, "PRECISIONS", (precision,))
    rivals = {who: c for who, c in launch_step.CONTESTANTS.items() if "compile" not in who}
    monkeypatch.setattr(launch_step, "CONTESTANTS", rivals)
    assert launch.main(["step", "--repeats", "2", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "launch_step.md").read_text()
    assert re.search(
        r"^and torch.add of two tensors of one element took [\d.]+ \(.+\) µs\.$", page, re.M
    )
    rows = re.findall(r"^\| two layers \| (\S+) \| (.+?) \| (\d+) \| ([\d.]+)", page, re.MULTILINE)
    expected = ["ours", 'ours, update="backward"', "eager backpropagation"]
    if precision == "float32":
        expected.append("no update")
    assert [(how, who) for how, who, *_ in rows] == [(precision, who) for who in expected]
    ours, in_backward, theirs, *none = (int(kernels) for *_, kernels, _ in rows)
    assert in_backward == ours
    # All of ours but the update and its count.
    assert none == ([ours - 2] if precision == "float32" else [])
    # Ours: products and activations (5), loss (2), its backward (2) from a one, a count, `update`;
    # cast are the weights at once, the input, the logits and their gradient.
    assert ours == 5 + 2 + 3 + 1 + 1 + (4 if precision == "autocast" else 0)
    assert theirs > ours
    assert all(float(us) > 0 for *_, us in rows)
    assert launch_step.NAME not in backends.available("cpu")


def test_what_computes_nothing_is_not_counted():
    with launch_step.Counting() as counting:
        x = torch.empty(3, 4)
        x.t(), x.view(12), x.detach(), x[0], x.new_empty(2)
        assert counting.count == 0
        x.add_(1), x + x, torch._foreach_add_([x, x], 1)
    assert counting.count == 3
