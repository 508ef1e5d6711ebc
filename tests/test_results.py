"""No figure without its measurement: `bench/results/README.md`, and what is said of GPUs."""

import re
from pathlib import Path

import pytest

from bench.gpu import rows, steps
from bench.gpu.parts import PARTS
from bench.paper import rows as paper_rows
from bench.paper import verdict

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
PAGE = (RESULTS / "README.md").read_text()
MEASURED, MISSING = PAGE.split("## Not yet measured on hardware")
ON_GPUS = "".join(f.read_text() for f in RESULTS.glob("*/gpu.md"))
PAGES = [ROOT / "README.md", RESULTS / "README.md", *ROOT.glob("docs/**/*.md")]

#: What only a GPU reaches, or is told of one.
GPU_FIGURE = re.compile(
    r"(\d[\d.,]*)\s*(?:TFLOP/s|TB/s|GB/s|× on (?:an? )?(?:H\d|A\d|B\d|MI\d|GPU))"
)


def figures(text):
    return GPU_FIGURE.findall(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_gpu_figure_that_no_result_holds(page):
    for figure in figures(page.read_text()):
        assert figure in ON_GPUS, f"{page.name} says {figure}, which no bench/results/*/gpu.md does"


def test_such_figures_are_recognised():
    text = "780 TFLOP/s, 4.3 TB/s and 1.7 × on an H200, 2.5 × on a GPU, but 0.7 × on a CPU"
    assert figures(text) == ["780", "4.3", "1.7", "2.5"]


def test_every_file_of_a_claim_is_there_and_every_result_has_a_claim():
    files = set(re.findall(r"\]\(([^)]+)\)", MEASURED))
    assert all((RESULTS / f).is_file() for f in files)
    held = {str(f.relative_to(RESULTS)) for e in ("json", "md") for f in RESULTS.rglob(f"*.{e}")}
    held.remove("README.md")
    assert held <= files


def test_what_is_missing_is_measured_by_parts_that_exist():
    named = set()
    for line in MISSING.splitlines():
        if line.startswith("| ") and "parts" in line.rsplit("|", 2)[1]:
            named |= set(re.findall(r"`([\w-]+)`", line.rsplit("|", 2)[1]))
    assert named
    assert named <= set(PARTS)


def test_the_targets_are_those_of_the_code():
    project = rows.TARGETS["project"]
    assert f"≥ {project.memory * 100:.0f} % of the copy bandwidth" in MISSING
    assert f"≥ {project.products * 100:.0f} % of the products' rate beyond" in MISSING
    assert f"≥ {rows.TARGETS['update'].products * 100:.0f} % of the products' rate |" in MISSING
    large, small, field = steps.LARGE, steps.SMALL, steps.FIELD
    for step, target in (
        (f"MLP {large.depth} × {large.width}, N {large.batch}", steps.LARGE_TARGET),
        (f"MLP {small.depth} × {small.width}, N {small.batch}", steps.SMALL_TARGET),
        (f"NeRF's MLP, N {field.batch:,}", steps.FIELD_TARGET),
    ):
        assert f"{step}, against compiled backpropagation | ≥ {target:g} ×" in MISSING
    mma = rows.TARGETS["update, mma.sync"].products * 100
    assert f"≥ {mma:.0f} % of the products' rate | part `update-cuda`" in MISSING
    narrow = steps.NARROW
    named = f"MLP {narrow.depth} × {narrow.width}, N {narrow.batch}, AdamW, against eager"
    assert f"{named} backpropagation | ≥ {steps.NARROW_TARGET:g} ×" in MISSING
    assert f"against Triton's | ≥ {steps.FIELD_CUDA_TARGET:g} ×" in MISSING
    assert f"≥ {steps.SMALL_GRAPH_TARGET:g} ×" in MISSING
    assert f"≥ {steps.REFERENCE_TARGET:g} ×" in MISSING


def test_the_claim_of_the_recommenders_is_what_their_rows_say():
    made = paper_rows.read(RESULTS / "paper/recommender.json")
    errors = []
    for group, methods in verdict.grouped(made).items():
        if group[-1] == "AUC" and "frozen" in methods:
            below = {"dfa": methods["dfa"], "shallow": methods["frozen"]}
            errors.append(verdict.of("dfa", below).errors)
    above, within = sum(e > 2 for e in errors), sum(abs(e) <= 2 for e in errors)
    assert (
        "DFA's AUC is above the frozen tower's by more than two standard errors in "
        f"{above} of {len(errors)} cases, within two in {within}"
    ) in MEASURED


def test_what_a_step_without_any_update_leaves_to_be_gained():
    """As of launch_step.md's rows: eager backpropagation's time by that of no update at all."""
    table = (RESULTS / "launch_step.md").read_text()
    for layers, claim in ((3, "{:.1f} times as long as for 3 layers"), (8, "{:.1f} times for 8")):
        eager, none = (
            float(
                re.search(
                    rf"^\| {layers} layers and a head \| float32 \| {who} \| \d+ \| ([\d.]+) ",
                    table,
                    re.MULTILINE,
                )[1]
            )
            for who in ("eager backpropagation", "no update")
        )
        assert claim.format(eager / none) in MEASURED
