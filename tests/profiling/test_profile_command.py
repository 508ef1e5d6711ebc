"""`dfa-kernels profile` from the command line: what it leaves, and what it refuses."""

import io
import json

import pytest

from dfa_kernels import backends, cli
from dfa_kernels.throughput.result import Ceilings

for needed in ("jinja2", "matplotlib", "numpy", "rich"):
    pytest.importorskip(needed, reason="needs the extra: dfa_kernels[bench]")

from rich.console import Console  # noqa: E402

from dfa_kernels.profiling import command, picture, report  # noqa: E402
from dfa_kernels.profiling.parts import Line  # noqa: E402
from dfa_kernels.profiling.report import Profile  # noqa: E402
from dfa_kernels.training import extras  # noqa: E402

MODELS = """
from torch import nn
import dfa_kernels as dfa

def blocks():
    block = lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.Sequential(nn.Embedding(20, 8), block(), block(), nn.Linear(8, 20))
    return dfa.DFA(net, points=["1", "2"], error_at="3")

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = dfa.Linear(6, 7, activation="gelu"), dfa.Linear(7, 1)

    def forward(self, x, y):
        return {"out": self.head(self.first(x * y))}

def with_loss():
    return dfa.DFA(Two(), error_at="head"), lambda output: output["out"].square().mean()

def two():
    return dfa.DFA(Two(), error_at="head")

def scalar_regression():
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 1))

def number():
    return 3

def fails():
    raise KeyError("no such\\nweights")

def frozen():
    return nn.Linear(6, 2).requires_grad_(False)

class Dies(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        Dies.calls += 1
        if Dies.calls > 3:
            raise RuntimeError("out of luck")
        return self.layer(x)

attribute = 5
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A folder with a user's module, ceilings that nobody measures, and one timed step."""
    (tmp_path / "their_models.py").write_text(MODELS)
    (tmp_path / "their_broken_models.py").write_text("import torch\nx = 1 +\n")
    (tmp_path / "their_missing_models.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("their_models", "their_broken_models", "their_missing_models"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    rates = dict.fromkeys(("float32", "bfloat16", "float64"), 0.1)
    monkeypatch.setattr(command.ceilings, "measure", lambda *_: Ceilings(20.0, rates, 1.0))
    monkeypatch.setattr(command, "_SECONDS", 0.0)


SHAPE = ("--shape", "4,2,6,3", "--device", "cpu", "--steps", "2")


def profile(*arguments):
    return cli.main(["profile", *arguments])


def test_the_built_in_network_by_every_method(tmp_path, capsys):
    assert profile(*SHAPE, "--method", "dfa", "bp", "shallow", "--out", "made/here") == 0
    printed = capsys.readouterr().out
    for word in ("update + optimizer", "backward", "projection", "Python", "the profiled steps"):
        assert word in printed
    out = tmp_path / "made" / "here"
    assert sorted(p.name for p in out.iterdir()) == [
        "profile.json", "profile.png", "trace-bp.json", "trace-dfa.json", "trace-shallow.json",
    ]  # fmt: skip
    assert (out / "profile.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "profile.json").read_text())
    assert found["kind"] == "dfa-kernels profile" and found["options"]["shape"] == "4,2,6,3"
    dfa, bp = found["methods"]["dfa"], found["methods"]["bp"]
    assert dfa["backend"] == "reference" and dfa["fused"]
    assert dfa["optimizer"] == "dfa_kernels.optim.SGD"
    assert bp["optimizer"] == "torch.optim.SGD" and not bp["fused"]
    parts = {line["part"]: line for line in dfa["parts"]}
    assert list(parts) == ["forward", "error", "projection", "backward", "update"]
    assert parts["update"]["flops"] == 2 * 4 * (784 * 6 + 6 * 6 + 6 * 3)
    assert all(line["ms"] > 0 for line in dfa["parts"])
    assert {line["layer"] for line in dfa["layers"]} >= {"hidden1", "hidden2", "output"}
    trace = json.loads((out / "trace-dfa.json").read_text())
    names = {e["name"] for e in trace["traceEvents"]}
    assert {"dfa/forward/hidden1", "dfa/projection/hidden1", "dfa/update/output"} <= names
    assert "host_name" not in trace and str(tmp_path) not in (out / "trace-dfa.json").read_text()


def line(part, ms, floor, bound="memory"):
    return Line(part, "", ms, (ms, ms), 0, 0, floor, bound)


def test_a_floor_that_is_beaten_has_no_gap_in_the_table():
    """Nor does it count in the step's floor with more than the time that was taken."""
    taken = (line("forward", 3.0, 1.0, "products"), line("optimizer", 4.0, 10.0))
    profile = Profile("bp", "none", "SGD", False, 8.0, (8.0, 8.0), 9.0, 1.0, taken, (), ())
    assert profile.floor_ms == 5.0
    console = Console(file=io.StringIO(), width=80)
    report.print_tables(console, profile, Ceilings(), "bp")
    said = [words for row in console.file.getvalue().splitlines() if (words := row.split())]
    rows = {words[0]: words for words in said}
    assert rows["forward"][-3:] == ["1.000", "products", "2.000"]
    assert rows["optimizer"][-3:] == ["10.00", "memory", "–"]
    assert rows["step"][-2:] == ["5.000", "3.000"]
    assert " ".join(rows["gap"]) == "gap –: it took less than its floor, which is none then"


@pytest.mark.parametrize(
    ("ms", "floor", "said"),
    [
        (105.218, 61.0, "105.22 ms · 1.7×"),
        (0.268, 1e-5, "0.27 ms"),
        (0.268, 2e-3, "0.27 ms · 134.0×"),
        (3.0, 6.99, "3.00 ms"),
        (3.0, None, "3.00 ms"),
    ],
)
def test_the_picture_compares_with_floors_worth_the_name(ms, floor, said):
    assert picture.caption(line("forward", ms, floor)) == said


def test_a_second_run_replaces_the_first(tmp_path):
    for optimizer in ("sgd", "adamw"):
        assert profile(*SHAPE, "--optimizer", optimizer) == 0
    found = json.loads((tmp_path / "runs" / "profile" / "profile.json").read_text())
    assert found["methods"]["dfa"]["optimizer"] == "dfa_kernels.optim.AdamW"


@pytest.mark.parametrize(
    "arguments",
    [
        ("blocks", "--batch", "2,5:20", "--method", "dfa", "bp"),
        ("with_loss", "--batch", "3,6", "3,6", "--dtype", "float64"),
        ("scalar_regression", "--batch", "3,6", "--no-fused"),
        ("scalar_regression", "--batch", "2,3,6", "--dtype", "autocast"),
        ("scalar_regression", "--batch", "3,6", "--backend", "reference", "--seed", "7"),
    ],
)
def test_a_network_of_ones_own(tmp_path, arguments):
    name, *rest = arguments
    assert profile("--module", f"their_models:{name}", *rest, "--steps", "1", "--out", "made") == 0
    found = json.loads((tmp_path / "made" / "profile.json").read_text())
    taken = found["methods"]["dfa"]
    layers = {line["layer"] for line in taken["layers"]}
    assert layers >= {"with_loss": {"first", "head"}, "blocks": {"1.self_attn", "3"}}.get(
        name, {"0"}
    )
    assert taken["ms"] > 0 and all(line["floor_ms"] is not None for line in taken["parts"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shape 4,2", "'4,2' is not a shape"),
        ("--shape 4,2,0,3", "must be at least 1"),
        ("--shape 1,1,1,1 --module a:b", "--shape is of the built-in network"),
        ("--batch 3,6", "--batch is the shape of what --module's network is given"),
        ("--module their_models:two", "--module their_models:two needs --batch"),
        ("--module their_models:two --batch 3x6", "--batch '3x6' is not a shape"),
        ("--module their_models:two --batch 9999999,99999999", "would be 999,999,890,000,001"),
        ("--module their_models --batch 3,6", "is not PACKAGE.MODULE:FACTORY"),
        ("--module nowhere:make --batch 3,6", "there is no module 'nowhere'"),
        ("--module their_models:nothing --batch 3,6", "has no function or class 'nothing'"),
        ("--module their_models:attribute --batch 3,6", "has no function or class 'attribute'"),
        ("--module their_models:number --batch 3,6", "returned int: it must return an nn.Module"),
        ("--module their_models:fails --batch 3,6", "could not be made: KeyError: 'no such"),
        ("--module their_models:frozen --batch 3,6", "has no parameters to train"),
        ("--module their_models:two --batch 3,6 3,6", "returned a dict: without a loss"),
        ("--module their_models:scalar_regression --batch 3,7", "refused its first step by dfa: "),
        ("--module their_broken_models:make --batch 3,6", "SyntaxError: "),
        ("--module their_missing_models:make --batch 3,6", "ModuleNotFoundError: No module named"),
        ("--module their_models:Dies --batch 3,6 --method bp", "a step by bp died: RuntimeError: "),
        ("--method magic", "--method 'magic' is unknown: known are dfa, bp, shallow"),
        ("--backend nonsense", "unknown backend 'nonsense': registered are"),
        ("--backend cuda", "backend 'cuda', named by --backend, cannot run on cpu"),
        ("--optimizer lion", "--optimizer 'lion' is unknown"),
        ("--dtype int8", "--dtype 'int8' is unknown"),
        ("--device nonsense", "--device 'nonsense' cannot be used"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--steps many", "invalid int value: 'many'"),
        ("--seed -1", "--seed must be in"),
        ("--out their_models.py", "--out their_models.py is a file, not a folder"),
        ("--out their_models.py/in", "cannot be made"),
    ],
)
def test_bad_input_is_one_sentence(capsys, tmp_path, arguments, message):
    if "--device" not in arguments:
        arguments += " --device cpu"
    before = {p.name for p in tmp_path.iterdir()}
    try:
        status = profile(*arguments.split())
    except SystemExit as left:
        status = left.code
    printed = capsys.readouterr()
    assert status == 2 and message in printed.err
    assert printed.err.count("\n") == 1 and printed.err.startswith("dfa-kernels profile: ")
    left = {p.name for p in tmp_path.iterdir()} - before - {"__pycache__"}
    assert not left or not any(p.is_file() for p in (tmp_path / "runs").rglob("*"))


class Tired:
    """A backend that dies in the middle."""

    calls = 0

    def unavailable(self, device):
        return None

    def describe(self):
        return "tired"

    def project(self, *given):
        return backends.get("reference").project(*given)

    def step_(self, *given):
        self.calls += 1
        if self.calls > 6:
            raise RuntimeError("the card fell out\nof its slot")
        backends.get("reference").step_(*given)


def test_a_backend_that_dies_is_a_sentence_and_the_other_methods_go_on(tmp_path, capsys):
    backends.register("tired", Tired())
    try:
        assert profile(*SHAPE, "--backend", "tired", "--method", "dfa", "bp") == 1
    finally:
        backends.unregister("tired")
    said = capsys.readouterr().err
    assert "dfa was not profiled: a step by dfa died: RuntimeError: the card fell out (" in said
    found = json.loads((tmp_path / "runs" / "profile" / "profile.json").read_text())
    assert list(found["methods"]) == ["bp"] and "the card fell out" in found["failed"]["dfa"]


def test_work_that_cannot_be_counted_is_a_note(tmp_path, monkeypatch):
    def refuses(subject):
        raise NotImplementedError("no such tensor")

    monkeypatch.setattr(command.work, "count", refuses)
    assert profile(*SHAPE) == 0
    found = json.loads((tmp_path / "runs" / "profile" / "profile.json").read_text())
    taken = found["methods"]["dfa"]
    assert any("NotImplementedError: no such tensor" in note for note in taken["notes"])
    assert taken["parts"] and all(line["floor_ms"] is None for line in taken["parts"])


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "rich" else object())
    assert profile(*SHAPE) == 2
    assert 'needs rich: pip install "dfa_kernels[bench]"' in capsys.readouterr().err


def test_a_step_that_is_too_small_to_be_taken_apart_says_so(tmp_path, monkeypatch):
    class Instant:
        times = (1e-9, 1e-9)

    monkeypatch.setattr(command, "_timed", lambda subject: Instant)
    monkeypatch.setattr(command.Measurement, "merge", staticmethod(lambda measured: measured[:1]))
    assert profile(*SHAPE) == 0
    found = json.loads((tmp_path / "runs" / "profile" / "profile.json").read_text())
    taken = found["methods"]["dfa"]
    assert taken["python_ms"] == 0 and any("too small" in note for note in taken["notes"])
