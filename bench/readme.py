"""Put the committed results into the README's marked sections: `python -m bench.readme`."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import throughput_report
from bench.paper import rows as paper_rows
from bench.paper import verdict
from dfa_kernels.throughput import result
from dfa_kernels.throughput.options import FILE
from dfa_kernels.throughput.result import BASELINE, EAGER, UNDECIDED, Result, Row

ROOT = Path(__file__).parent.parent
MEMORY = {"peak_bytes": "peak memory", "in_use_bytes": "peak in use"}
OURS, OURS_BY_TORCH = "reference", "reference/torch.optim"


def main(root: Path = ROOT) -> int:
    readme, results = root / "README.md", root / "bench/results"
    text = readme.read_text()
    quality = json.loads((results / "quality.json").read_text())
    paper = _paper_rows(results / "paper")
    sections = {"quality": _quality(quality["tasks"]), "paper": _paper(paper)}
    if (results / FILE).exists():
        found = result.read(results / FILE)
        sections |= {"claim": _claim(found, paper), "step": _throughput(found)}
    else:
        sections["step"] = _step(json.loads((results / "step.json").read_text()))
    for name, lines in sections.items():
        section = "\n".join([f"<!-- {name}: begin -->", *lines, f"<!-- {name}: end -->"])
        pattern = rf"<!-- {name}: begin -->.*?<!-- {name}: end -->"
        text = re.sub(pattern, lambda _, s=section: s, text, flags=re.DOTALL)
    readme.write_text(text)
    return 0


def _claim(found: Result, paper: list[paper_rows.Row]) -> list[str]:
    """What was measured of a step's time, in two sentences."""
    ratios = {
        name: [r.ratio for r in found.rows if r.contestant == name and r.ratio is not None]
        for name in (OURS, OURS_BY_TORCH)
    }
    said = (
        f"On {_kind(found)} an MLP's training step takes {_range(ratios[OURS])} of compiled "
        "backpropagation's time"
    )
    if ratios[OURS_BY_TORCH]:
        verdicts = [r.verdict for r in found.rows if r.contestant == OURS_BY_TORCH and r.ratio]
        said += (
            f", and by `torch.optim`, which DDP and FSDP need, {_range(ratios[OURS_BY_TORCH])}: "
            f"at {verdicts.count(UNDECIDED)} of {len(verdicts)} sizes nothing is decided"
        )
    said += "."
    steps = [r.step_ratio[0] for r in paper if r.method == "dfa" and r.step_ratio]
    if steps:
        said += (
            f" A step of the paper's own tasks takes {_range(steps)} of eager backpropagation's."
        )
    return textwrap.wrap(said, 98, break_on_hyphens=False)


def _kind(found: Result) -> str:
    """Of the device, as its rows name it."""
    kinds = {row.device.split(":")[0] for row in found.rows}
    return "a CPU" if kinds == {"cpu"} else f"{found.environment['device']}"


def _range(ratios: Iterable[float]) -> str:
    made = sorted(ratios)
    return f"{made[0]:.2f} to {made[-1]:.2f}" if made else "–"


def _throughput(found: Result) -> list[str]:
    env = found.environment
    processes = max(len(row.processes) or 1 for row in found.rows)
    return [
        f"A whole training step, as a ratio to compiled backpropagation's ({BASELINE}) in the same",
        "rounds of a process (less is faster; in italics where the quartiles straddle 1, so that",
        "nothing is decided); tanh MLP on 784 inputs, SGD with momentum, fp32; columns: batch,",
        f"hidden layers, width, outputs. {env['device']}, {env['threads']} threads, torch",
        f"{env['torch']}, {env['date']}; by `dfa-kernels bench --scaling --processes {processes}`,",
        "which also gives [spread, rates, memory, scaling and",
        "crossovers](bench/results/throughput.md).",
        "",
        *throughput_report.table(found, _cell_of_step),
        _row(["reference ÷ hand-written-dfa", *throughput_report.over_hand(found)]),
        *(
            _row([f"peak memory of {name} ÷ bp-eager", *_memory_of(found, name)])
            for name in (OURS, OURS_BY_TORCH)
        ),
        "",
        "`reference` is the module with `dfa_kernels.optim.SGD` on that backend. The hand-written",
        "rows use no autograd: DFA beside backpropagation there is what DFA itself is worth; what",
        "lies above hand-written DFA is what the module costs.",
        *_memory_of_many_outputs(found),
    ]


