"""`python -m bench.quality`: how rates are chosen, and that a run is read and not made again."""

import json

import pytest
import torch

from bench import quality
from dfa_kernels.training.experiment import Experiment

TINY = {"data": "digits", "hidden": (8,), "epochs": 2, "batch": 256}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs the command on a small task; its exit status."""
    monkeypatch.setattr(quality, "TASKS", {"tiny": quality.Task(TINY, 2)})
    arguments = ["--root", "nowhere", "--out", str(tmp_path), "--json", str(tmp_path / "q.json")]
    return lambda: quality.main(arguments)


def test_every_method_has_its_best_rate_and_all_seeds(study, tmp_path):
    assert study() == 0
    result = json.loads((tmp_path / "q.json").read_text())
    assert result["environment"]["date"] and set(result["tasks"]) == {"tiny"}
    for method, entry in result["tasks"]["tiny"].items():
        rates = list(map(float, entry["grid"]))
        assert rates == sorted(rates) and set(quality.RATES) <= set(rates)
        assert entry["grid"][f"{entry['lr']:g}"] == max(entry["grid"].values())
        assert 0 < entry["mean"] < 100 and entry["std"] > 0 and entry["seeds"] == 2
        assert bool(entry["alignment"]) == (method == "dfa")


def test_nothing_is_chosen_by_the_test_set(study, tmp_path, monkeypatch):
    """While rates are chosen, the rows that are scored are training rows, not among those trained
    on; the test set has labels then that no network can learn."""
    assert study() == 0
    whole = json.loads((tmp_path / "q.json").read_text())["tasks"]["tiny"]
    (tmp_path / "again").mkdir()
    load = quality.load

    def spoiled(*asked):
        split = load(*asked)
        return split._replace(test_y=torch.zeros_like(split.test_y))

    monkeypatch.setattr(quality, "load", spoiled)
    arguments = ["--root", "nowhere", "--out", str(tmp_path / "again")]
    assert quality.main([*arguments, "--json", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())["tasks"]["tiny"]
    for method, entry in whole.items():
        assert again[method]["grid"] == entry["grid"] and again[method]["lr"] == entry["lr"]
        assert again[method]["mean"] != entry["mean"]


def test_held_out_rows_are_not_trained_on(tmp_path):
    task = quality.Task(TINY, 1)
    whole = quality.load("digits", None, 0)
    held = quality._Study(task, "nowhere", tmp_path)._held_out(0)
    assert torch.equal(torch.cat([held.train_x, held.test_x]), whole.train_x)
    assert torch.equal(torch.cat([held.train_y, held.test_y]), whole.train_y)
    assert len(held.test_x) == len(whole.train_x) // quality.HELD_OUT


def test_what_was_trained_is_read(study, tmp_path, monkeypatch):
    assert study() == 0
    first = (tmp_path / "q.json").read_text()
    monkeypatch.setattr(Experiment, "_train", lambda *_: pytest.fail("trained again"))
    assert study() == 0
    assert (tmp_path / "q.json").read_text() == first


def test_what_was_trained_otherwise_is_refused(study, tmp_path, monkeypatch, capsys):
    assert study() == 0
    result = (tmp_path / "q.json").read_text()
    monkeypatch.setitem(TINY, "hidden", (9,))
    assert study() == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "bench.quality: --hidden 9 differs from 8" in said
    assert (tmp_path / "q.json").read_text() == result


def test_missing_files_are_one_sentence(tmp_path, monkeypatch, capsys):
    task = quality.Task({"data": "fashion-mnist", "hidden": (8,)}, 1)
    monkeypatch.setattr(quality, "TASKS", {"fashion": task})
    assert quality.main(["--root", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".", "--json . is a folder, not a file"),
        ("file/q.json", "--json's folder file is a file, not a folder"),
        ("file/in/q.json", "--json's folder file/in cannot be made"),
    ],
)
def test_a_result_that_cannot_be_written_is_refused_before_a_run(
    path, reason, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(quality, "_Study", lambda *_: pytest.fail("began"))
    assert quality.main(["--root", "nowhere", "--json", path]) == 2
    assert f"bench.quality: {reason}" in capsys.readouterr().err
