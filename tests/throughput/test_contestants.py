"""The contestants of a method do the same work, in every precision and by both rules."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dfa_kernels.throughput import contestants, counting, lineup, rivals
from dfa_kernels.throughput.contestants import RULES, Setting
from dfa_kernels.throughput.networks import MLP, NeRF, Shape
from dfa_kernels.training import InputError

CPU = torch.device("cpu")
SHAPE = Shape(7, 3, 17, 5)
BP = ["bp-eager", "hand-written-bp"]
DFA = ["hand-written-dfa", "reference", "reference/torch.optim", "reference/backward"]


def losses(name, setting, steps=20):
    run = lineup.named(name).build(MLP.of(SHAPE), setting).run
    return torch.stack([run().detach() for _ in range(steps)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("names", [BP, DFA], ids=["bp", "dfa"])
def test_all_of_a_method_have_the_same_losses(names, rule):
    first, *others = (losses(name, Setting(CPU, "float64", rule)) for name in names)
    assert first[-1] < first[0]
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
@pytest.mark.parametrize("names", [BP, DFA], ids=["bp", "dfa"])
def test_the_same_in_low_precision(names, precision):
    if precision == "autocast":
        names = [n for n in names if not n.startswith("hand")]
    first, *others = (losses(name, Setting(CPU, precision), 5) for name in names)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0.03, atol=0.03)


def test_compiled_backpropagation_is_backpropagation():
    setting = Setting(CPU, compiler="aot_eager")
    torch.testing.assert_close(losses("bp-compiled", setting, 5), losses("bp-eager", setting, 5))


@pytest.mark.parametrize("name", [*BP, *DFA])
def test_the_counted_flops_are_those_that_torch_counts(name):
    contestant = lineup.named(name)
    task = MLP.of(SHAPE)
    built = contestant.build(task, Setting(CPU))
    work = counting.step(contestant.method, task.batch, task.sizes(), 4, 4, 1)
    assert counting.performed(built.run) == work.flops


def test_the_launches_are_operations_and_no_views(monkeypatch):
    # Whose optimizer is the fastest is timed, and may not be the same one at every depth.
    one = {"fused": contestants.IMPLEMENTATIONS["fused"]}
    monkeypatch.setattr(contestants, "IMPLEMENTATIONS", one)
    x, y = torch.ones(3, 4), torch.ones(4, 2)
    assert counting.launched(lambda: (x @ y).T.contiguous().relu()) == 3  # mm, clone, relu
    depth = [
        counting.launched(lineup.named("bp-eager").build(MLP.of(s), Setting(CPU)).run)
        for s in (Shape(4, d, 8, 3) for d in (1, 2, 3))
    ]
    assert depth[2] - depth[1] == depth[1] - depth[0] > 0


def test_what_is_held_for_the_feedback():
    held = {}
    for name in ("bp-eager", "hand-written-dfa", "reference"):
        lineup.contestants.dfa.backends.get("reference").matrices.clear()
        built = lineup.named(name).build(MLP.of(SHAPE), Setting(CPU))
        built.run()
        held[name] = built.feedback_bytes()
    assert held == {"bp-eager": 0, "hand-written-dfa": 4 * 5 * 17, "reference": 4 * 5 * 17}


def test_the_hand_written_say_what_they_are_not_written_for():
    for name in ("hand-written-bp", "hand-written-dfa"):
        with pytest.raises(NotImplementedError, match="not for autocast"):
            lineup.named(name).build(MLP.of(SHAPE), Setting(CPU, "autocast"))
        with pytest.raises(NotImplementedError, match="not for NeRF"):
            lineup.named(name).build(NeRF(3, 8, 5, 3), Setting(CPU))


def test_the_fastest_of_torchs_optimizers_is_taken(monkeypatch):
    speed = {"fused": 3.0, "foreach": 1.0, "one by one": 2.0}
    monkeypatch.setattr(
        contestants, "rounds", lambda *a, **k: {n: [t] * 5 for n, t in speed.items()}
    )
    net = nn.Linear(3, 2)
    assert Setting(CPU).optimizer(net).defaults["foreach"] is True
    speed["foreach"] = 9.0
    assert Setting(CPU).optimizer(net).defaults["foreach"] is False
    speed["one by one"] = 9.0
    before = [p.clone() for p in net.parameters()]
    assert Setting(CPU, rule="adamw").optimizer(net).defaults["fused"] is True
    assert all(map(torch.equal, before, net.parameters()))


def test_no_more_than_the_first_parameters_are_copied_for_that(monkeypatch):
    stepped = []

    def timed(steps, *_, **__):
        (optimizer,) = {step.__self__ for name, step in steps.items() if name == "foreach"}
        stepped.append([p.numel() for p in optimizer.param_groups[0]["params"]])
        return {name: [1.0] * 5 for name in steps}

    monkeypatch.setattr(contestants, "rounds", timed)
    monkeypatch.setattr(contestants, "COPIED", 7)
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))
    Setting(CPU).optimizer(net)
    assert stepped == [[6, 2]]


def test_an_implementation_that_cannot_run_is_not_chosen(monkeypatch):
    short = {"fused": [], "foreach": [2.0] * 5, "one by one": [3.0] * 5}
    monkeypatch.setattr(contestants, "rounds", lambda *a, **k: short)
    assert Setting(CPU).optimizer(nn.Linear(3, 2)).defaults["foreach"] is True


# Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["refrence", "reference/", "reference/fast", "x/torch.optim", ""])
def test_an_unknown_name_is_told_what_is_known(name):
    with pytest.raises(InputError, match="known are bp-eager, bp-compiled.*reference") as error:
        lineup.named(name)
    assert repr(name) in str(error.value)


def test_who_takes_part_where_nobody_is_named():
    names, notes = lineup.usual(CPU)
    assert names[:6] == list(lineup.FIXED)
    assert names[6:] == ["reference", "reference/torch.optim", "reference/backward"]
    assert [n.split()[0] for n in notes] == ["triton", "cuda", "triton+cuda"]
    assert all("cannot run on cpu: " in n and n.endswith(".") and "\n" not in n for n in notes)


@pytest.fixture
def registry():
    backends = lineup.backends
    before = set(backends.available("cpu"))
    yield backends
    for name in set(backends.available("cpu")) - before:
        backends.unregister(name)
    sys.modules.pop("odd_backends", None)


def test_a_third_partys_backend_by_a_module(registry):
    assert lineup.bring(["odd_backends"]) == []
    assert lineup.named("odd-steady").method == "dfa"
    names, _ = lineup.usual(CPU)
    assert "odd-raiser" in names
    built = lineup.named("odd-steady").build(MLP.of(SHAPE), Setting(CPU))
    built.run()
    assert built.feedback_bytes() is None  # what it keeps cannot be seen
    torch.testing.assert_close(
        losses("odd-steady", Setting(CPU)), losses("reference", Setting(CPU))
    )


def test_a_third_partys_backend_by_an_entry_point(registry, monkeypatch):
    import odd_backends

    for name in odd_backends.BACKENDS:
        registry.unregister(name)
    backend = odd_backends.BACKENDS["odd-steady"]
    points = [
        SimpleNamespace(name="theirs", value="theirs:Backend", load=lambda: backend),
        SimpleNamespace(name="kind", value="kind:Backend", load=lambda: lambda: None),
        SimpleNamespace(name="broken", value="broken:x", load=lambda: odd_backends.raises()),
        SimpleNamespace(name="reference", value="ours:x", load=lambda: 1 / 0),
    ]
    monkeypatch.setattr(lineup, "entry_points", lambda group: points)
    notes = lineup.bring([])
    assert "theirs" in registry.available("cpu")
    assert len(notes) == 2
    assert "backend kind of kind:Backend failed: TypeError" in notes[0]
    assert "ValueError: the card fell." in notes[1]


def test_a_module_that_cannot_be_imported_is_one_sentence():
    with pytest.raises(InputError, match="--import no_such_module failed: ModuleNotFoundError"):
        lineup.bring(["no_such_module"])


# Other packages -----------------------------------------------------------------------------------


class _Points(nn.Module):
    """As much of a package as is asked for; it keeps a feedback matrix as TinyDFA does."""

    def __init__(self, points=()):
        super().__init__()
        self.points = list(points)
        self.feedback_matrix = torch.zeros(5, 17)

    def forward(self, x):
        return x


def test_a_package_that_is_installed_takes_part(monkeypatch):
    layer = type("Layer", (nn.Identity,), {})
    monkeypatch.setitem(sys.modules, "tinydfa", SimpleNamespace(DFALayer=layer, DFA=_Points))
    built = rivals.tinydfa(MLP.of(SHAPE), Setting(CPU))
    first = built.run()
    assert [built.run() for _ in range(5)][-1] < first
    assert built.feedback_bytes() == 4 * 5 * 17


@pytest.mark.parametrize("name", ["tinydfa", "biotorch"])
def test_a_package_that_is_not_installed_is_an_import_error(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "tinydfa", None)
    monkeypatch.setitem(sys.modules, "biotorch", None)
    with pytest.raises(ImportError):
        lineup.named(name).build(MLP.of(SHAPE), Setting(CPU))
