"""The study around a task of four numbers: rows, grid, checkpoints, refusals."""

import argparse
import json
import math
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dfa_kernels as dfa
from bench.grid import Choice, beyond
from bench.paper import rows, training
from bench.paper.study import Study
from bench.paper.task import Metric, Problem, Run, Task
from dfa_kernels.training import InputError


class Regression(Run):
    def __init__(self, problem, method, rate, seed):
        super().__init__(seed)
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 2))
        self.net = dfa.DFA(net, method=method)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=rate)
        self.scheduler = torch.optim.lr_scheduler.LinearLR(self.optimizer, total_iters=10)
        self.x, self.y = problem.x, problem.y

    def loss(self):
        batch = torch.randint(len(self.x), (8,), generator=self.generator)
        return F.mse_loss(self.net(self.x[batch]), self.y[batch])

    def scores(self, split):
        self.net.eval()
        with torch.no_grad():
            return {"mse": F.mse_loss(self.net(self.x), self.y).item()}

    def alignment(self):
        return dfa.alignment(self.net, F.mse_loss, self.x, self.y)


class FourNumbers(Problem):
    model, data = "mlp", "linear"
    metrics = (Metric("mse", higher_is_better=False, digits=4),)
    validate_every = 5

    def __init__(self, steps=12, keep_best=True):
        self.steps, self.keep_best, self.description = steps, keep_best, {"width": 16}
        self.x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        self.y = self.x[:, :2] * 2

    def run(self, method, rate, seed):
        return Regression(self, method, rate, seed)

    def draw(self, runs, folder):
        path = folder / "methods.txt"
        path.write_text(" ".join(runs))
        return [path]


class Toy(Task):
    name = "toy"
    models: ClassVar = {"mlp": "a perceptron"}
    data: ClassVar = {"linear": "a linear map"}

    def problem(self, options):
        return FourNumbers()

    def rates(self, options):
        return (1e-2, 1e-9)


def options(tmp_path, **changed):
    asked = {
        "method": ["dfa", "bp", "shallow"], "lr": None, "seeds": 2, "seed": 3, "quick": True,
        "out": tmp_path, "json": tmp_path / "rows.json", "overwrite": False,
    } | changed  # fmt: skip
    return argparse.Namespace(**asked)


@pytest.fixture
def brief(monkeypatch):
    times = Study._times
    monkeypatch.setattr(Study, "_times", lambda self, seconds: times(self, 0.0))


def test_a_study_leaves_a_row_for_each_method_and_metric(tmp_path, brief):
    asked = options(tmp_path)
    made = Study(Toy(), FourNumbers(), asked).run()
    assert [row.method for row in made] == ["dfa", "bp", "shallow"]
    loaded = json.loads(asked.json.read_text())
    for row in loaded:
        assert row["task"] == "toy" and row["seeds"] == 2 and len(row["values"]) == 2
        assert row["mean"] == pytest.approx(sum(row["values"]) / 2)
        assert row["std"] == pytest.approx(abs(row["values"][0] - row["values"][1]) / 2**0.5)
        assert row["lr"] == 1e-2 and set(row["grid"]) == {"0.01", "1e-09"}
        assert row["step_ms"] > 0 and len(row["step_ratio"]) == 3
    assert loaded[1]["step_ratio"] == [1, 1, 1]
    assert [row["feedback_bytes"] for row in loaded] == [2 * 16 * 4, 0, 0]
    assert set(loaded[0]["alignment"]) == {"1"} and loaded[1]["alignment"] == {}
    assert (tmp_path / "mlp-linear" / "methods.txt").read_text() == "dfa bp shallow"


class Halved(FourNumbers):
    """Trains towards half of what it is scored on, unless it is the "whole" one."""

    def __init__(self, target="half"):
        super().__init__()
        self.target, self.description = target, {"target": target}

    def variants(self):
        return {"half": self, "whole": Halved("whole")}

    def run(self, method, rate, seed):
        run = Regression(self, method, rate, seed)
        if self.target == "half":
            run.loss = lambda: F.mse_loss(run.net(self.x), self.y / 2)
        return run


def test_the_grid_crosses_the_rates_with_the_variants_for_each_method_alike(tmp_path, brief):
    made = Study(Toy(), Halved(), options(tmp_path, lr=[1e-1, 1e-9])).run()
    for row in made:
        assert set(row.grid) == {"0.1 half", "1e-09 half", "0.1 whole", "1e-09 whole"}
        assert row.grid["0.1 whole"] == min(row.grid.values())
        assert (row.lr, row.variant) == (1e-1, "whole")
        assert row.description == {"target": "whole"} and row.seeds == 2


class Wanting(FourNumbers):
    """Of every method the best rate is ``best``; what a run scores is how far from it it is."""

    def __init__(self, best, variant="a"):
        super().__init__(steps=1)
        self.best, self.variant, self.description = best, variant, {"variant": variant}

    def variants(self):
        return {"a": self, "b": Wanting(self.best, "b")}

    def run(self, method, rate, seed):
        run = Regression(self, method, rate, seed)
        far = abs(math.log(rate / self.best)) + (self.variant == "a")
        run.scores = lambda split: {"mse": far}
        return run


class Ladder(Toy):
    def rates(self, options):
        return (1e-3, 3e-3, 1e-2)


