"""What a device's file predicts, how it is made, and that nothing is predicted without one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_scaling import JOB, METHODS, MODELS, measured

from dfa_kernels.cli import main
from dfa_kernels.throughput import cost, predict, result, scaling
from dfa_kernels.throughput.cost import Constants
from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.result import Prediction, Result
from dfa_kernels.training import InputError

ENVIRONMENT = {
    "device": "NVIDIA H200", "processor": "a CPU", "threads": 16, "torch": "2.11.0",
    "optimizer": "sgd", "date": "2026-11-24",
}  # fmt: skip
HELD = (512, 4, 1024, 10)


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """An empty folder of devices."""
    folder = tmp_path / "devices"
    folder.mkdir()
    monkeypatch.setattr(predict, "DEVICES", folder)
    return folder


@pytest.fixture
def measurement(tmp_path):
    """A result with curves, and a shape that took 10 % above the model's time."""
    ms = 1.1 * cost.predict(MODELS["reference"], Shape(*HELD), "dfa", "float32")
    held = Prediction("reference", "dfa", HELD, "float32", "cpu", 1.0, ms)
    curves = tuple(scaling.curves(measured(), METHODS, JOB, "cpu"))
    path = tmp_path / "throughput.json"
    result.write(path, Result(ENVIRONMENT, predictions=(held,), scaling=curves))
    return path


def test_a_measurement_becomes_a_device_that_predicts(devices, measurement, capsys):
    assert main(["bench", "--calibrate", str(measurement), "--out", str(devices)]) == 0
    said = capsys.readouterr().out
    assert "reference: off by 9 % at most at 1 shapes" in said
    assert "bp-eager: not checked" in said
    (path,) = devices.iterdir()
    assert path.name == "nvidia-h200.json"
    device = predict.read(path)
    assert device.environment == ENVIRONMENT
    (ours,) = (m for m in device.models if m.contestant == "reference")
    assert ours.off == {"512,4,1024,10": pytest.approx(1 / 1.1, abs=1e-3)}
    assert Constants(**ours.constants) == pytest.approx(MODELS["reference"], rel=1e-3)

    assert main(["bench", "--predict", "mlp:32x8192", "--device", "h200"]) == 0
    said = capsys.readouterr().out
    assert "512,32,8192,10" in said
    assert "NVIDIA H200" in said
    assert "not measured" in said
    wanted = cost.predict(MODELS["reference"], Shape(512, 32, 8192, 10), "dfa", "float32")
    assert f"{wanted:,.0f}" in said
    assert "9 % at most" in said


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("mi300", "no measurement of 'mi300' is packaged"),
        (None, "--predict needs --device: measured are nvidia-h100-pcie, nvidia-h200"),
        ("nvidia", "may be nvidia-h100-pcie or nvidia-h100-sxm or nvidia-h200"),
    ],
)
def test_a_device_that_nobody_measured_is_refused(devices, capsys, asked, words):
    for name in ("nvidia-h200", "nvidia-h100-sxm", "nvidia-h100-pcie"):
        (devices / f"{name}.json").write_text("{}")
    if asked is None:
        (devices / "nvidia-h100-sxm.json").unlink()
    command = ["bench", "--predict", "mlp:32x8192", *(["--device", asked] if asked else [])]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_none_is_measured_at_all(devices):
    with pytest.raises(InputError, match="measured are none"):
        predict.named("h200")


def test_names_are_found_by_their_words(devices):
    content = {"format": 1, "name": "x", "environment": {}, "models": []}
    for name in ("cpu-amd-epyc-2-threads", "cpu-amd-epyc-64-threads", "nvidia-h200"):
        (devices / f"{name}.json").write_text(json.dumps({**content, "name": name}))
    for asked in ("h200", "NVIDIA H200", "nvidia-h200"):
        assert predict.named(asked).name == "nvidia-h200"
    assert predict.named("cpu 64 threads").name == "cpu-amd-epyc-64-threads"
    with pytest.raises(InputError, match="name one of them"):
        predict.named("cpu")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("{}", "cannot be read: 'format'"),
        ('{"format": 2}', "not a device's file of format 1"),
        ('{"format": 1, "name": "x", "environment": {}, "models": [{"a": 1}]}', "cannot be read"),
        ('{"format": 1, "name": "x", "environment": {}, "models": [{"contestant": "x", "method": '
         '"bp", "dtype": "float32", "off": {}, "constants": {"gflop": 1}}]}', "other constants"),
        ("[]", "cannot be read"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_sentence(devices, text, words):
    (devices / "x.json").write_text(text)
    with pytest.raises(InputError, match=words):
        predict.named("x")


def test_a_result_without_curves_is_refused(tmp_path, measurement, capsys):
    result.write(measurement, replace(result.read(measurement), scaling=()))
    assert main(["bench", "--calibrate", str(measurement), "--out", str(tmp_path / "out")]) == 2
    assert "measure with --scaling" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(measurement, capsys):
    assert main(["bench", "--calibrate", str(measurement), "--out", str(measurement)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_cpu_is_called_by_its_threads():
    cpu = {"device": "AMD EPYC", "processor": "AMD EPYC", "threads": 2}
    assert predict.name_of(cpu) == "cpu-amd-epyc-2-threads"


def test_every_packaged_device_predicts(capsys):
    for path in Path(predict.__file__).with_name("devices").glob("*.json"):
        assert predict.read(path).name == path.stem
        assert main(["bench", "--predict", "256,4,1024,10000", "--device", path.stem]) == 0
