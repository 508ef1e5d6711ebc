"""Every snippet of the README runs, and every figure in its tables stands in a committed result."""

import json
import re
from pathlib import Path

import pytest

import dfa_kernels as dfa
from dfa_kernels.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_python_snippet_runs_one_after_another(capsys):
    names = {}
    code = blocks("python")
    assert len(code) >= 5
    try:
        for snippet in code:
            exec(compile(snippet, "README.md", "exec"), names)
    finally:
        if "optical" in dfa.backends.available():
            dfa.backends.unregister("optical")
    mean, std = map(float, capsys.readouterr().out.split())
    assert -1 <= mean <= 1
    assert 0 <= std <= 1


def test_the_suite_has_as_many_checks_as_it_says():
    (said,) = re.findall(r"suite that ours pass: (\d+) checks", README)
    assert len(dfa.testing.check_backend("reference")) == int(said)


COMMANDS = re.findall(r"^dfa-kernels (.*)$", "\n".join(blocks("sh")), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command, capsys):
    """Not run to the end, which takes minutes: a folder without data is refused when read."""
    try:
        code = main(command.replace("DIR", "no-such-folder").split())
    except SystemExit as left:
        code = left.code
    assert code == 0 or "no-such-folder" in capsys.readouterr().err


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make (\w+)", "\n".join(blocks("sh")))
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def section(name):
    return README.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0]


def rows(text):
    table = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table]


def throughput():
    return json.loads((ROOT / "bench/results/throughput.json").read_text())


def paper():
    return [
        row
        for file in sorted((ROOT / "bench/results/paper").glob("*.json"))
        for row in json.loads(file.read_text())
        if "metric" in row
    ]


def extremes(ratios):
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def test_the_claim_is_what_the_tables_hold():
    said = " ".join(section("claim").split())
    found = throughput()["rows"]
    fused = [r["ratio"] for r in found if r["contestant"] == "reference"]
    plain = [r for r in found if r["contestant"] == "reference/torch.optim"]
    steps = [r["step_ratio"][0] for r in paper() if r["method"] == "dfa"]
    undecided = sum(r["verdict"] == "undecided" for r in plain)
    assert f"takes {extremes(fused)} of compiled backpropagation's time" in said
    assert f"{extremes([r['ratio'] for r in plain])}: at {undecided} of {len(plain)} sizes" in said
    assert f"takes {extremes(steps)} of eager backpropagation's" in said
    assert max(fused) < 1  # "no step of it was slower than compiled backpropagation"


def test_the_hosts_times_are_the_committed_ones():
    said = " ".join(README.split())
    results = ROOT / "bench/results"
    for file, row, figure in (
        ("launch_cuda.md", r"step_ \(AdamW\), repeated \| on-the-fly \| C\+\+", "{} µs by CUDA's"),
        ("launch.md", r"step_ \(AdamW\), repeated \| on-the-fly \|.*", "{} by Triton's"),
        ("launch_step.md", r"8 layers and a head \| float32 \| ours \| \d+", "{} in fp32"),
        ("launch_step.md", r"8 layers and a head \| autocast \| ours \| \d+", "{} by autocast"),
    ):
        (took,) = re.findall(
            rf"^\| {row} \| ([\d.]+) \(", (results / file).read_text(), re.MULTILINE
        )
        assert figure.format(round(float(took))) in said, file
    pages = [results / name for name in ("launch.md", "launch_cuda.md", "launch_step.md")]
    took = [re.search(r"one element took ([\d.]+) \(", page.read_text())[1] for page in pages]
    assert f"takes {min(took)} to {max(took)} for the smallest call of torch" in said


def test_the_memory_of_many_outputs_is_said():
    curves = {
        c["contestant"]: {p["value"]: p["peak_memory_bytes"] for p in c["points"]}
        for c in throughput()["scaling"]
        if c["axis"] == "outputs"
    }
    more = {n: held / curves["bp-eager"][n] for n, held in curves["reference"].items()}
    more = {n: ratio for n, ratio in more.items() if ratio > 1}
    said = section("step").split("The reference keeps B")[1].replace("\n", " ")
    ratios, outputs = said.split("bp-eager's memory with")
    assert re.findall(r"\d\.\d\d", ratios) == [f"{ratio:.2f}" for ratio in more.values()]
    assert re.findall(r"[\d,]*\d", outputs) == [f"{n:,}" for n in more]


def test_the_caption_asks_for_as_many_processes_as_measured():
    (said,) = re.findall(r"--processes (\d+)", section("step"))
    assert {len(r["processes"]) for r in throughput()["rows"]} == {int(said)}


