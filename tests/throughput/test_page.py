"""The page of `dfa-kernels report`: what is on it, from which files, and what it refuses."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import page_examples
import pytest
import throughput_examples as examples
from hypothesis import given
from hypothesis import strategies as st

from dfa_kernels import cli
from dfa_kernels.throughput import result
from dfa_kernels.throughput.plots import linear, logarithmic, short
from dfa_kernels.throughput.result import Ceilings, Result

pytest.importorskip("jinja2", reason="needs the extra: dfa_kernels[bench]")
pytest.importorskip("rich", reason="needs the extra: dfa_kernels[bench]")

from dfa_kernels.profiling import report as profiling
from dfa_kernels.throughput import page


class Elements(HTMLParser):
    """Tags, attributes and text of a page, by sections."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.sections, self.scripts = [], [], {}, {}
        self._section, self._script = "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag == "section":
            self._section = given["id"]
        if tag == "script":
            self._script = given.get("id", "")

    def handle_endtag(self, tag):
        if tag == "section":
            self._section = ""
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            text = " ".join(data.split())
            if text:
                self.sections.setdefault(self._section, []).append(text)

    def text(self, section):
        return " ".join(self.sections[section])

    def charts(self, kind):
        return self.attributes.count(("div", "data-chart", kind)) + self.attributes.count(
            ("figure", "data-chart", kind)
        )


def saved(folder, name, found):
    path = folder / name
    if isinstance(found, Result):
        result.write(path, found)
    else:
        profiling.write(path, profiling.as_json(found))
    return path


def made(folder, **files):
    """The page of these results and profiles, by the files' names."""
    paths = [saved(folder, f"{name}.json", found) for name, found in files.items()]
    out = folder / "page.html"
    assert cli.main(["report", *map(str, paths), "--out", str(out)]) == 0
    return Elements(out.read_text(encoding="utf-8"))


def test_a_result_is_on_its_page(tmp_path, capsys):
    found = made(tmp_path, run=examples.result())
    sentence = (
        "A DFA step by reference takes 0.70 of compiled backpropagation's time at the median of 3 "
        "shapes (0.70 to 0.70): faster on 3."
    )
    assert sentence in found.text("")
    assert capsys.readouterr().out == f"{sentence}\n{tmp_path / 'page.html'}\n"
    ratios = found.text("ratios")
    assert "3 × 256, batch 128, 10 outputs, float32" in ratios
    assert "reference 0.70 faster 3.02 ms" in ratios and "hand-written-dfa 0.99 undecided" in ratios
    assert "optical RuntimeError: the card fell out" in ratios
    assert found.charts("bars") == 3
    assert found.charts("plot") == 3  # a roofline; time and memory by width
    assert "reference, exponent 1.80 ± 0.02" in found.text("scaling")
    assert "From a width of about 96 on, reference is faster." in found.text("scaling")
    assert "128,3,256,10 float32 3.1 2.9 +7 % no" in found.text("scaling")
    assert "float32: 0.12 TFLOP/s, 20 GB/s" in found.text("roofline")
    environment = found.text("environment")
    assert "processor an example" in environment and "copy, GB/s 20" in environment
    assert "TinyDFA is not installed" in environment
    assert "10 rows" in found.text("figures") and "% of products" in found.text("figures")
    assert "changes" not in found.sections and "steps" not in found.sections


def test_two_results_stand_side_by_side(tmp_path):
    found = made(tmp_path, old=examples.result(), new=page_examples.another())
    assert "new A DFA step by reference takes 0.84" in found.text("")
    assert "reference old 0.70 faster" in found.text("ratios")
    assert "reference new 0.84 faster" in found.text("ratios")
    assert "new, by old" in found.text("changes")
    assert "1.200" in found.text("changes") and "slower" in found.text("changes")
    assert found.charts("bars") == 3 and found.charts("plot") == 4


def test_results_of_two_devices_are_not_compared_by_time(tmp_path):
    elsewhere = page_examples.another()
    elsewhere = replace(elsewhere, environment={**elsewhere.environment, "device": "another"})
    found = made(tmp_path, a=examples.result(), b=elsewhere)
    assert "changes" not in found.sections
    assert "reference another 0.84" in found.text("ratios")


