"""From the command line to the rows: one definition, alike for every method, resumable."""

import json
import re

import pytest
import torch

pytest.importorskip("tokenizers", reason="needs the extra: dfa_kernels[paper]")

from bench.paper import options as asked_options
from bench.paper import rows, training
from bench.paper.__main__ import main
from bench.paper.language import TASK, perplexity
from bench.paper.language.task import RECIPES
from bench.paper.study import Study
from dfa_kernels.training import checkpoint

TEXT = "the river runs past a stone mill and the miller looks at the river . <unk> Ωδός"
TINY = [
    "--data", "wikitext-2", "--vocabulary", "280", "--context", "6", "--batch", "4", "--steps", "9",
    "--warm-up", "3", "--validations", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    generator, words = torch.Generator().manual_seed(0), TEXT.split()
    for name, lines in (("train", 60), ("valid", 8), ("test", 9)):
        drawn = torch.randint(len(words), (lines, 7), generator=generator)
        text = "".join(f" {' '.join(words[i] for i in line)} \n" for line in drawn)
        (folder / f"{name}.txt").write_text(text)
    return folder


def parsed(texts, out, *given):
    parser = asked_options.Parser()
    asked_options.add(parser, TASK)
    asked = parser.parse_args([*TINY, "--root", str(texts), "--out", str(out), "--quick", *given])
    asked_options.check(asked, TASK)
    return asked


@pytest.fixture
def problem(texts, tmp_path):
    return lambda *given: TASK.problem(parsed(texts, tmp_path, *given))


@pytest.fixture
def brief(monkeypatch):
    times = Study._times
    monkeypatch.setattr(Study, "_times", lambda self, seconds: times(self, 0.0))


def weights(run):
    return {name: p.detach().clone() for name, p in run.net.module.state_dict().items()}


def test_a_study_leaves_rows_for_four_methods(texts, tmp_path, brief, capsys):
    out = tmp_path / "out"
    given = [
        "language", *TINY, "--root", str(texts), "--out", str(out), "--quick",
        "--method", "dfa", "micro", "bp", "shallow", "--lr", "1e-2", "3e-3",
    ]  # fmt: skip
    assert main(given) == 0
    made = rows.read(out / "results.json")
    assert [(row.method, row.metric) for row in made] == [
        (method, metric)
        for method in ("dfa", "micro", "bp", "shallow")
        for metric in ("perplexity", "log perplexity")
    ]
    for row in made:
        assert (row.task, row.model, row.data) == ("language", "transformer-small", "wikitext-2")
        assert set(row.grid) == {"0.01", "0.003"} and row.quick and row.steps == 9
        assert row.description["words"] == {"train": 480, "validation": 64, "test": 72}
        assert row.mean > 0 and not row.higher_is_better
    by_method = {row.method: row for row in made}
    assert by_method["bp"].feedback_bytes == by_method["shallow"].feedback_bytes == 0
    assert by_method["micro"].feedback_bytes > by_method["dfa"].feedback_bytes > 0
    assert list(by_method["dfa"].alignment) == ["blocks.0", "blocks.1"]
    assert len(by_method["micro"].alignment) == 6 and by_method["bp"].alignment == {}
    picture = (out / "transformer-small-wikitext-2" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert json.loads((out / "results.json").read_text())[0]["description"]["error_at"] == "before"


def test_every_method_begins_with_the_same_weights_and_minibatches(problem, monkeypatch):
    gather, places = perplexity.gather, []
    monkeypatch.setattr(
        perplexity, "gather", lambda *args: places.append(args[1].tolist()) or gather(*args)
    )
    begun, drawn = [], []
    for method in ("bp", "dfa", "micro", "shallow"):
        run = problem("--dropout", "0.1").run(method, 1e-2, 7)
        begun.append(weights(run))
        for _ in range(3):
            run.step()
        drawn.append(places[-3:])
    assert drawn == drawn[:1] * 4 and drawn[0][0] != drawn[0][1]
    ends = len(problem().tokens["train"]) - 6
    first = torch.randint(ends, (4,), generator=torch.Generator().manual_seed(7))
    assert drawn[0][0] == first.tolist()  # whatever the weights and dropout draw
    for other in begun:
        assert all(torch.equal(other[name], begun[0][name]) for name in other)
    another = weights(problem().run("bp", 1e-2, 8))
    assert not torch.equal(another["head.weight"], begun[0]["head.weight"])


def test_what_a_step_changes(problem):
    for method in ("bp", "dfa", "micro", "shallow"):
        run = problem().run(method, 1e-2, 0)
        before = weights(run)
        run.step()
        changed = {k for k, v in weights(run).items() if not torch.equal(v, before[k])}
        top = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
        assert changed == (top if method == "shallow" else set(before))


def test_training_learns_by_every_method(problem):
    for method in ("bp", "dfa", "micro", "shallow"):
        run = problem("--steps", "60").run(method, 1e-2, 0)
        before = run.scores("validation")["log perplexity"]
        for _ in range(60):
            run.step()
        assert run.scores("validation")["log perplexity"] < before - 0.5, method


def test_scores_do_not_depend_on_how_windows_are_batched(problem):
    scores = [problem("--batch", batch).run("bp", 1e-2, 0).scores("test") for batch in ("1", "5")]
    assert scores[0]["log perplexity"] == pytest.approx(scores[1]["log perplexity"], rel=1e-6)


@pytest.mark.parametrize(
    "given",
    [
        ["--schedule", "plateau", "--dropout", "0.2"],
        ["--schedule", "noam", "--optimizer", "radam"],
        ["--schedule", "cosine", "--error-at", "after", "--granularity", "micro"],
        ["--schedule", "constant", "--attention", "dense", "--autocast"],
    ],
)
@pytest.mark.parametrize("at", [4, 6])
def test_a_run_goes_on_with_the_same_bits(problem, tmp_path, given, at):
    made = problem(*given)
    made.validate_every = 2
    whole, run = training.train(made, "dfa", 1e-2, 0, tmp_path / "whole")
    steps = []
    with pytest.raises(training.Stopped):
        training.train(
            made, "dfa", 1e-2, 0, tmp_path / "cut",
            watch=lambda step, _: steps.append(step), stop=lambda: steps[-1] == at,
        )  # fmt: skip
    torch.manual_seed(99)
    resumed, again = training.train(made, "dfa", 1e-2, 0, tmp_path / "cut")
    for name in ("test", "validation", "loss", "alignment", "best_step"):
        assert resumed[name] == whole[name], name
    first, second = weights(run), weights(again)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert checkpoint.load(tmp_path / "cut.done")["identity"]["description"]["words"]


def test_a_plateau_heeds_the_validations_of_training(problem, tmp_path, monkeypatch):
    made = problem("--schedule", "plateau", "--validations", "9")
    run = made.run("bp", 1.0, 0)
    for loss in (3.0, 4.0, 5.0, 6.0):
        run.step()
        monkeypatch.setattr(
            "bench.paper.language.perplexity.scores", lambda *_, loss=loss: {"log perplexity": loss}
        )
        run.scores("validation")
    run.step()
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_alignment_leaves_the_run_as_it_was(problem):
    run, other = (problem("--dropout", "0.1").run("dfa", 1e-2, 0) for _ in range(2))
    torch.manual_seed(0)
    assert set(run.alignment()) == {"blocks.0", "blocks.1"}
    run.step()
    torch.manual_seed(0)
    other.step()
    first, second = weights(run), weights(other)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_compiled_run_trains_as_an_eager_one(problem, monkeypatch):
    torch.compiler.reset()
    compile = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda m, **k: compile(m, backend="aot_eager", **k)
    )
    eager, compiled = problem().run("dfa", 1e-2, 0), problem("--compile").run("dfa", 1e-2, 0)
    assert compiled.net._compiled_call_impl is not None
    losses = [(eager.step(), compiled.step()) for _ in range(3)]
    for a, b in losses:
        assert a == pytest.approx(b, rel=1e-4)
    assert compiled.net.state_dict().keys() == eager.net.state_dict().keys()
    torch.compiler.reset()


def test_variants_have_names_of_their_own(problem):
    assert problem().model == "transformer-small"
    assert problem("--attention", "fixed", "--error-at", "after").model == (
        "transformer-small-fixed-after"
    )
    assert problem("--granularity", "micro").description["granularity"] == "micro"


def test_part_of_a_text_is_whole_lines(problem):
    words = problem("--test-words", "17", "--validation-words", "16").words
    assert words == {"train": 480, "validation": 16, "test": 24}


def test_the_papers_recipe():
    recipe = RECIPES["transformer"]
    size = recipe.size
    assert (size.blocks, size.width, size.heads, size.hidden, size.context) == (
        6,
        512,
        8,
        2048,
        128,
    )
    assert recipe.warm_up == 4000 and 7e-4 in recipe.rates and 5e-5 in recipe.rates


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, why",
    [
        (["--context", "5000"], r"train\.txt holds \d+ tokens, fewer than the --context of 5000"),
        (["--context", "0"], "--context must be at least 1, got 0"),
        (["--vocabulary", "257"], "--vocabulary must be at least 258, got 257"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--stride", "7"], "--stride 7 is longer than the --context of 6"),
        (["--dropout", "1"], r"--dropout must be in \[0, 1\), got 1"),
        (["--beta2", "-0.1"], r"--beta2 must be in \[0, 1\), got -0.1"),
        (["--device", "nowhere"], "--device 'nowhere' cannot be used"),
        (["--device", "meta"], "--device 'meta' holds no numbers"),
        (["--seed", "-1"], r"--seed must be in \[0, 2\*\*63 − \d\], got -1"),
        (["--test-words", "-1"], "--test-words must be at least 0, got -1"),
        (["--data", "python"], "--data python needs no --root"),
        (["--attention", "wide"], "invalid choice: 'wide'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(texts, tmp_path, capsys, given, why):
    out = tmp_path / "out"
    try:
        code = main(["language", *TINY, "--root", str(texts), "--out", str(out), *given])
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1, said
    assert re.search(why, said), said
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_file_that_is_no_text_is_named_before_training(texts, tmp_path, capsys):
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_bytes((texts / name).read_bytes())
    (tmp_path / "test.txt").write_bytes(b"good\nbad \xfe\n")
    given = ["language", *TINY, "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "test.txt, line 2: byte 0xfe in column 5 is not UTF-8" in said and said.count("\n") == 1