@pytest.mark.parametrize(
    ("best", "more"),
    [
        (3e-3, []),
        (3e-2, ["0.03", "0.1"]),
        (1e-4, ["3e-05", "0.0001", "0.0003"]),
        (1e9, ["0.03", "0.1", "0.3", "1", "3", "10"]),
    ],
)
def test_the_grid_goes_on_while_its_edge_is_the_best(tmp_path, brief, best, more):
    asked = options(tmp_path, quick=False, method=["dfa", "bp"])
    for row in Study(Ladder(), Wanting(best), asked).run():
        inner = [f"{rate:g} {variant}" for variant in "ab" for rate in (1e-3, 3e-3, 1e-2)]
        assert set(row.grid) == {*inner, *(f"{rate} b" for rate in more)}
        rates = [float(label.split()[0]) for label in row.grid if label.endswith("b")]
        assert rates == sorted(rates) and list(row.grid)[:3] == inner[:3]
        assert row.at_the_edge == (best == 1e9) and row.score.endswith("†") == row.at_the_edge
        assert row.variant == "b" and (row.at_the_edge or row.lr == best)


@pytest.mark.parametrize("asked", [{"quick": True}, {"lr": [1e-3, 1e-2]}, {"lr": [1e-2]}])
def test_a_grid_that_was_asked_for_stays_what_it_is(tmp_path, brief, asked):
    asked = options(tmp_path, **{"quick": False, "method": ["dfa"]} | asked)
    (row,) = Study(Ladder(), Wanting(1e9), asked).run()
    rates = asked.lr or [1e-3, 3e-3, 1e-2]
    assert len(row.grid) == (2 * len(rates) if len(rates) > 1 else 2)
    assert row.lr == 1e-2 and row.at_the_edge == (len(rates) > 1)


@pytest.mark.parametrize("rate", [1e-2, 0.0123456789])
def test_a_rate_of_many_digits_is_known_to_be_at_the_edge(tmp_path, brief, rate):
    asked = options(tmp_path, method=["dfa"], lr=[rate, 1e-9])
    (row,) = Study(Toy(), FourNumbers(), asked).run()
    assert row.lr == rate and row.at_the_edge


def test_where_every_run_diverges_the_grid_ends(tmp_path, brief):
    asked = options(tmp_path, quick=False, method=["dfa"], seeds=1)
    (row,) = Study(Ladder(), Wanting(math.nan), asked).run()
    assert len(row.grid) == 6


@pytest.mark.parametrize(
    ("rates", "best", "wanted"),
    [
        ((3e-4, 1e-3, 3e-3, 1e-2), 1e-2, 3e-2),
        ((3e-4, 1e-3, 3e-3, 1e-2), 3e-4, 1e-4),
        ((0.005, 0.02, 0.05, 0.1), 0.1, 0.25),
        ((2.5e-3, 5e-3, 1e-2), 1e-2, 2e-2),
        ((1e-3, 1e-2), 1e-3, 1e-4),
    ],
)
def test_a_series_goes_on_as_it_went(rates, best, wanted):
    scores = {Choice(rate): 0.0 for rate in rates} | {Choice(1e9, "other"): 0.0}
    assert beyond(scores, Choice(best)) == Choice(wanted)
    assert beyond(scores, Choice(sorted(rates)[1])) in (None, Choice(1e-1))
    assert Choice.of(Choice(best, "other").label) == Choice(best, "other")


def test_a_finished_study_is_read_and_not_trained_again(tmp_path, brief, monkeypatch):
    first = Study(Toy(), FourNumbers(), options(tmp_path)).run()
    monkeypatch.setattr(Regression, "scores", lambda *_: pytest.fail("trained again"))
    again = Study(Toy(), FourNumbers(), options(tmp_path)).run()
    assert [row.values for row in again] == [row.values for row in first]


@pytest.mark.parametrize("keep_best", [True, False])
@pytest.mark.parametrize("at", [1, 5, 7, 12])
def test_a_run_stopped_anywhere_goes_on_with_the_same_bits(tmp_path, at, keep_best):
    problem = FourNumbers(keep_best=keep_best)
    whole, _ = training.train(problem, "dfa", 1e-2, 0, tmp_path / "whole")
    steps = []
    with pytest.raises(training.Stopped):
        training.train(
            problem, "dfa", 1e-2, 0, tmp_path / "cut",
            watch=lambda step, loss: steps.append(step), stop=lambda: steps[-1] == at,
        )  # fmt: skip
    torch.manual_seed(99)  # whatever else happened meanwhile
    resumed, run = training.train(
        problem, "dfa", 1e-2, 0, tmp_path / "cut", lambda step, loss: steps.append(step)
    )
    assert steps == list(range(1, 13))
    for name in ("test", "validation", "loss", "alignment", "selection"):
        assert resumed[name] == whole[name], name
    assert run is not None and not (tmp_path / "cut.ckpt").exists()


def test_a_run_of_another_description_is_refused(tmp_path):
    training.train(FourNumbers(), "dfa", 1e-2, 0, tmp_path / "run")
    with pytest.raises(InputError, match=r"run\.done was made with steps 12 and not 13"):
        training.train(FourNumbers(steps=13), "dfa", 1e-2, 0, tmp_path / "run")
    wider = FourNumbers()
    wider.description = {"width": 17}
    with pytest.raises(InputError, match="made with width 16 and not 17"):
        training.train(wider, "dfa", 1e-2, 0, tmp_path / "run")


def test_rows_of_other_models_stay_in_the_file(tmp_path):
    path = tmp_path / "rows.json"
    a = rows.Row("graph", "gcn", "cora", "dfa", "accuracy", 80.0, 0.5, 3)
    b = rows.Row("graph", "gat", "cora", "dfa", "accuracy", 81.0, 0.5, 3)
    rows.write(path, [a])
    rows.write(path, [b])
    a.mean = 79.0
    rows.write(path, [a])
    assert [(row.model, row.mean) for row in rows.read(path)] == [("gcn", 79.0), ("gat", 81.0)]


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "[1]", '[{"task": "graph"}]'])
def test_what_is_no_result_file_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(InputError, match="rows.json is no result file"):
        rows.write(path, [])
    assert path.read_text() == text