def test_a_profile_alone(tmp_path):
    found = made(tmp_path, profile=page_examples.log())
    steps = found.text("steps")
    assert "dfa, 3 × 256 tanh, 10 outputs, batch 128: 4 ms a step, reference" in steps
    assert "update + optimizer 1.500 38 % 1.200 memory 0.300" in steps
    assert "Python 0.500 12 % 0" in steps and "it was an example" in steps
    assert found.charts("step") == 2 and found.charts("plot") == 1
    assert "projection, dfa" in found.text("roofline")
    assert ("span", "class", "key square part-projection") in found.attributes  # bp's
    assert "shallow: it died: RuntimeError: no" in found.text("environment")
    assert "ratios" not in found.sections and "scaling" not in found.sections


def test_a_floor_that_is_beaten_leaves_no_gap_on_the_page(tmp_path):
    log = page_examples.log()
    taken = log.methods["dfa"]
    parts = [replace(p, floor_ms=2.0) if p.part == "update" else p for p in taken.parts]
    log = replace(log, methods={"dfa": replace(taken, parts=tuple(parts))})
    steps = made(tmp_path, profile=log).text("steps")
    assert "update + optimizer 1.500 38 % 2.000 memory –" in steps


def test_a_profile_joins_the_roofline_of_its_own_machine_and_commit(tmp_path):
    together = made(tmp_path, run=examples.result(), profile=page_examples.log())
    assert "update + optimizer of dfa, 3 × 256 tanh" in together.text("roofline")
    assert "reference, 3 × 256, batch 128" in together.text("roofline")
    assert together.charts("plot") == 3
    apart = made(tmp_path, run=examples.result(), profile=page_examples.log(commit="0123456"))
    assert apart.charts("plot") == 4


def test_an_empty_result_has_a_page(tmp_path):
    found = made(tmp_path, run=Result(environment={"date": "2026-11-24"}))
    assert "No DFA backend has a ratio to bp-compiled here." in found.text("")
    assert found.charts("bars") == found.charts("plot") == 0


def test_a_result_of_the_baseline_that_died(tmp_path):
    """Nothing has a ratio then: each row says so, and the rest is there."""
    died = [
        replace(r, ratio=None, ratio_quartiles=None, verdict=None) for r in examples.result().rows
    ]
    found = made(tmp_path, run=replace(examples.result(), rows=tuple(died)))
    assert "reference no ratio: bp-compiled has no time here" in found.text("ratios")
    assert found.charts("plot") == 3


def test_without_ceilings_there_is_no_roofline(tmp_path):
    found = made(tmp_path, run=replace(examples.result(), ceilings=Ceilings()))
    assert "roofline" not in found.sections and "copy, GB/s –" in found.text("environment")


def test_the_best_backend_is_the_verdicts(tmp_path):
    rows = examples.result().rows
    slow = [replace(r, contestant="triton") for r in page_examples.another().rows]
    slow = [r for r, was in zip(slow, rows, strict=True) if was.contestant == "reference"]
    found = made(tmp_path, run=replace(examples.result(), rows=(*rows, *slow)))
    assert "A DFA step by reference takes 0.70" in found.text("")


@pytest.mark.parametrize(
    ("factor", "told", "kind"),
    [(1.0, "faster on 3", "faster"), (1.6, "faster on 0, slower on 3", "slower")],
)
def test_the_verdict_counts_rows(tmp_path, factor, told, kind):
    changed = page_examples.slower(examples.result(), factor)
    rows = [
        replace(r, verdict=r.verdict and ("faster" if r.ratio < 1 else "slower"))
        for r in changed.rows
    ]
    found = made(tmp_path, run=replace(changed, rows=tuple(rows)))
    assert told in found.text("") and ("p", "class", f"verdict {kind}") in found.attributes


# Safety -----------------------------------------------------------------------------------------


def test_every_text_is_escaped(tmp_path):
    found = made(tmp_path, run=page_examples.hostile(), profile=page_examples.log())
    assert "img" not in found.tags
    assert found.tags.count("script") == 3  # two files, and the page's own
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    assert page_examples.HOSTILE in found.text("environment")


def test_each_file_is_embedded_as_it_was(tmp_path):
    files = {"run": page_examples.hostile(), "profile": page_examples.log()}
    found = made(tmp_path, **files)
    for number, name in enumerate(files):
        embedded = found.scripts[f"file-{number}"]
        assert json.loads(embedded) == json.loads((tmp_path / f"{name}.json").read_text())
        assert not re.search("[<>&]", embedded)


