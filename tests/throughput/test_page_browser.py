"""The page in a real browser: on a desk, on a phone, on a dark screen, from disk."""

import struct
import zlib

import page_examples
import pytest
import throughput_examples as examples
from browser import NAMES, Browser, executable

pytest.importorskip("jinja2", reason="needs the extra: dfa_kernels[bench]")
pytest.importorskip("rich", reason="needs the extra: dfa_kernels[bench]")
if executable() is None:
    pytest.skip(f"there is none of {', '.join(NAMES)} here", allow_module_level=True)

from dfa_kernels.profiling import report as profiling
from dfa_kernels.throughput import page, result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages: of one result, of three files, and of one that would run its own scripts."""
    made = tmp_path_factory.mktemp("pages")
    for name, found in (
        ("one", examples.result()), ("two", page_examples.another()),
        ("hostile", page_examples.hostile()),
    ):  # fmt: skip
        result.write(made / f"{name}.json", found)
    profiling.write(made / "profile.json", profiling.as_json(page_examples.log()))
    page.report([made / "one.json"], made / "one.html")
    three = [made / f"{name}.json" for name in ("one", "two", "profile")]
    page.report(three, made / "three.html")
    page.report([made / "hostile.json", made / "profile.json"], made / "hostile.html")
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


SCREENS = pytest.mark.parametrize(
    ("width", "dark"), [(1200, False), (1200, True), (360, False), (360, True)]
)


@SCREENS
@pytest.mark.parametrize(("name", "charts"), [("one", 6), ("three", 3 + 4 + 2)])
def test_every_chart_is_seen_and_nothing_is_said(browser, folder, name, charts, width, dark):
    browser.open(folder / f"{name}.html", width=width, dark=dark)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('[data-chart]')].map(c => {"
        "const b = c.getBoundingClientRect(); return [b.left, b.right, b.height]})"
    )
    assert len(boxes) == charts
    for left, right, height in boxes:
        assert left >= 0 and right <= width and right - left > 0.8 * min(width, 480) - 40
        assert height > 20
    assert browser.said == []
    assert browser.requested == [(folder / f"{name}.html").as_uri()]
    # Nothing is cut off, or must be scrolled to at the side, but inside a table.
    assert browser.evaluate("document.documentElement.scrollWidth") == width


def brightness(browser, element):
    colour = browser.evaluate(f"getComputedStyle({element[0]}).{element[1]}")
    red, green, blue = (int(c) for c in colour.split("(")[1].rstrip(")").split(",")[:3])
    return 0.3 * red + 0.6 * green + 0.1 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_a_dark_screen_has_its_own_colours(browser, folder, dark):
    browser.open(folder / "one.html", dark=dark)
    paper = brightness(browser, ("document.body", "backgroundColor"))
    ink = brightness(browser, ("document.body", "color"))
    bar = brightness(browser, ("document.querySelector('.fill')", "backgroundColor"))
    assert (paper < 60 < 180 < ink) if dark else (ink < 60 < 180 < paper)
    assert abs(bar - paper) > 60


def test_a_bar_is_as_long_as_its_ratio(browser, folder):
    browser.open(folder / "one.html")
    lengths = browser.evaluate(
        "[...document.querySelectorAll('.bar .fill')].map(f => f.getBoundingClientRect().width)"
    )
    unit = browser.evaluate(
        "document.querySelector('.one').getBoundingClientRect().left - "
        "document.querySelector('.track').getBoundingClientRect().left"
    )
    rows = [r for r in examples.result().rows if r.verdict]
    assert [length / unit for length in lengths] == pytest.approx([r.ratio for r in rows], abs=0.01)
    noise = browser.evaluate(
        "[...document.querySelectorAll('.noise')].map(n => n.getBoundingClientRect().width)"
    )
    for drawn, row in zip(noise, rows, strict=True):
        low, high = row.ratio_quartiles
        assert drawn / unit == pytest.approx(high - low, abs=0.01)


def test_points_of_a_plot_are_inside_of_it(browser, folder):
    browser.open(folder / "three.html", width=360)
    outside = browser.evaluate(
        "[...document.querySelectorAll('.frame')].flatMap(f => {"
        "const b = f.getBoundingClientRect();"
        "return [...f.querySelectorAll('circle, path')].map(m => m.getBoundingClientRect())"
        ".filter(m => m.right < b.left || m.left > b.right || m.bottom < b.top || m.top > b.bottom)"
        "}).length"
    )
    assert outside == 0
    assert browser.evaluate("document.querySelectorAll('.frame circle').length") >= 12


def test_no_text_of_a_file_is_run(browser, folder):
    browser.open(folder / "hostile.html")
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.said == [] and len(browser.requested) == 1
    assert page_examples.HOSTILE in browser.evaluate("document.body.textContent")


def test_a_file_is_saved_as_it_was(browser, folder):
    browser.open(folder / "hostile.html")
    browser.evaluate("URL.createObjectURL = blob => { window.kept = blob.size; return '#' }")
    browser.evaluate("document.querySelector('[data-save=\"hostile.json\"]').click()")
    assert browser.evaluate("window.kept") > 1000 and browser.said == []


def test_a_screenshot_is_no_blank_sheet(browser, folder, tmp_path):
    browser.open(folder / "one.html", width=600)
    browser.screenshot(tmp_path / "one.png")
    data = (tmp_path / "one.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert width == 600 and height > 1500
    pixels, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IDAT":
            pixels += data[at + 8 : at + 8 + length]
        at += 12 + length
    assert len(set(zlib.decompress(pixels))) > 100
