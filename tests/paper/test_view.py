"""The task as a whole: runs, checkpoints, scores, rows, pictures, and the command line."""

import argparse
import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from bench.paper import options as asked_options
from bench.paper import training
from bench.paper.__main__ import main
from bench.paper.study import Study
from bench.paper.view import TASK, procedural
from bench.paper.view.model import Size
from bench.paper.view.problem import Views, scores
from dfa_kernels.training import InputError
from tests.paper import view_files as files

TINY = Size(depth=2, width=8, skip=0, position=2, direction=1, coarse=4, fine=3)
METHODS = ("dfa", "bp", "shallow")


@pytest.fixture(scope="module")
def scene():
    return procedural.load(8)


def problem(scene, steps=4, size=TINY, **changed):
    given = {"rays": 16, "frames": 2, "distribution": "rademacher", "device": "cpu"} | changed
    return Views("nerf-tiny", scene, size, steps=steps, **given)


def asked(*arguments):
    parser = asked_options.Parser()
    asked_options.add(parser, TASK)
    options = parser.parse_args([str(a) for a in arguments])
    asked_options.check(options, TASK)
    return options


# A run ------------------------------------------------------------------------------------------


def test_methods_start_alike_and_see_the_same_rays(scene):
    losses = {method: problem(scene).run(method, 1e-3, 7).step() for method in METHODS}
    assert losses["dfa"] == pytest.approx(losses["bp"], abs=1e-6)
    assert losses["dfa"] == pytest.approx(losses["shallow"], abs=1e-6)
    assert losses["dfa"] != problem(scene).run("dfa", 1e-3, 8).step()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_what_it_should_in_both_fields(scene, method):
    run = problem(scene).run(method, 1e-2, 0)
    before = {n: p.detach().clone() for n, p in run.net.module.named_parameters()}
    run.step()
    run.step()  # in the first one the heads are zero, and backpropagation brings nothing past them
    moved = {n for n, p in run.net.module.named_parameters() if not torch.equal(p, before[n])}
    heads = {n for n in before if "density" in n or "colour" in n}
    assert heads < set(before)
    assert moved == (heads if method == "shallow" else set(before))


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(scene, method):
    run = problem(scene, steps=60, rays=64).run(method, 1e-2, 0)
    losses = [run.step() for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_anywhere_goes_on_with_the_same_bits(scene, tmp_path, method, at):
    trained = problem(scene)
    whole, _ = training.train(trained, method, 1e-3, 0, tmp_path / "whole")
    steps = []
    with pytest.raises(training.Stopped):
        training.train(
            trained, method, 1e-3, 0, tmp_path / "cut",
            watch=lambda step, loss: steps.append(step), stop=lambda: steps[-1] == at,
        )  # fmt: skip
    torch.manual_seed(99)
    resumed, _ = training.train(trained, method, 1e-3, 0, tmp_path / "cut")
    for name in ("test", "validation", "loss", "selection", "alignment"):
        assert json.dumps(resumed[name]) == json.dumps(whole[name]), name  # NaN is itself here


def test_scores_are_of_the_weights_as_they_are(scene):
    run = problem(scene).run("bp", 1e-2, 0)
    first = run.scores("validation")
    assert run.scores("validation") == first
    state = copy.deepcopy(run.state())
    run.step()
    second = run.scores("validation")
    assert second != first
    run.restore(state)
    assert run.scores("validation") == first


def test_alignment_covers_both_fields_and_leaves_the_run_as_it_was(scene):
    """Backpropagation's loss, two steps on, is the same with and without it."""
    runs = [problem(scene).run("dfa", 1e-3, 0) for _ in range(2)]
    for run in runs:
        run.step()
    found = runs[0].alignment()
    layers = ["trunk.0", "trunk.1", "feature", "view"]
    assert list(found) == [f"{f}.{n}" for f in ("coarse", "fine") for n in layers]
    assert all(-1 <= cosine.mean <= 1 for cosine in found.values())
    assert runs[0].step() == runs[1].step() and runs[0].step() == runs[1].step()


def test_a_true_picture_scores_best():
    g = np.random.default_rng(0)
    truth = g.random((16, 16, 3), dtype=np.float32)
    worse = np.clip(truth + 0.1, 0, 1)
    assert scores(truth, truth) == {"PSNR": float("inf"), "SSIM": pytest.approx(1)}
    assert scores(worse, truth)["PSNR"] == pytest.approx(20.3, abs=0.3)
    assert scores(worse, truth)["SSIM"] < 1
    flat = np.full((16, 16, 3), 0.5, np.float32)
    assert scores(flat + 0.1, flat)["PSNR"] == pytest.approx(20, abs=1e-3)


# The study --------------------------------------------------------------------------------------


def test_a_study_leaves_rows_and_pictures(scene, tmp_path, monkeypatch):
    times = Study._times
    monkeypatch.setattr(Study, "_times", lambda self, seconds: times(self, 0.0))
    options = asked("--quick", "--out", tmp_path, "--lr", 1e-3)
    rows = Study(TASK, problem(scene, steps=2), options).run()
    assert [(row.method, row.metric) for row in rows] == [
        (method, metric) for method in METHODS for metric in ("PSNR", "SSIM")
    ]
    loaded = json.loads(options.json.read_text())
    dfa = loaded[0]
    assert (dfa["task"], dfa["model"], dfa["data"]) == ("view", "nerf-tiny", "procedural")
    assert dfa["description"]["views"] == {"train": 40, "validation": 4, "test": 6}
    assert set(dfa["alignment"]) == set(problem(scene).run("dfa", 1e-3, 0).alignment())
    assert dfa["feedback_bytes"] > 0 and loaded[2]["feedback_bytes"] == 0
    folder = tmp_path / "nerf-tiny-procedural"
    for name, columns in (("views.png", 4), ("depth.png", 4), ("orbit.png", 2)):
        with Image.open(folder / name) as picture:
            assert (picture.width - 4) % columns == 0 and picture.width // columns > 100
    with Image.open(folder / "orbit.gif") as orbit:
        assert orbit.n_frames == 2


def test_the_views_in_the_picture_are_the_methods_own(scene, tmp_path):
    """A tile of views.png is that run's rendering."""
    trained = problem(scene, frames=0)
    runs = {method: trained.run(method, 1e-3, i) for i, method in enumerate(METHODS)}
    paths = trained.draw(runs, tmp_path)
    assert [path.name for path in paths] == ["views.png", "depth.png"]
    sheet = np.asarray(Image.open(paths[0])).astype(float)
    views = scene.splits["test"]
    tiles = [views.pixels[0].numpy()]
    tiles += [255 * run.picture(views.poses[0]).colour for run in runs.values()]
    for column, tile in enumerate(tiles):
        top, left = 4 + 14, 4 + column * (12 * 13 + 4)
        shown = sheet[top + 6 : top + 156 : 13, left + 6 : left + 156 : 13]
        assert np.abs(shown - tile).max() <= 0.5 + 1e-3, column


# The command line -------------------------------------------------------------------------------


def test_every_source_is_reached_from_the_command_line(tmp_path):
    files.write_capture(tmp_path / "shelf")
    files.write_llff(tmp_path / "flower")
    files.write_blender(tmp_path / "bricks")
    for data, name, background in (
        ("capture", "shelf", None), ("llff", "flower", None), ("blender", "bricks", 1.0),
    ):  # fmt: skip
        options = asked("--data", data, "--root", tmp_path / name, "--every", 1, "--steps", 5)
        made = TASK.problem(options)
        assert (made.data, made.steps, made.scene.volume.background) == (name, 5, background)
        assert made.run("dfa", 1e-3, 0).step() > 0
    black = asked("--data", "blender", "--root", tmp_path / "bricks", "--background", "black")
    assert TASK.problem(black).scene.volume.background == 0.0
    near = asked("--data", "blender", "--root", tmp_path / "bricks", "--near", 1, "--far", 9)
    assert TASK.problem(near).scene.volume == (1.0, 9.0, 1.0)


def test_the_published_model_is_one_option_away():
    made = TASK.problem(asked("--model", "nerf", "--downscale", 8))
    assert made.steps == 200_000 and made.rays == 4096
    assert (made.size.coarse, made.size.fine, made.size.depth, made.size.width) == (64, 128, 8, 256)


def test_every_method_gets_one_grid():
    options = asked()
    assert (
        TASK.rates(options) == TASK.rates(asked("--method", "shallow"))
        and len(TASK.rates(options)) > 1
    )
    assert len(TASK.rates(asked("--quick"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data capture", r"--data capture needs --root DIR, the folder of transforms\.json"),
        ("--data capture --root nowhere", "--root nowhere is no folder"),
        ("--data capture --root {}", r"transforms\.json does not exist"),
        ("--data llff --root {}", r"poses_bounds\.npy does not exist"),
        ("--data blender --root {}", r"transforms_train\.json does not exist"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--rays -3", "--rays must be at least 1, got -3"),
        ("--downscale 0", "--downscale must be at least 1, got 0"),
        ("--downscale 9", "--downscale 9 leaves 10 × 10 pixels"),
        ("--frames -1", "--frames must be at least 0, got -1"),
        ("--every 0", "--every must be at least 1, got 0"),
        ("--near 2", "--near is of no use with --data procedural"),
        ("--data blender --root {} --near 5 --far 4", "--near 5 is not before --far 4"),
        ("--data blender --root {} --far inf", "--far must be positive and finite, got inf"),
        ("--background black", "the procedural scene lies on white"),
        ("--device tpu9", "--device 'tpu9' cannot be used"),
        ("--device meta", "--device 'meta' holds no numbers"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(capsys, tmp_path, arguments, message):
    given = [a.format(tmp_path) for a in arguments.split()]
    assert main(["view", *given, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench.paper view: ") and said.count("\n") == 1
    with pytest.raises(InputError, match=message):
        TASK.problem(asked(*given))
    assert not (tmp_path / "out").exists()


def test_a_namespace_is_completed():
    options = asked("--quick")
    made = TASK.problem(options)
    assert isinstance(options, argparse.Namespace) and made.frames == options.frames == 8
    assert made.scene.camera.width == 24


@pytest.mark.parametrize("steps", [1, 4, 100, 200_000])
def test_the_rate_rises_and_then_falls_to_a_tenth(scene, steps):
    share = [
        problem(scene, steps=steps).share_of_rate(step)
        for step in range(0, steps, -(-steps // 100))
    ]
    assert all(0 < s <= 1 for s in share)
    if steps >= 100:
        assert share[0] < 0.11 and max(share) == pytest.approx(0.8, abs=0.03)
        assert share.index(max(share)) == pytest.approx(10, abs=1)
        assert share[-1] == pytest.approx(0.1, abs=0.005)