def _cell_of_step(row: Row) -> str | None:
    if row.ratio is None:
        return None
    return f"*{row.ratio:.2f}*" if row.verdict == UNDECIDED else f"{row.ratio:.2f}"


def _memory_of(found: Result, name: str) -> list[str]:
    held = {(r.contestant, r.shape): r.peak_memory_bytes for r in found.rows}
    made = []
    for shape in throughput_report.shapes(found):
        ours, theirs = held.get((name, shape)), held.get((EAGER, shape))
        made.append(f"{ours / theirs:.2f}" if ours and theirs else "–")
    return made


def _memory_of_many_outputs(found: Result) -> list[str]:
    """Where the reference takes more memory than eager backpropagation, along the outputs."""
    curves = {c.contestant: c for c in found.scaling if c.axis == "outputs"}
    if not {OURS, EAGER} <= curves.keys():
        return []
    held = {
        name: {p.value: p.peak_memory_bytes for p in curves[name].points if p.peak_memory_bytes}
        for name in (OURS, EAGER)
    }
    more = {
        value: ours / held[EAGER][value]
        for value, ours in held[OURS].items()
        if value in held[EAGER] and ours > held[EAGER][value]
    }
    if not more:
        return []
    said = (
        f"The reference keeps B, and at width {curves[OURS].shape[2]} it takes "
        f"{_listed(f'{ratio:.2f}' for ratio in more.values())} of bp-eager's memory with "
        f"{_listed(f'{value:,}' for value in more)} outputs; the kernels keep no B, and what they "
        "take was not measured."
    )
    return textwrap.wrap(said, 98, break_on_hyphens=False)


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _step(result: dict[str, Any]) -> list[str]:
    shapes, env = result["shapes"], result["environment"]
    names = list(shapes[0]["rows"])
    rows = [[f"{s['rows'][n]['ratio']:.2f}" for s in shapes] for n in names]
    memory = {f: [_ratio(s["rows"], f) for s in shapes] for f in MEMORY}
    return [
        "A whole training step, as a ratio to eager backpropagation's in the same process (less is",
        "faster); tanh MLP on 784 inputs, SGD with momentum, fp32; columns: batch, hidden layers,",
        f"width, outputs. {env['processor']}, {env['threads']} threads, torch {env['torch']},",
        f"{env['date']}; by `python -m bench.step`, which also gives",
        "[spread, flops and memory](bench/results/step.md).",
        "",
        *_table(["", *(",".join(map(str, s["shape"])) for s in shapes)], names, rows),
        *(
            _row([f"{MEMORY[field]} of dfa_kernels, as a ratio", *memory[field]])
            for field in memory
        ),
        "",
        "![the same as bars](bench/results/step.png)",
        "",
        "The hand-written rows use no autograd: DFA beside backpropagation there is what DFA",
        "itself is worth; what lies above hand-written DFA is what the module costs.",
        "`dfa_kernels` is the module with `dfa_kernels.optim.SGD`.",
    ]


def _ratio(rows: dict[str, Any], field: str) -> str:
    return f"{rows['dfa_kernels'][field] / rows['backpropagation'][field]:.2f}"


def _quality(tasks: dict[str, Any]) -> list[str]:
    methods = ("dfa", "bp", "shallow")
    rows = [[_accuracy(task[m]) for m in methods] for task in tasks.values()]
    seeds = _listed(str(task["dfa"]["seeds"]) for task in tasks.values())
    said = (
        "By `python -m bench.quality`: test accuracy in percent, mean ± standard deviation over "
        f"seeds ({seeds}), AdamW. Each method has its best rate of one grid, by the rows of the "
        "training set that were held out for that with the first seed. Shallow trains the last "
        "layer alone: what DFA must beat to have trained anything."
    )
    head = ["", *methods]
    return [*textwrap.wrap(said, 98, break_on_hyphens=False), "", *_table(head, list(tasks), rows)]


#: Of every task, what stands in the README.
PAPER = {
    "view": ("PSNR",),
    "recommender": ("AUC",),
    "graph": ("accuracy", "AUC"),
    "language": ("log perplexity",),
}


#: DFA otherwise than in the column "dfa", and what that is.
CONTROLS = {
    "micro": "three points a block instead of one",
    "frozen": "the tower stays at its random start",
    "dfa-output": "the error point at the output, as in the paper",
}


def _paper_rows(results: Path) -> list[paper_rows.Row]:
    return [
        row
        for task in PAPER
        if (results / f"{task}.json").exists()
        for row in paper_rows.read(results / f"{task}.json")
    ]


