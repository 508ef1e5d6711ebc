"""What bench can be asked for, and the sentence for what it cannot."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfa_kernels.throughput import lineup, options
from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.options import Options, parse_shape
from dfa_kernels.throughput.result import BASELINE
from dfa_kernels.training import InputError

number = st.integers(1, 10**6)


@given(st.builds(Shape, number, number, number, number))
def test_a_shape_is_read_as_it_is_shown(shape):
    assert parse_shape(str(shape)) == shape
    written = f"mlp:{shape.depth}x{shape.width},outputs={shape.outputs},batch={shape.batch}"
    assert parse_shape(written) == shape


def test_a_network_without_batch_and_outputs_has_the_usual():
    assert parse_shape("mlp:32x8192") == (options.BATCH, 32, 8192, options.OUTPUTS)


@pytest.mark.parametrize(
    "text",
    ["", "512", "1,2,3", "1,2,3,4,5", "0,1,2,3", "1,2,-3,4", "mlp:4", "mlp:0x5", "mlp:4x5,batch=",
     "mlp:4x5,depth=3", "1.5,2,3,4", "cnn:4x5", "9" * 13 + ",1,1,1", "mlp:4x5,batch=0"],
)  # fmt: skip
def test_what_is_no_shape_is_named(text):
    with pytest.raises(InputError, match="not a shape") as error:
        parse_shape(text)
    assert repr(text) in str(error.value)


def test_the_defaults_are_all_who_can_run():
    made = Options.resolve({})
    assert made.contestants[:2] == ("bp-eager", BASELINE)
    assert "reference" in made.contestants
    assert not made.asked
    assert (made.dtypes, made.device, made.optimizer) == (("float32",), "cpu", "sgd")
    assert made.threads == torch.get_num_threads()
    assert {j.shape for j in made.jobs()} == set(options.SHAPES["cpu"])
    assert any("triton cannot run" in note for note in made.notes)


def test_what_was_asked_for():
    made = Options.resolve(
        {"contestant": ["reference", "bp-eager", "reference"], "shape": ["1,2,3,4", "mlp:5x6"],
         "dtype": ["bfloat16", "float32"], "seconds": 0.5, "processes": 2, "threads": 3,
         "optimizer": "adamw"}
    )  # fmt: skip
    assert made.contestants == (BASELINE, "reference", "bp-eager")
    assert made.asked
    jobs = made.jobs()
    assert [(j.precision, j.shape[0]) for j in jobs] == [
        ("bfloat16", 1), ("bfloat16", 512), ("float32", 1), ("float32", 512),
    ]  # fmt: skip
    assert {(j.seconds, j.threads, j.rule) for j in jobs} == {(0.25, 3, "adamw")}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"contestant": ["tinydfaa"]}, "'tinydfaa' is unknown"),
        ({"shape": ["1,2"]}, "'1,2' is not a shape"),
        ({"dtype": ["fp8"]}, "--dtype 'fp8' is unknown: known are float32, float64"),
        ({"optimizer": "lion"}, "--optimizer 'lion' is unknown: known are sgd, adamw"),
        ({"seconds": -1.0}, "--seconds must be finite and at least 0, got -1.0"),
        ({"seconds": float("nan")}, "got nan"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"processes": 0}, "--processes must be at least 1, got 0"),
        ({"device": "cuda:7"}, "--device 'cuda:7' cannot be used"),
        ({"device": "gpu"}, "--device 'gpu' cannot be used"),
        ({"device": "meta"}, "--device 'meta' is timed by no clock"),
        ({"modules": ["no.such"]}, "--import no.such failed"),
    ],
)
def test_what_cannot_be_is_one_sentence(wrong, words):
    with pytest.raises(InputError) as error:
        Options.resolve(wrong)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_who_is_named_and_cannot_run_is_refused(monkeypatch):
    """Where nobody is named, who cannot run is a note."""
    monkeypatch.setattr(lineup, "find_spec", lambda name: None)
    why = {
        "triton": "it runs on CUDA and ROCm devices, not on cpu",
        "triton/torch.optim": "it runs on CUDA and ROCm devices, not on cpu",
        "tinydfa": "the package tinydfa is not installed",
    }
    for name, reason in why.items():
        with pytest.raises(InputError) as error:
            Options.resolve({"contestant": ["reference", name]})
        assert str(error.value) == f"--contestant {name} cannot run on cpu: {reason}"
    made = Options.resolve({})
    assert {"tinydfa", "triton"} & set(made.contestants) == {"tinydfa"}


def test_a_backend_that_takes_none_of_the_dtypes_is_refused(monkeypatch):
    monkeypatch.setattr(lineup.backends.get("cuda"), "unavailable", lambda device: None)
    asked = {"contestant": ["cuda"], "dtype": ["float64"]}
    with pytest.raises(InputError, match="cuda cannot run on cpu: it does not take float64"):
        Options.resolve(asked)
    for dtype in ("float32", "autocast"):
        both = Options.resolve({"contestant": ["cuda"], "dtype": ["float64", dtype]})
        assert both.contestants == (BASELINE, "cuda")


def test_a_backend_that_the_environment_names_and_that_cannot_run(monkeypatch):
    monkeypatch.setenv("DFA_KERNELS_BACKEND", "triton")
    with pytest.raises(InputError, match="'triton', named by DFA_KERNELS_BACKEND, cannot run"):
        lineup.chosen(torch.device("cpu"))


def test_the_folder_is_made_and_a_result_in_it_is_not_lost(tmp_path):
    path = options.prepare(tmp_path / "a" / "b", False)
    assert path.parent.is_dir()
    path.write_text("{}")
    with pytest.raises(InputError, match="--overwrite"):
        options.prepare(path.parent, False)
    assert options.prepare(path.parent, True) == path
    with pytest.raises(InputError, match="is a file"):
        options.prepare(path, False)
    with pytest.raises(InputError, match="cannot be made"):
        options.prepare(path / "under", False)
    (tmp_path / options.FILE).mkdir()
    with pytest.raises(InputError, match=f"{options.FILE}, the file to write, is a folder"):
        options.prepare(tmp_path, True)


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(InputError, match="cannot be written to"):
        options.prepare(tmp_path, False)
