"""`dfa-kernels bench` from its options to the file and the tables; what is timed is made up."""

import io
import json
import os
import subprocess
import sys
from itertools import count

import pytest
import throughput_examples as examples
import torch
from rich.console import Console

from dfa_kernels.cli import main
from dfa_kernels.throughput import ceilings, command, memory, result, scaling, table
from dfa_kernels.throughput.memory import Memory
from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.result import BASELINE, FASTER, Ceilings
from dfa_kernels.throughput.runner import Interrupted

CEILINGS = Ceilings(10.0, {"float32": 0.1, "bfloat16": 0.05}, 2.0)
MS = {BASELINE: 2.0, "bp-eager": 2.2, "reference": 1.5}


def samples(name, n=9):
    return [MS.get(name, 3.0) * (1 + 0.01 * (i % 3)) for i in range(n)]


@pytest.fixture
def made_up(monkeypatch):
    """Nothing is run: everybody takes what `MS` says, but for who is in ``dies``. ``jobs`` are
    those that were asked for."""

    class MadeUp:
        jobs, dies, stop = [], {}, None

        def events(self, jobs):
            for i, job in enumerate(jobs):
                self.jobs.append(job)
                yield {"event": "begun", "job": i}
                for name in job.contestants:
                    if name in self.dies:
                        yield {"event": "died", "contestant": name, "why": self.dies[name]}
                    elif name in ("tinydfa", "biotorch"):
                        yield {"event": "absent", "contestant": name, "why": "No module"}
                    else:
                        yield {"event": "measured", "contestant": name,
                               "samples_ms": samples(name), "launches": 20}  # fmt: skip
                if len(self.jobs) == self.stop:
                    raise Interrupted

        def measured(self, jobs):
            for job in jobs:
                for name in job.contestants:
                    yield Memory(name, job.shape, 1000 * job.shape[2], 40)

    stand_in = MadeUp()
    stand_in.jobs, stand_in.dies = [], {}
    monkeypatch.setattr(command, "events", stand_in.events)
    monkeypatch.setattr(memory, "measured", stand_in.measured)
    monkeypatch.setattr(ceilings, "measure", lambda *_: CEILINGS)
    return stand_in


def bench(*given, out):
    return main(["bench", "--threads", "1", "--out", str(out), *given])


def test_a_run_leaves_a_result_and_tables(made_up, tmp_path, capsys):
    assert bench("--shape", "8,2,16,4", "mlp:3x32", "--seconds", "0.5", out=tmp_path) == 0
    made = result.read(tmp_path / "throughput.json")
    assert [(j.shape[0], j.seconds) for j in made_up.jobs] == 6 * [(8, 0.5 / 6), (512, 0.5 / 6)]
    assert [r.shape for r in made.rows[:1]] == [(8, 2, 16, 4)]
    row = next(r for r in made.rows if r.contestant == "reference")
    assert (row.ms, row.verdict, row.peak_memory_bytes) == (pytest.approx(1.515), FASTER, 16_000)
    assert (row.rounds, row.processes) == (54, 6 * (9,))
    assert made.ceilings == CEILINGS
    assert made.environment["optimizer"] == "sgd"
    assert {"device", "processor", "threads", "torch", "date", "commit"} <= set(made.environment)
    assert any(n.startswith("tinydfa is not installed") for n in made.notes)
    said = capsys.readouterr()
    for words in ("batch 8, 2 × 16, 4 outputs", "batch 512, 3 × 32", "0.75", "faster", "0.0 MB",
                  "copy 10.0 GB/s", "triton cannot run", str(tmp_path)):  # fmt: skip
        assert words in said.out
    assert "1 of 12: 8,2,16,4 float32" in said.err


