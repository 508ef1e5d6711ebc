"""The recommender task from its command line: a study by every method, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.paper import __main__ as command
from bench.paper import rows, training
from bench.paper.options import Parser, add, check
from bench.paper.recommender import TASK
from bench.paper.recommender import __main__ as more
from bench.paper.recommender.fields import Data, Split
from bench.paper.recommender.models import Sizes
from bench.paper.recommender.prediction import FROZEN, Prediction, Training
from bench.paper.study import Study

METHODS = ["dfa", "bp", "shallow", FROZEN]
RESPONSE = Path(__file__).parents[3] / "shared/data/response"


def problem(model="deepfm", epochs=3, **changed):
    """Three fields, of which the first says most and two say the rest by their product."""
    draw = np.random.default_rng(0)
    ids = draw.integers(2, 6, (900, 3)).astype(np.int32)
    odds = (ids[:, 0] > 3) ^ (ids[:, 1] > 3)
    said = np.where(ids[:, 0] > 3, 0.75, 0.25) + np.where(odds, 0.2, -0.2)
    labels = (draw.random(900) < said).astype(np.uint8)
    cuts = {"train": slice(0, 600), "validation": slice(600, 750), "test": slice(750, 900)}
    splits = {name: Split(ids[cut], labels[cut]) for name, cut in cuts.items()}
    data = Data("product", ("a", "b", "c"), (6, 6, 6), splits)
    sizes = Sizes(4, (16, 16), cross_layers=2, attention=4, heads=2, attention_layers=2,
                  logarithmic=5)  # fmt: skip
    asked = {"batch": 50, "epochs": epochs, "clip": 100.0 if model == "dcn" else 0.0} | changed
    return Prediction(model, sizes, data, Training(**asked), {})


def asked(tmp_path, *more):
    parser = Parser(prog="recommender")
    add(parser, TASK)
    options = parser.parse_args(["--out", str(tmp_path), *more])
    check(options, TASK)
    return options


@pytest.fixture
def brief(monkeypatch):
    times = Study._times
    monkeypatch.setattr(Study, "_times", lambda self, seconds: times(self, 0.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["deepfm", "dcn", "autoint", "afn"])
def test_every_model_learns_by_every_method(model, method):
    made = problem(model, epochs=4)
    run = made.run(method, 3e-2, 0)
    before = run.scores("validation")
    for _ in range(made.steps):
        run.step()
    after = run.scores("validation")
    assert after["AUC"] > 0.65 and after["log loss"] < before["log loss"]


def test_a_run_is_a_function_of_its_seed_and_resumes_with_the_same_bits(tmp_path):
    whole, _ = training.train(problem(), "dfa", 1e-2, 4, tmp_path / "whole")
    done = []
    with pytest.raises(training.Stopped):
        training.train(
            problem(), "dfa", 1e-2, 4, tmp_path / "cut",
            watch=lambda step, loss: done.append(step), stop=lambda: done[-1] == 17,
        )  # fmt: skip
    torch.manual_seed(5)
    cut, _ = training.train(problem(), "dfa", 1e-2, 4, tmp_path / "cut")
    other, _ = training.train(problem(), "dfa", 1e-2, 5, tmp_path / "other")
    assert cut["test"] == whole["test"] and cut["validation"] == whole["validation"]
    assert other["test"] != whole["test"]


def test_methods_start_alike_and_see_the_same_batches():
    runs = {method: problem().run(method, 1e-2, 3) for method in METHODS}
    losses = {method: run.step() for method, run in runs.items()}
    assert len(set(losses.values())) == 1


def test_a_diverged_run_has_no_score():
    run = problem().run("bp", 1e-2, 0)
    with torch.no_grad():
        run.net.module.head.bias.fill_(float("nan"))
    assert all(score != score for score in run.scores("test").values())


def test_scores_are_the_definitions():
    run = problem().run("bp", 1e-2, 0)
    labels, said = run.splits["test"].labels, run.probabilities("test")
    positive, negative = said[labels == 1], said[labels == 0]
    pairs = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    scores = run.scores("test")
    assert scores["AUC"] == pytest.approx(pairs)
    wrong = np.where(labels == 1, -np.log(said), -np.log(1 - said))
    assert scores["log loss"] == pytest.approx(wrong.mean())


def test_deep_and_cross_clips_its_gradients():
    run = problem("dcn", clip=1e-3).run("dfa", 1e-2, 0)
    norms = []

    def look(*_):
        norms.append(sum(p.grad.square().sum() for p in run.net.parameters()) ** 0.5)

    run.optimizer.register_step_pre_hook(look)
    run.step()
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)


def test_the_command_leaves_rows_and_a_picture(tmp_path, brief, capsys):
    arguments = [
        "recommender", "--quick", "--rows", "3000", "--min-count", "3", "--epochs", "1",
        "--method", *METHODS, "--out", str(tmp_path),
    ]  # fmt: skip
    assert command.main(arguments) == 0
    said = capsys.readouterr()
    assert "the true probabilities reach AUC 0." in said.err
    made = json.loads((tmp_path / "results.json").read_text())
    assert [(row["method"], row["metric"]) for row in made] == [
        (method, metric) for method in METHODS for metric in ("AUC", "log loss")
    ]
    by_method = {row["method"]: row for row in made if row["metric"] == "AUC"}
    assert by_method["dfa"]["alignment"].keys() == {"tower.0", "tower.1", "tower.2"}
    assert by_method["dfa"]["feedback_bytes"] == 128 * 4
    assert by_method["bp"]["feedback_bytes"] == by_method["shallow"]["feedback_bytes"] == 0
    described = by_method["dfa"]["description"]
    assert described["best_AUC"] > by_method["bp"]["mean"]
    assert sum(described["rows"].values()) == 3000
    # For DeepFM the two are the same by construction: see test_recommender_models.
    assert by_method[FROZEN]["values"] == by_method["shallow"]["values"]
    assert (tmp_path / "deepfm-generated" / "calibration.png").stat().st_size > 5000
    assert command.main(arguments) == 0  # everything is read


def test_a_factorization_machine_is_trained_by_backpropagation(tmp_path, brief):
    arguments = [
        "recommender", "--quick", "--rows", "3000", "--min-count", "3", "--epochs", "1",
        "--model", "fm", "--out", str(tmp_path),
    ]  # fmt: skip
    assert command.main(arguments) == 0
    assert {row.method for row in rows.read(tmp_path / "results.json")} == {"bp"}


def test_the_paper_size_is_the_papers(tmp_path):
    options = asked(tmp_path, "--size", "paper", "--model", "afn", "--rows", "2000")
    options.min_count = 2
    made = TASK.problem(options)
    assert made.sizes == Sizes(10, (400, 400, 400), logarithmic=1500)
    assert made.training.clip == 0
    options = asked(tmp_path, "--size", "paper", "--model", "dcn", "--rows", "2000")
    options.min_count = 2
    assert TASK.problem(options).training.clip == 100
    options = asked(
        tmp_path, "--model", "deepfm", "--rows", "2000", "--min-count", "2", "--tower", "9", "8",
        "--embedding", "3", "--dropout", "0.5", "--no-norm",
    )  # fmt: skip
    assert TASK.problem(options).sizes == Sizes(3, (9, 8), dropout=0.5, norm=False)
    for model, option in (("autoint", "attention-layers"), ("dcn", "cross-layers")):
        options = asked(tmp_path, "--model", model, "--rows", "2000", f"--{option}", "7")
        options.min_count = 2
        assert getattr(TASK.problem(options).sizes, option.replace("-", "_")) == 7


REFUSED = [
    (["--data", "criteo"], "--data criteo needs --root DIR"),
    (["--data", "criteo", "--root", "."], "train.txt cannot be read: No such file"),
    (["--data", "table", "--root", "."], "--data table needs --file NAME and --label NAME"),
    (["--data", "bank", "--root", "."], "bank-full.csv cannot be read: No such file"),
    (["--model", "fm", "--method", "dfa", "frozen"], "no tower that dfa or frozen could train"),
    (["--min-count", "0"], "--min-count must be at least 1, got 0"),
    (["--batch", "1"], "--batch must be at least 2 for batch normalisation"),
    (["--tower", "8", "0"], "--tower must be at least 1, got 0"),
    (["--dropout", "1"], "--dropout must be at least 0 and below 1, got 1"),
    (["--epochs", "nan"], "--epochs must be positive and finite, got nan"),
    (["--weight-decay", "-1"], "--weight-decay must be at least 0, got -1"),
    (["--label", "y"], "--label is for --data table, not for generated"),
    (["--data", "bank", "--root", ".", "--columns", "a"], "--columns is for --data table, not"),
    (["--data", "criteo", "--root", ".", "--rows", "9"], "--rows is for --data generated, not"),
    (["--logarithmic", "9"], "--logarithmic is for --model afn, not for deepfm"),
    (["--attention-layers", "1"], "--attention-layers is for --model autoint, not for deepfm"),
    (["--model", "dcn", "--cross-layers", "0"], "--cross-layers must be at least 1, got 0"),
    (["--model", "fm", "--tower", "9"], "--tower is for --model deepfm or dcn or autoint or afn"),
    (["--rows", "3", "--min-count", "1"], "split has"),
    (["--rows", "200", "--min-count", "150"], "leaves its vocabulary empty: lower --min-count"),
]


@pytest.mark.parametrize("arguments, said", REFUSED, ids=[" ".join(a) for a, _ in REFUSED])
def test_what_cannot_be_done_is_one_sentence(tmp_path, capsys, arguments, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["recommender", "--quick", "--out", "made", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert error.startswith("bench.paper recommender: ")
    assert not Path("made/results.json").exists()


def test_a_label_of_one_class_in_a_split_is_refused(tmp_path, capsys):
    lines = ["a,y", *[f"{n % 4},{'yes' if n == 0 else 'no'}" for n in range(100)]]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    arguments = ["--data", "table", "--root", str(tmp_path), "--file", "t.csv", "--label", "y"]
    assert command.main(["recommender", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert "rows, 0 of them positive, but both classes are needed" in capsys.readouterr().err


def test_all_methods_are_drawn(tmp_path):
    made = [
        rows.Row("recommender", model, data, method, "AUC", 0.7 + 0.01 * i, 0.01, 3)
        for data in ("bank", "adult")
        for model in ("fm", "deepfm", "afn")
        for i, method in enumerate(METHODS if model != "fm" else ["bp"])
    ]
    rows.write(tmp_path / "rows.json", made)
    assert more.main(["draw", str(tmp_path / "rows.json"), str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "methods.png").stat().st_size > 5000
    assert more.main(["draw", str(tmp_path / "none.json"), str(tmp_path)]) == 2


@pytest.mark.skipif(not RESPONSE.is_dir(), reason="needs ../shared/data/response")
@pytest.mark.parametrize("data, expected, fields", [("bank", 45_211, 15), ("adult", 32_561, 14)])
def test_the_real_tables_are_read(tmp_path, data, expected, fields):
    made = TASK.problem(asked(tmp_path, "--data", data, "--root", str(RESPONSE)))
    assert sum(len(s.labels) for s in made.rows.splits.values()) == expected
    assert len(made.rows.fields) == fields and "duration" not in made.rows.fields
    positive = {"bank": 5289, "adult": 7841}[data]
    assert sum(int(s.labels.sum()) for s in made.rows.splits.values()) == positive
