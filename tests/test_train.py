"""Training: what must not depend on the method, bits after an interruption, and the log."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the extra: dfa_kernels[train]")
pytest.importorskip("rich", reason="needs the extra: dfa_kernels[train]")
pytest.importorskip("sklearn", reason="needs the extra: dfa_kernels[train]")

import dfa_kernels as dfa
from dfa_kernels.training import InputError, checkpoint, command, experiment, memory, report
from dfa_kernels.training.datasets import Split, load
from dfa_kernels.training.experiment import Experiment, Interrupted
from dfa_kernels.training.model import Learner
from dfa_kernels.training.options import SCHEDULES, Options

SMALL = {"hidden": (12, 8), "epochs": 3, "batch": 16, "seeds": 2, "device": "cpu"}
METHODS = ("dfa", "bp", "shallow")


def tiny(seed: int, rows: int = 70) -> Split:
    """Three classes of 6 features; the last minibatch of 16 is short."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows + 40, 6, generator=generator)
    y = x[:, :3].argmax(1)
    return Split(x[:rows], y[:rows], x[rows:], y[rows:], 3)


def begun(path: Path, **given) -> Experiment:
    return Experiment(Options.resolve({**SMALL, **given}), tiny, path / "checkpoint.pt")


def weights(run: Experiment) -> dict[str, torch.Tensor]:
    return {
        f"{method} {name}": value.clone()
        for method, learner in run.learners.items()
        for name, value in learner.net.module.state_dict().items()
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def untimed(results: dict) -> dict:
    return {
        (method, seed, name): curve
        for method, runs in results.items()
        for seed, curves in runs.items()
        for name, curve in curves.items()
        if name != "step_ms"
    }


# One architecture -------------------------------------------------------------------------------


def test_methods_begin_alike_and_learn_differently() -> None:
    options = Options.resolve(SMALL)
    learners = {m: Learner(options, m, 3, 6, 3) for m in METHODS}
    start = {m: learner.net.module.state_dict() for m, learner in learners.items()}
    start = {m: {k: v.clone() for k, v in state.items()} for m, state in start.items()}
    assert same(start["dfa"], start["bp"]) and same(start["dfa"], start["shallow"])
    x, y, *_ = tiny(0)
    first = {m: learner.step(x, y).item() for m, learner in learners.items()}
    assert len(set(first.values())) == 1
    moved = {
        m: {
            k for k, v in learner.net.module.state_dict().items() if not torch.equal(v, start[m][k])
        }
        for m, learner in learners.items()
    }
    assert moved["shallow"] == {"output.weight", "output.bias"}
    assert moved["dfa"] == moved["bp"] == set(start["dfa"])
    hidden = {m: learner.net.module.hidden1.weight for m, learner in learners.items()}
    assert not torch.equal(hidden["dfa"], hidden["bp"])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_fused_update_is_taken_for_dfa_alone_and_can_be_declined(optimizer: str) -> None:
    def made(**given) -> dict[str, type]:
        options = Options.resolve({**SMALL, "optimizer": optimizer, **given})
        return {m: type(Learner(options, m, 0, 6, 3).optimizer) for m in METHODS}

    ours = {"adamw": dfa.optim.AdamW, "sgd": dfa.optim.SGD}[optimizer]
    plain = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    assert made() == {"dfa": ours, "bp": plain, "shallow": plain}
    assert set(made(fused=False).values()) == {plain}
    assert set(made(compile=True).values()) == {plain}


@pytest.mark.parametrize("given", [{"fused": True}, {"fused": False}, {"dtype": "float64"}])
def test_dfa_does_not_depend_on_who_else_trains(tmp_path: Path, given: dict) -> None:
    both, alone = begun(tmp_path, **given), begun(tmp_path, method=("dfa",), **given)
    both.run()
    alone.run()
    assert same({k: v for k, v in weights(both).items() if k.startswith("dfa")}, weights(alone))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_every_precision_learns(tmp_path: Path, method: str, dtype: str) -> None:
    run = begun(tmp_path, method=(method,), dtype=dtype, seeds=1, lr={"": 0.02})
    run.run()
    losses = run.results[method][0]["train_loss"]
    assert losses[-1] < losses[0] - 0.02
    weight = run.learners[method].net.module.output.weight
    assert weight.dtype == (torch.float64 if dtype == "float64" else torch.float32)


def test_every_method_sees_the_same_minibatches_and_each_epoch_others(
    monkeypatch, tmp_path
) -> None:
    seen: dict[str, list[torch.Tensor]] = {m: [] for m in METHODS}
    step = Learner.step

    def spy(self, x, y, done):
        seen[self.net.method].append(x)
        return step(self, x, y, done)

    monkeypatch.setattr(Learner, "step", spy)
    begun(tmp_path, seeds=1, epochs=2).run()
    assert [len(x) for x in seen["dfa"]] == [16, 16, 16, 16, 6] * 2
    for other in ("bp", "shallow"):
        assert all(torch.equal(a, b) for a, b in zip(seen["dfa"], seen[other], strict=True))
    first, second = torch.cat(seen["dfa"][:5]), torch.cat(seen["dfa"][5:])
    assert not torch.equal(first, second)
    for epoch in (first, second):  # each a permutation of the training set
        assert torch.equal(epoch.sort(0).values, tiny(0).train_x.sort(0).values)


def test_compiled_networks_learn_what_the_others_learn(tmp_path: Path, monkeypatch) -> None:
    """The tracing is what is ours to get right: a backend that generates no code tells."""
    compiler = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiler)
    given = {"seeds": 1, "epochs": 1, "dtype": "float64", "fused": False}
    plain, compiled = begun(tmp_path, **given), begun(tmp_path, compile=True, **given)
    plain.run()
    compiled.run()
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], weight, msg=name)