def _paper(made: list[paper_rows.Row]) -> list[str]:
    """Every model and data set of the four tasks, by one metric."""
    names, lines = [], []
    for (task, model, data, metric), methods in verdict.grouped(made).items():
        if metric not in PAPER[task]:
            continue
        names.append(f"{model}, {data}: {metric}")
        scores = [_score(methods.get(m)) for m in ("bp", "dfa", "shallow")]
        controls = [
            f"{m} {_score(methods[m])}{_share(m, methods)}" for m in CONTROLS if m in methods
        ]
        share = _share("dfa", methods).strip(" ()")
        lines.append([*scores, share, _above(methods), ", ".join(controls), _step_of(methods)])
    seeds = sorted({row.seeds for row in made})
    said = (
        f"Mean ± standard deviation over seeds ({', '.join(map(str, seeds))}) on the test split; "
        "each method at its best rate, chosen on the validation split with the first seed from the "
        "same grid, which goes on for it while the first or last rate is the best "
        f"({paper_rows.EDGE}: it ends there, and beyond it there may be a better). "
        "Share: of the way from shallow to backpropagation, where that is more than two standard "
        "errors. Above shallow: in standard errors of the difference, in italics up to two. "
        "Step ÷ bp: of eager backpropagation's time, as above. Controls are DFA too: "
        + "; ".join(f"{name}, {what}" for name, what in CONTROLS.items())
        + ". "
        + _of_graphs(made)
        + _perplexities(made)
    ).rstrip()
    head = ["", "bp", "dfa", "shallow", "share", "above shallow", "controls", "step ÷ bp"]
    return [*textwrap.wrap(said, 98, break_on_hyphens=False), "", *_table(head, names, lines)]


def _of_graphs(made: list[paper_rows.Row]) -> str:
    """Where the graph networks' error point is not the paper's, and whose B is made for it."""
    chosen = {row.model: row for row in made if row.task == "graph" and row.method == "dfa"}
    below = [m for m, row in chosen.items() if row.description.get("error_at") != "output"]
    signed = [m for m in below if _signs(chosen[m])]
    if not below:
        return ""
    said = f"In column dfa {_listed(below)} have it below the head's mixing of nodes"
    if signed:
        said += f" ({_listed(signed)} with one ±B for all parts of the head)"
    tried = {row.model for row in made if row.method == "dfa-output"}
    if untried := [model for model in below if model not in tried]:
        said += f"; {_listed(untried)} was not tried otherwise"
    return said + ". "


def _signs(row: paper_rows.Row) -> list[int]:
    return row.description.get("signs of B", [])


def _perplexities(made: list[paper_rows.Row]) -> str:
    found = {row.method: row for row in made if row.metric == "perplexity"}
    if not {"bp", "dfa", "shallow"} <= found.keys():
        return ""
    row = found["dfa"]
    figures = [
        f"{found[m].mean:,.0f} ({m})" for m in ("bp", "dfa", "micro", "shallow") if m in found
    ]
    return (
        f"Perplexities: {_listed(figures)}, of {row.parameters:,} parameters after {row.steps:,} "
        "steps."
    )


def _score(row: paper_rows.Row | None) -> str:
    return "" if row is None else row.score


def _share(method: str, methods: dict[str, paper_rows.Row]) -> str:
    if method not in methods or (share := verdict.of(method, methods).share) is None:
        return ""
    return f" ({100 * share:.0f} %)".replace("-", "−")


def _above(methods: dict[str, paper_rows.Row]) -> str:
    if not {"dfa", "shallow"} <= methods.keys():
        return ""
    errors = verdict.of("dfa", methods).errors
    if errors is None:
        return "one seed"
    said = f"{errors:+.1f}".replace("-", "−")
    return f"*{said}*" if abs(errors) <= 2 else said


def _step_of(methods: dict[str, paper_rows.Row]) -> str:
    if "dfa" not in methods or not methods["dfa"].step_ratio:
        return ""
    middle, low, high = methods["dfa"].step_ratio
    return f"*{middle:.2f}*" if low <= 1 <= high else f"{middle:.2f}"


def _accuracy(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.1f} ± {entry['std']:.1f} (lr {entry['lr']:g})"


def _table(head: list[str], names: list[str], rows: list[list[str]]) -> list[str]:
    body = [_row([n, *r]) for n, r in zip(names, rows, strict=True)]
    return [_row(head), _row(["---"] * len(head)), *body]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