def test_nothing_is_asked_of_a_network(tmp_path):
    found = made(tmp_path, run=examples.result(), profile=page_examples.log())
    for tag, name, value in found.attributes:
        if name in ("src", "href", "action", "poster", "srcset"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    policy = next(v for t, n, v in found.attributes if n == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none';") and "http" not in policy
    assert "url(" not in (tmp_path / "page.html").read_text()


# Files ------------------------------------------------------------------------------------------


def test_bad_files_are_one_sentence_and_write_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = saved(tmp_path, "run.json", examples.result())
    old = {**json.loads(run.read_text()), "format": 99}
    Path("old.json").write_text(json.dumps(old))
    Path("broken.json").write_text('{"format": 1,\n "rows": [}')
    Path("bytes.json").write_bytes(b"\xff\xfe\x00")
    Path("else.json").write_text("[1, 2]")
    log = profiling.as_json(page_examples.log())
    Path("profile-old.json").write_text(json.dumps({**log, "format": 0}))
    Path("profile-damaged.json").write_text(json.dumps({**log, "methods": {"dfa": {"ms": "x"}}}))
    Path("folder").mkdir()
    Path("README.md").write_text("# Mine\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    for arguments, message in (
        (["nowhere.json"], "nowhere.json cannot be read: No such file or directory"),
        (["folder"], "folder cannot be read: Is a directory"),
        (["broken.json"], "broken.json is not a result of dfa-kernels bench: line 2"),
        (["bytes.json"], "bytes.json cannot be read: it is not text"),
        (["else.json"], "else.json is not a result of dfa-kernels bench"),
        (["run.json", "old.json"], "old.json is a result of format 99"),
        (["profile-old.json"], "profile-old.json is a profile of format 0"),
        (["profile-damaged.json"], "profile-damaged.json is damaged: methods.dfa.ms is"),
        (["run.json", "--out", "folder"], "--out folder is a folder, not a page"),
        (["run.json", "--out", "run.json"], "--out run.json is one of the results"),
        (["run.json", "--out", "run.json", "--overwrite"], "--out run.json is one of the results"),
        (["run.json", "--out", "run.json/page.html"], "cannot be written"),
        (["run.json", "--out", "README.md"], "--out README.md exists and is no page of"),
        (["run.json", "--out", "old.json"], "replace it with --overwrite, or give another --out"),
        ([], "the following arguments are required: RESULT.json"),
    ):
        try:
            status = cli.main(["report", *arguments])
        except SystemExit as left:
            status = left.code
        said = capsys.readouterr().err
        assert status == 2 and message in said and said.count("\n") == 1, (arguments, said)
        assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert Path("README.md").read_text() == "# Mine\n"


def test_a_page_is_made_anew_and_something_else_replaced_when_asked(tmp_path):
    run, out = saved(tmp_path, "run.json", examples.result()), tmp_path / "page.html"
    out.write_text("# Mine\n")
    assert cli.main(["report", str(run), "--out", str(out), "--overwrite"]) == 0
    first = out.read_text(encoding="utf-8")
    saved(tmp_path, "run.json", page_examples.another())
    assert cli.main(["report", str(run), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") != first


def test_the_same_file_twice_has_two_names(tmp_path):
    path = saved(tmp_path, "run.json", examples.result())
    first, second = page.read([path, path])
    assert first.label != second.label and "run" in first.label


def test_the_template_is_installed_with_the_package():
    folder = resources.files("dfa_kernels.throughput") / "templates"
    assert (folder / "page.html.jinja").is_file()
    settings = (Path(page.__file__).parents[2] / "pyproject.toml").read_text()
    assert "throughput/templates/*.jinja" in settings


# Places on charts -------------------------------------------------------------------------------

positive = st.floats(1e-9, 1e12)


@given(st.lists(positive, min_size=1, max_size=20))
def test_places_on_a_logarithmic_axis_are_inside_and_in_order(values):
    axis = logarithmic(values)
    places = [axis.at(v) for v in sorted(values)]
    assert places == sorted(places) and all(0 <= p <= 100 for p in places)
    assert all(axis.low <= v <= axis.high for v, _ in axis.ticks)
    assert len(axis.ticks) <= 8
    assert axis.at(axis.low) == 0 and axis.at(axis.high) == 100


@given(positive)
def test_a_linear_axis_begins_at_zero(high):
    axis = linear(high)
    assert axis.at(0) == 0 and axis.at(high) == 100 and axis.at(2 * high) == 100
    assert 2 <= len(axis.ticks) <= 6 and axis.ticks[0] == (0, "0")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1024, "1024"),
        (0.123456, "0.123"),
        (1.5e6, "1.5M"),
        (250000, "250k"),
        (3e13, "30T"),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text
