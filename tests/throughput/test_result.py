"""A result is read back as it was written, and what is not one is refused in a sentence."""

import json
from dataclasses import asdict

import pytest
import throughput_examples as examples
from hypothesis import given
from hypothesis import strategies as st

from dfa_kernels.throughput import result
from dfa_kernels.throughput.result import FORMAT, Result, Row
from dfa_kernels.training import InputError


def as_json(**changes):
    return {"format": FORMAT, **json.loads(json.dumps(asdict(examples.result()))), **changes}


def refused(found, where="old.json"):
    with pytest.raises(InputError) as error:
        result.parse(found if isinstance(found, str) else json.dumps(found), where)
    said = str(error.value)
    assert said.startswith(where)
    assert "\n" not in said
    return said


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    made = examples.result()
    result.write(tmp_path / "throughput.json", made)
    assert result.read(tmp_path / "throughput.json") == made
    assert [f.name for f in tmp_path.iterdir()] == ["throughput.json"]


finite = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    Row,
    contestant=st.text(),
    method=st.sampled_from(result.METHODS),
    shape=st.tuples(*[st.integers(1, 10**6)] * 4),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    device=st.text(),
    ms=st.none() | finite,
    quartiles=st.none() | st.tuples(finite, finite),
    verdict=st.none() | st.sampled_from(result.VERDICTS),
    flops=st.none() | st.integers(0, 2**80),
    samples_ms=st.lists(finite).map(tuple),
    error=st.none() | st.text(),
)


@given(st.lists(rows, max_size=3), st.lists(st.text(), max_size=2))
def test_any_rows_are(many, notes):
    made = Result({"cores": 2, "torch": "2.13"}, rows=tuple(many), notes=tuple(notes))
    text = json.dumps({"format": FORMAT, **asdict(made)}, allow_nan=False)
    assert result.parse(text, "here") == made


@pytest.mark.parametrize("other", [0, FORMAT + 1, "1", None])
def test_another_format_is_named(other):
    said = refused(as_json(format=other))
    assert repr(other) in said
    assert str(FORMAT) in said


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("", "line 1"),
        ('{"format": 1,\n"rows": [}', "line 2"),
        ("[]", "no format"),
        ({}, "no format"),
        (as_json(rows={}), "rows is {}"),
        (as_json(speed=1), "speed is not a field"),
        ({"format": FORMAT}, "lacks environment"),
        (as_json(rows=[{"contestant": "x"}]), "rows[0] lacks method, shape, dtype, device"),
        (as_json(ceilings={"gbps": "fast"}), "ceilings.gbps is"),
        (as_json(ceilings={"gbps": True}), "ceilings.gbps is true"),
    ],
)
def test_what_is_damaged_is_named(found, words):
    assert words in refused(found)


def test_a_shape_of_three_numbers_and_a_time_that_is_not_a_number_are_named():
    found = as_json()
    found["rows"][2]["shape"] = [1, 2, 3]
    assert "rows[2].shape is [1, 2, 3]" in refused(found)
    found = as_json()
    found["rows"][1]["ms"] = float("nan")
    assert "rows[1].ms is NaN" in refused(found)
    found = as_json()
    found["rows"][0]["rounds"] = True
    assert "rows[0].rounds is true" in refused(found)


def test_no_file_a_folder_and_bytes_are_one_sentence(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in ("none.json", ".", "bytes.json"):
        with pytest.raises(InputError, match="cannot be read"):
            result.read(tmp_path / name)


def test_where_nothing_can_be_written_is_one_sentence_and_leaves_the_old_file(tmp_path):
    (tmp_path / "throughput.json").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        result.write(tmp_path / "throughput.json", examples.result())
    with pytest.raises(InputError, match="cannot be written"):
        result.write(tmp_path / "nowhere" / "throughput.json", examples.result())