def test_every_shape_in_every_dtype(made_up, tmp_path):
    given = ["--shape", "8,2,16,4", "--dtype", "float32", "bfloat16", "--contestant", "reference"]
    assert bench(*given, "--no-memory", out=tmp_path) == 0
    rows = result.read(tmp_path / "throughput.json").rows
    assert [(r.contestant, r.dtype) for r in rows] == [
        (name, dtype) for dtype in ("float32", "bfloat16") for name in (BASELINE, "reference")
    ]
    assert rows[0].peak_memory_bytes is None
    assert rows[3].percent_of_matrix_rate == pytest.approx(2 * rows[1].percent_of_matrix_rate)


def test_a_backend_that_dies_is_one_row(made_up, tmp_path, capsys):
    made_up.dies = {"reference": "ValueError: the card fell out"}
    assert bench("--shape", "8,2,16,4", "--contestant", "reference", out=tmp_path) == 0
    base, dead = result.read(tmp_path / "throughput.json").rows
    assert (base.error, dead.error, dead.ms) == (None, "ValueError: the card fell out", None)
    assert (base.peak_memory_bytes, dead.peak_memory_bytes) == (16_000, None)
    assert (base.processes, dead.processes) == (6 * (9,), ())
    asked = [job.contestants for job in made_up.jobs]
    assert asked == [(BASELINE, "reference"), *(5 * [(BASELINE,)])]
    assert "reference died at 8,2,16,4 float32: ValueError" in capsys.readouterr().out


def test_where_everybody_has_died_no_other_process_tries(made_up, tmp_path):
    made_up.dies = {BASELINE: "no memory", "reference": "no memory"}
    assert bench("--shape", "8,2,16,4", "--contestant", "reference", out=tmp_path) == 0
    assert [job.contestants for job in made_up.jobs] == [(BASELINE, "reference")]


def test_without_a_compiler_there_are_times_and_a_sentence(made_up, tmp_path, capsys):
    made_up.dies = {BASELINE: "RuntimeError: no C++ compiler"}
    assert bench("--shape", "8,2,16,4", "--contestant", "reference", out=tmp_path) == 0
    made = result.read(tmp_path / "throughput.json")
    assert [r.ratio for r in made.rows] == [None, None]
    assert made.rows[1].ms is not None
    assert f"Where {BASELINE} died there is no ratio: see its error." in capsys.readouterr().out