def test_the_table_of_steps_is_the_committed_result():
    if (ROOT / "bench/results/throughput.json").exists():
        found = json.loads((ROOT / "bench/results/throughput.json").read_text())["rows"]
        ratios = {(r["contestant"], ",".join(map(str, r["shape"]))): r["ratio"] for r in found}
        head, _, *body = rows(section("step"))
        assert {"bp-eager", "bp-compiled", "hand-written-dfa", "reference"} <= {r[0] for r in body}
        assert "peak memory of reference ÷ bp-eager" in {r[0] for r in body}
        for name, *cells in body:
            for shape, cell in zip(head[1:], cells, strict=True):
                if "÷" not in name and cell != "–":
                    assert cell.strip("*") == f"{ratios[name, shape]:.2f}", (name, shape)
        return
    result = json.loads((ROOT / "bench/results/step.json").read_text())
    head, _, *body = rows(section("step"))
    shapes = {",".join(map(str, s["shape"])): s for s in result["shapes"]}
    assert head[1:] == list(shapes)
    names = [row[0] for row in body]
    assert {"backpropagation", "hand-written DFA", "dfa_kernels"} <= set(names)
    for name, *cells in body:
        for cell, shape in zip(cells, shapes.values(), strict=True):
            if name.startswith("peak"):
                field = "peak_bytes" if name.startswith("peak memory") else "in_use_bytes"
                parts = shape["rows"]["dfa_kernels"], shape["rows"]["backpropagation"]
                value = parts[0][field] / parts[1][field]
            else:
                value = shape["rows"][name]["ratio"]
            assert cell.split()[0] == f"{value:.2f}", (name, cell)


def test_the_table_of_quality_is_the_committed_result():
    result = json.loads((ROOT / "bench/results/quality.json").read_text())["tasks"]
    head, _, *body = rows(section("quality"))
    assert head[1:] == ["dfa", "bp", "shallow"]
    for task, *cells in body:
        for method, cell in zip(head[1:], cells, strict=True):
            entry = result[task][method]
            wanted = f"{entry['mean']:.1f} ± {entry['std']:.1f} (lr {entry['lr']:g})"
            assert cell == wanted, (task, method)
            rates = sorted(map(float, entry["grid"]))
            assert rates[0] < entry["lr"] < rates[-1], (task, method)  # no better one beyond


def score(row):
    own = row.get("variant", "")
    labels = [f"{name} ".split(" ", 1) for name in row["grid"]]
    rates = sorted(float(rate) for rate, variant in labels if variant.strip() == own)
    edge = "†" if len(rates) > 1 and row["lr"] in (rates[0], rates[-1]) else ""
    return f"{row['mean']:.{row['digits']}f} ± {row['std']:.{row['digits']}f}{edge}"


def test_the_table_of_the_papers_tasks_is_the_committed_result():
    made = paper()
    found = {(f"{r['model']}, {r['data']}: {r['metric']}", r["method"]): r for r in made}
    head, _, *body = rows(section("paper"))
    assert head[1:4] == ["bp", "dfa", "shallow"]
    named = {name for name, *_ in body}
    assert {r["model"] for r in made} <= {name.split(",")[0] for name in named}
    for name, *cells in body:
        for method, cell in zip(head[1:4], cells, strict=False):
            row = found.get((name, method))
            assert cell == ("" if row is None else score(row)), (name, method)
        step = cells[head.index("step ÷ bp") - 1]
        middle, low, high = found.get((name, "dfa"), {}).get("step_ratio") or (None,) * 3
        if middle is not None:
            assert step == (f"*{middle:.2f}*" if low <= 1 <= high else f"{middle:.2f}"), name


def test_every_control_of_the_papers_tasks_is_shown():
    head, _, *body = rows(section("paper"))
    shown = {name: cells[head.index("controls") - 1] for name, *cells in body}
    controls = [r for r in paper() if r["method"] not in ("bp", "dfa", "shallow")]
    assert {r["method"] for r in controls} == {"dfa-output", "micro", "frozen"}
    for row in controls:
        name = f"{row['model']}, {row['data']}: {row['metric']}"
        if name in shown:
            assert f"{row['method']} {score(row)}" in shown[name]


def test_the_perplexities_are_said():
    said = " ".join(section("paper").split())
    perplexities = [r for r in paper() if r["metric"] == "perplexity"]
    assert len(perplexities) == 4
    for row in perplexities:
        assert f"{row['mean']:,.0f} ({row['method']})" in said
        assert f"{row['steps']:,} steps" in said