def test_methods_alternate_epoch_by_epoch(tmp_path: Path) -> None:
    run = begun(tmp_path)
    turns = [run.turn(i) for i in range(run.turns)]
    assert len(set(turns)) == len(turns) == 2 * 3 * 3
    assert [t.method for t in turns[:6]] == ["dfa", "bp", "shallow", "bp", "shallow", "dfa"]
    assert [t.seed for t in turns] == [0] * 9 + [1] * 9


def test_no_step_reads_the_global_generator(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = begun(tmp_path)
    one.run()
    torch.manual_seed(2)
    other = begun(tmp_path)
    other.run()
    assert same(weights(one), weights(other))


# Interruptions ----------------------------------------------------------------------------------


def stopped(run: Experiment, steps: int) -> Interrupted:
    left = iter(range(steps - 1, -1, -1))
    with pytest.raises(Interrupted) as caught:
        run.run(stop=lambda: next(left) == 0)
    return caught.value


def resumed(path: Path, run: Experiment) -> Experiment:
    fresh = Experiment(run.options, tiny, path / "checkpoint.pt")
    fresh.restore(checkpoint.load(path / "checkpoint.pt"))
    return fresh


# 5 steps a turn, 15 an epoch, 45 a seed: the first, a turn's last, within a turn, an epoch's
# last, and the second seed's first and its last.
@pytest.mark.parametrize("steps", [1, 5, 7, 15, 46, 90])
@pytest.mark.parametrize("given", [{}, {"optimizer": "sgd"}, {"fused": False}], ids=str)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, steps: int, given: dict) -> None:
    whole = begun(tmp_path, **given)
    whole.run()
    cut = begun(tmp_path, **given)
    stopped(cut, steps)
    after = resumed(tmp_path, cut)
    after.run()
    assert same(weights(whole), weights(after))
    assert untimed(whole.results) == untimed(after.results)
    assert after.finished and len(after.results["bp"][1]["step_ms"]) == 3


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    whole = begun(tmp_path, epochs=1)
    whole.run()
    run = begun(tmp_path, epochs=1)
    for _ in range(10):
        stopped(run, 2)
        run = resumed(tmp_path, run)
    run.run()
    assert same(weights(whole), weights(run)) and untimed(whole.results) == untimed(run.results)


def test_a_failure_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"done": 1})

    def fails(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"done": 2})
    assert checkpoint.load(path)["done"] == 1


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"done": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(InputError) as error:
        checkpoint.load(path)
    assert str(error.value) == f"{path} is not a checkpoint of dfa-kernels train, or is damaged"


class Stranger:
    """What a checkpoint that is only data cannot hold."""


@pytest.mark.parametrize("content", [Stranger(), {"weight": torch.zeros(3)}, [1, 2]])
def test_another_file_of_torchs_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(InputError) as error:
        checkpoint.load(path)
    assert str(error.value) == f"{path} is not a checkpoint of dfa-kernels train, or is damaged"


def test_a_checkpoint_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        checkpoint.load(tmp_path)