def test_without_ceilings_there_are_times_and_a_sentence(made_up, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("not enough memory: you tried to allocate 268435456 bytes")

    monkeypatch.setattr(ceilings, "measure", fail)
    assert bench("--shape", "8,2,16,4", "--contestant", "reference", out=tmp_path) == 0
    row = result.read(tmp_path / "throughput.json").rows[1]
    assert row.ms is not None
    assert row.percent_of_bandwidth is None
    said = capsys.readouterr().out
    assert "no ceiling was measured" in said
    assert "The ceilings could not be measured: RuntimeError: not enough memory" in said


def test_ctrl_c_keeps_the_rows_until_then(made_up, tmp_path, capsys):
    made_up.stop = 2
    shapes = ["--shape", "8,2,16,4", "8,3,16,4", "8,4,16,4", "--contestant", "reference"]
    assert bench(*shapes, out=tmp_path) == 130
    assert len(result.read(tmp_path / "throughput.json").rows) == 4
    assert "interrupted: the 4 rows until then are in" in capsys.readouterr().err


def test_ctrl_c_before_the_first_row_writes_nothing(made_up, tmp_path, capsys, monkeypatch):
    """The same command can then be given again; and a result that was there stays."""

    def interrupt(*_):
        raise KeyboardInterrupt

    given = ["--shape", "8,2,16,4", "--contestant", "reference", "--no-memory"]
    with monkeypatch.context() as patch:
        patch.setattr(ceilings, "measure", interrupt)
        assert bench(*given, out=tmp_path) == 130
        said = capsys.readouterr()
        assert "interrupted before the first row: nothing was written" in said.err
        assert not said.out and not list(tmp_path.iterdir())
    assert bench(*given, out=tmp_path) == 0
    before = (tmp_path / "throughput.json").read_bytes()
    monkeypatch.setattr(ceilings, "measure", interrupt)
    assert bench(*given, "--overwrite", out=tmp_path) == 130
    assert (tmp_path / "throughput.json").read_bytes() == before


def test_rows_are_written_as_soon_as_they_are_measured(made_up, tmp_path):
    seen = []

    def events(jobs):
        path = tmp_path / "throughput.json"
        seen.append(len(result.read(path).rows) if path.exists() else 0)
        yield from made_up.events(jobs)

    command.events = events  # the fixture's monkeypatch puts it back
    shapes = ["--shape", "8,2,16,4", "8,3,16,4", "8,4,16,4", "--contestant", "reference"]
    assert bench(*shapes, out=tmp_path) == 0
    assert seen == [0, 2, 4, *(15 * [6])]  # and again, by other processes


def test_a_disk_that_is_full_in_the_middle_loses_no_tables(made_up, tmp_path, capsys, monkeypatch):
    write, calls = result.write, count()

    def failing(path, content):
        if next(calls) == 1:
            raise result.InputError(f"{path} cannot be written: No space left on device")
        write(path, content)

    monkeypatch.setattr(result, "write", failing)
    assert bench("--shape", "8,2,16,4", "--contestant", "reference", out=tmp_path) == 0
    said = capsys.readouterr()
    assert "No space left" in said.err
    assert "reference" in said.out
    assert len(result.read(tmp_path / "throughput.json").rows) == 2


def test_scaling_adds_curves_crossovers_and_predictions(made_up, tmp_path, capsys, monkeypatch):
    def events(jobs):
        for i, job in enumerate(jobs):
            yield {"event": "begun", "job": i}
            for name in job.contestants:
                model = (0.1 if name == "reference" else 0.2) * job.shape[1] * job.shape[2] ** 1.5
                yield {"event": "measured", "contestant": name, "samples_ms": [model] * 5,
                       "launches": 9}  # fmt: skip

    monkeypatch.setattr(command, "events", events)
    given = ["--shape", "8,2,16,4", "--contestant", "reference", "--scaling"]
    assert bench(*given, out=tmp_path) == 0
    made = result.read(tmp_path / "throughput.json")
    assert {(c.contestant, c.axis) for c in made.scaling} == {
        (n, axis) for n in ("bp-eager", "reference") for axis in scaling.VALUES["cpu"]
    }
    width = next(c for c in made.scaling if (c.contestant, c.axis) == ("reference", "width"))
    assert width.ms_exponent[0] == pytest.approx(1.5)
    assert width.memory_exponent[0] == pytest.approx(1.0)
    assert {c.axis for c in made.crossovers} == set(scaling.VALUES["cpu"])
    assert Shape(8, 2, 16, 4) in {p.shape for p in made.predictions if not p.fitted}
    said = capsys.readouterr().out
    assert "1.50 ± 0.00" in said
    assert "predicted to take less time than bp-eager" in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--shape", "1,2"], "'1,2' is not a shape"),
        (["--contestant", "fastest"], "'fastest' is unknown"),
        (
            ["--contestant", "triton", "--device", "cpu"],
            "--contestant triton cannot run on cpu: it",
        ),
        (["--dtype", "int8"], "--dtype 'int8' is unknown"),
        (["--import", "no.such.module"], "--import no.such.module failed"),
        (["--device", "cuda"], "--device 'cuda' cannot be used"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_made(tmp_path, capsys, given, words):
    assert bench(*given, out=tmp_path / "new") == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("dfa-kernels bench: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_result_is_not_overwritten_unasked(made_up, tmp_path, capsys):
    given = ["--shape", "8,2,16,4", "--contestant", "reference", "--no-memory"]
    assert bench(*given, out=tmp_path) == 0
    assert bench(*given, out=tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert bench(*given, "--overwrite", out=tmp_path) == 0


def test_without_the_extra_it_says_which(monkeypatch, capsys):
    monkeypatch.setattr("dfa_kernels.training.extras.find_spec", lambda name: None)
    assert main(["bench"]) == 2
    said = capsys.readouterr().err
    assert 'numpy and rich and scipy: pip install "dfa_kernels[bench]"' in said


def test_importing_the_command_line_imports_none_of_the_extra():
    code = (
        "import sys, dfa_kernels.cli; "
        "print([m for m in ('rich', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert said.stdout.strip() == b"[]", said.stderr


# Ceilings, memory, words ------------------------------------------------------------------------


def test_ceilings_are_rates_of_what_was_timed(monkeypatch):
    monkeypatch.setattr(ceilings, "_COPIED", {"cpu": 1 << 12})
    monkeypatch.setattr(ceilings, "_SIDES", {"cpu": (8, 16)})
    monkeypatch.setattr(ceilings, "kernel", lambda *_: [3.0, 2.0, 4.0])
    monkeypatch.setattr(ceilings, "host", lambda *_: [5.0, 6.0])
    monkeypatch.setattr(ceilings, "once", lambda *_: 0.0)
    found = ceilings.measure(torch.device("cpu"), ["float32", "autocast"], 0.0)
    assert found.gbps == pytest.approx(2 * 4096 / 2e-3 / 1e9)
    assert found.tflops["float32"] == pytest.approx(2 * 16**3 / 2e-3 / 1e12)
    assert set(found.tflops) == {"float32", "autocast"}
    assert found.launch_us == 5.0


def test_a_product_that_takes_too_long_stays_small(monkeypatch):
    sides = []
    monkeypatch.setattr(ceilings, "_SIDES", {"cpu": (8, 16, 32)})
    monkeypatch.setattr(ceilings, "once", lambda *_: 100.0)
    monkeypatch.setattr(ceilings, "multiplying", lambda d, side, *_: sides.append(side) or [1.0])
    ceilings.products(torch.device("cpu"), "float32", 0.0)
    assert sides == [8]


def test_a_dtype_that_the_device_does_not_multiply_has_no_ceiling(monkeypatch):
    def refuse(*_):
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(ceilings, "product", refuse)
    assert ceilings.products(torch.device("cpu"), "float16", 0.0) is None


def test_the_memory_of_a_step_is_what_it_holds():
    """In a process of its own, as the command does it."""
    from dfa_kernels.throughput.job import Job

    shape = (16, 3, 700, 10)
    names = ("bp-eager", "reference", "tinydfa", "bp-compiled")
    found = {m.contestant: m for m in memory.measured([Job(names, shape)])}
    parameters = 4 * (784 * 700 + 2 * 700**2 + 700 * 10 + 3 * 700 + 10)
    assert set(found) == {"bp-eager", "reference", "bp-compiled"}
    assert found["bp-eager"].feedback == 0
    assert found["reference"].feedback == 4 * 10 * 700
    assert found["bp-compiled"].peak is None
    if found["reference"].peak is not None:  # weights and momentum; and gradients
        assert 2 * parameters < found["reference"].peak < 2.6 * parameters
        assert 3 * parameters < found["bp-eager"].peak < 3.6 * parameters


@pytest.mark.parametrize(
    ("value", "wanted"), [(0.001234, "0.00123"), (1.0, "1"), (12.34, "12.3"), (12345.6, "12,346")]
)
def test_three_digits(value, wanted):
    assert table.figure(value) == wanted


@pytest.mark.parametrize(("width", "shown"), [(165, True), (110, False), (80, False)])
def test_a_narrow_terminal_has_fewer_columns_and_no_half_ones(width, shown):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    table.show(examples.result(), console)
    said = console.file.getvalue()
    assert "…" not in said.replace(" … ", "")
    assert "undecided" in said
    assert ("launches" in said) == shown
    assert max(map(len, said.splitlines())) <= width


def test_the_written_result_is_plain_json(made_up, tmp_path):
    bench("--shape", "8,2,16,4", "--contestant", "reference", out=tmp_path)
    found = json.loads((tmp_path / "throughput.json").read_text())
    assert found["format"] == result.FORMAT
    assert found["rows"][1]["shape"] == [8, 2, 16, 4]