GIVEN = {"hidden": (16,), "seeds": 1, "epochs": 20, "batch": 32, "device": "cpu"}
TYPED = ["--hidden", "16", "--seeds", "1", "--epochs", "20", "--batch", "32", "--device", "cpu"]


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process there")
def test_ctrl_c_leaves_a_checkpoint_that_resumes_with_the_same_bits(tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dfa_kernels", "train", *TYPED, "--out", str(out)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    patience = time.monotonic() + 60
    while not (out / "checkpoint.pt").exists() and time.monotonic() < patience:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted at seed 0, epoch" in said and "--resume" in said
    assert "Traceback" not in said
    state = checkpoint.load(out / "checkpoint.pt")
    assert 0 < state["done"] < state["turns"]
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint.pt"]

    options = Options.resolve(GIVEN)
    whole, after = (
        Experiment(options, lambda seed: load("digits", None, seed), tmp_path / name)
        for name in ("whole.pt", "after.pt")
    )
    after.restore(state)
    after.run()
    whole.run()
    assert same(weights(whole), weights(after))


# The command ------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch) -> dict:
    """The command on the tiny data, without processes of their own."""
    monkeypatch.setattr(command, "load", lambda name, root, seed: tiny(seed))
    monkeypatch.setattr(command, "measured", lambda *_: memory.Memory(3 << 20, 1000))
    return dict(SMALL)


def test_it_leaves_a_table_a_log_and_curves(quick, tmp_path, capsys) -> None:
    assert command.train(quick, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    for wanted in ("test accuracy", "× bp", "peak memory", "feedback", "alignment", "digits"):
        assert wanted in printed
    assert all(any(line.split()[:1] == [m] for line in printed.splitlines()) for m in METHODS)
    text = (tmp_path / "run" / "log.json").read_text()
    assert str(tmp_path) not in text
    log = json.loads(text)
    assert log["options"]["hidden"] == [12, 8] and log["data"]["sizes"] == [6, 12, 8, 3]
    assert {"device", "torch", "threads"} <= log["environment"].keys()
    for method in METHODS:
        summary, runs = log["methods"][method]["summary"], log["methods"][method]["seeds"]
        accuracies = [run["test_accuracy"] for run in runs.values()]
        assert summary["test_accuracy_mean"] == pytest.approx(sum(accuracies) / 2)
        spread = abs(accuracies[0] - accuracies[1]) / math.sqrt(2)
        assert summary["test_accuracy_std"] == pytest.approx(spread)
        assert summary["peak_bytes"] == 3 << 20 and summary["feedback_bytes"] == 1000
        assert all(len(run["curves"]["step_ms"]) == 3 for run in runs.values())
    assert log["methods"]["bp"]["summary"]["ratio"] == 1
    assert list(log["methods"]["dfa"]["summary"]["alignment"]) == ["hidden1", "hidden2"]
    picture = (tmp_path / "run" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    assert not list((tmp_path / "run").glob("*.partial"))


def test_the_ratio_compares_the_same_epochs() -> None:
    def curves(times: list[float]) -> dict:
        return {**experiment.new_curves(), "step_ms": times, "test_accuracy": [0.5]}

    results = {"dfa": {0: curves([2.0, 30.0, 4.0])}, "bp": {0: curves([4.0, 40.0, 8.0])}}
    options = Options.resolve(SMALL)
    log = report.make_log(options, tiny(0), results, {"dfa": None, "bp": None})
    assert log["methods"]["dfa"]["summary"]["ratio"] == 0.5
    assert log["methods"]["dfa"]["summary"]["step_ms"] == 4.0
    alone = report.make_log(options, tiny(0), {"dfa": results["dfa"]}, {"dfa": None})
    assert alone["methods"]["dfa"]["summary"]["ratio"] is None


def test_a_run_that_diverges_is_reported(quick, tmp_path, capsys) -> None:
    given = {**quick, "optimizer": "sgd", "lr": {"": 1e30}, "activation": "relu"}
    assert command.train(given, tmp_path / "run") == 0
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert log["methods"]["bp"]["seeds"]["0"]["curves"]["train_loss"][-1] is None


def test_resuming_takes_the_options_from_the_checkpoint(quick, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    out.mkdir()
    stopped(begun(out), 20)
    with pytest.raises(InputError, match=r"stopped after 3 of 18 epochs.*--resume"):
        command.train(quick, out)
    with pytest.raises(InputError, match=r"--hidden 9 differs from 12,8"):
        command.train({"hidden": (9,)}, out, resume=True)
    with pytest.raises(InputError, match=r"--lr dfa=0.1 .* differs from dfa=0.001"):
        command.train({"lr": {"": 0.1}}, out, resume=True)
    assert checkpoint.load(out / "checkpoint.pt")["done"] == 3
    assert command.train({"hidden": (12, 8)}, out, resume=True) == 0
    whole = begun(tmp_path)
    whole.run()
    state = checkpoint.load(out / "checkpoint.pt")
    kept = {
        f"{method} {name}": value
        for method, learner in state["learners"].items()
        for name, value in learner["net"].items()
        if name.startswith("module.")
    }
    assert same({k.replace("module.", ""): v for k, v in kept.items()}, weights(whole))


def test_a_finished_run_is_not_lost(quick, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    assert command.train(quick, out) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(InputError, match=r"finished run .*--overwrite"):
        command.train(quick, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert command.train({**quick, "seed": 5}, out, overwrite=True) == 0
    assert json.loads((out / "log.json").read_text())["options"]["seed"] == 5
    assert command.train({}, out, resume=True) == 0  # nothing left to train: reports again


def test_a_measurement_that_fails_does_not_lose_the_run(
    quick, tmp_path, monkeypatch, capsys
) -> None:
    def fails(*_):
        raise memory.MeasurementError("the peak memory of dfa could not be measured: why")

    monkeypatch.setattr(command, "measured", fails)
    assert command.train(quick, tmp_path / "run") == 0
    assert "could not be measured: why" in capsys.readouterr().err
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert log["methods"]["dfa"]["summary"]["peak_bytes"] is None


def test_a_finished_run_that_is_resumed_keeps_its_memory(quick, tmp_path, monkeypatch) -> None:
    def fails(options, method, *_):
        raise memory.MeasurementError(f"{method} again")

    def but_bp(options, method, *_):
        return fails(options, method) if method == "bp" else memory.Memory(5 << 20, 7)

    def peaks() -> dict:
        found = json.loads((tmp_path / "run" / "log.json").read_text())["methods"]
        return {method: found[method]["summary"]["peak_bytes"] for method in METHODS}

    monkeypatch.setattr(command, "measured", but_bp)
    assert command.train(quick, tmp_path / "run") == 0
    assert peaks() == {"dfa": 5 << 20, "bp": None, "shallow": 5 << 20}
    monkeypatch.setattr(command, "measured", lambda *_: memory.Memory(9 << 20, 7))
    assert command.train({}, tmp_path / "run", resume=True) == 0
    assert peaks() == {"dfa": 5 << 20, "bp": 9 << 20, "shallow": 5 << 20}
    monkeypatch.setattr(command, "measured", fails)
    assert command.train({}, tmp_path / "run", resume=True) == 0
    assert peaks() == {"dfa": 5 << 20, "bp": 9 << 20, "shallow": 5 << 20}


def test_memory_is_measured_on_rows_that_there_are(quick, tmp_path, monkeypatch) -> None:
    seen = []

    def spy(options, method, features, classes):
        seen.append((options.batch, features, classes))
        return memory.Memory(1, 1)

    monkeypatch.setattr(command, "measured", spy)
    for batch in (10**8, 16):
        assert command.train({**quick, "batch": batch}, tmp_path / str(batch)) == 0
    assert seen == 3 * [(70, 6, 3)] + 3 * [(16, 6, 3)]
    log = json.loads((tmp_path / str(10**8) / "log.json").read_text())
    assert log["options"]["batch"] == 10**8


# Memory -----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_training_holds() -> None:
    options = Options.resolve({**SMALL, "hidden": (2000, 2000), "seeds": 1})
    peak, feedback = memory.measured(options, "bp", 1000, 10)
    parameters = 1000 * 2000 + 2000 * 2000  # and as much again for each: m, v, gradient
    assert 16 * parameters < peak < 24 * parameters
    assert feedback == 0


def test_feedback_is_what_the_reference_holds() -> None:
    options = Options.resolve({**SMALL, "seeds": 1})
    matrices = dfa.backends.get("reference").matrices
    assert memory.measure(options, "dfa", 6, 3).feedback == 4 * 3 * 12
    assert memory.measure(options, "bp", 6, 3).feedback == 0
    matrices.clear()


# Quality ----------------------------------------------------------------------------------------


def test_digits_dfa_is_near_backpropagation_and_above_shallow(tmp_path: Path) -> None:
    """Two seeds and half the epochs of the default, which ends at 97.7, 97.7 and 95.1 %."""
    options = Options.resolve({"seeds": 2, "epochs": 20, "fused": False, "device": "cpu"})
    run = Experiment(options, lambda seed: load("digits", None, seed), tmp_path / "c.pt")
    run.run()
    dfa_, bp, shallow = (
        sum(c["test_accuracy"][-1] for c in run.results[m].values()) / 2 for m in METHODS
    )
    assert dfa_ > 0.965 and dfa_ > bp - 0.01 and dfa_ > shallow + 0.01
    for curves in run.results["dfa"].values():
        first, last = (curves["alignment"]["hidden2"][i][0] for i in (0, -1))
        assert last > 0.6 and last > first


def test_a_linear_schedule_ends_at_nothing_and_changes_the_numbers():
    assert [SCHEDULES["linear"](done) for done in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    made = {}
    for schedule in SCHEDULES:
        options = Options.resolve({"hidden": (8,), "schedule": schedule, "seeds": 1})
        torch.manual_seed(0)
        learner = Learner(options, "dfa", 0, 64, 10)
        x, y = torch.randn(16, 64), torch.arange(16) % 10
        before = [p.detach().clone() for p in learner.net.parameters()]
        learner.step(x, y, 1.0)
        after = learner.net.parameters()
        made[schedule] = sum((a - b).abs().sum().item() for a, b in zip(after, before, strict=True))
    assert made["linear"] == 0.0
    assert made["constant"] > 0.0
