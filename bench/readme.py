"""Put the committed results into the README's marked sections: `python -m bench.readme`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from bench import throughput_report
from bench.paper import rows as paper_rows
from bench.paper import verdict
from dfa_kernels.throughput import result
from dfa_kernels.throughput.options import FILE
from dfa_kernels.throughput.result import BASELINE, UNDECIDED, Result, Row

ROOT = Path(__file__).parent.parent
MEMORY = {"peak_bytes": "peak memory", "in_use_bytes": "peak in use"}


def main(root: Path = ROOT) -> int:
    readme, results = root / "README.md", root / "bench/results"
    text = readme.read_text()
    quality = json.loads((results / "quality.json").read_text())
    if (results / FILE).exists():
        steps = _throughput(result.read(results / FILE))
    else:
        steps = _step(json.loads((results / "step.json").read_text()))
    paper = _paper(results / "paper")
    for name, lines in (("step", steps), ("quality", _quality(quality)), ("paper", paper)):
        section = "\n".join([f"<!-- {name}: begin -->", *lines, f"<!-- {name}: end -->"])
        pattern = rf"<!-- {name}: begin -->.*?<!-- {name}: end -->"
        text = re.sub(pattern, lambda _, s=section: s, text, flags=re.DOTALL)
    readme.write_text(text)
    return 0


def _throughput(found: Result) -> list[str]:
    env = found.environment
    return [
        f"A whole training step, as a ratio to compiled backpropagation's ({BASELINE}) in the same",
        "rounds of a process (less is faster; in italics where the quartiles straddle 1, so that",
        "nothing is decided); tanh MLP on 784 inputs, SGD with momentum, fp32; columns: batch,",
        f"hidden layers, width, outputs. {env['device']}, {env['threads']} threads, torch",
        f"{env['torch']}, {env['date']}; by `dfa-kernels bench --scaling`, which also gives",
        "[spread, rates, memory, scaling and crossovers](bench/results/throughput.md).",
        "",
        *throughput_report.table(found, _cell_of_step),
        _row(["reference ÷ hand-written-dfa", *throughput_report.over_hand(found)]),
        _row(["peak memory of reference ÷ bp-eager", *_memory_of(found)]),
        "",
        "`reference` is the module with `dfa_kernels.optim.SGD` on that backend. The hand-written",
        "rows use no autograd: DFA beside backpropagation there is what DFA itself is worth; what",
        "lies above hand-written DFA is what the module costs.",
    ]


def _cell_of_step(row: Row) -> str | None:
    if row.ratio is None:
        return None
    return f"*{row.ratio:.2f}*" if row.verdict == UNDECIDED else f"{row.ratio:.2f}"


def _memory_of(found: Result) -> list[str]:
    held = {(r.contestant, r.shape): r.peak_memory_bytes for r in found.rows}
    made = []
    for shape in throughput_report.shapes(found):
        ours, theirs = held.get(("reference", shape)), held.get(("bp-eager", shape))
        made.append(f"{ours / theirs:.2f}" if ours and theirs else "–")
    return made


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


def _quality(result: dict[str, Any]) -> list[str]:
    methods = ("dfa", "bp", "shallow")
    rows = [[_cell(task[m]) for m in methods] for task in result.values()]
    return [
        "Test accuracy in percent, mean ± standard deviation over seeds (5 and 3), AdamW, each",
        "method at the best rate of one grid; by `python -m bench.quality`. Shallow trains the",
        "last layer alone: what DFA must beat to have trained anything.",
        "",
        *_table(["", *methods], list(result), rows),
    ]


#: Of every task, what stands in the README.
PAPER = {
    "view": ("PSNR",),
    "recommender": ("AUC",),
    "graph": ("accuracy", "AUC"),
    "language": ("log perplexity",),
}


def _paper(results: Path) -> list[str]:
    """Every model and data set of the four tasks, by one metric."""
    made = [
        row
        for task in PAPER
        if (results / f"{task}.json").exists()
        for row in paper_rows.read(results / f"{task}.json")
    ]
    names, lines = [], []
    for (task, model, data, metric), methods in verdict.grouped(made).items():
        if metric not in PAPER[task]:
            continue
        names.append(f"{model}, {data}: {metric}")
        found = verdict.of("dfa", methods) if "dfa" in methods else None
        share = "" if found is None or found.share is None else f"{100 * found.share:.0f} %"
        said = "" if found is None or "shallow" not in methods else found.sentence
        lines.append([*(_score(methods.get(m)) for m in ("bp", "dfa", "shallow")), share, said])
    seeds = sorted({row.seeds for row in made})
    return [
        "Mean ± standard deviation over seeds "
        f"({', '.join(map(str, seeds))}) on the test split; each method at the best of",
        "the same grid, chosen on the validation split. Share: of the way from shallow to",
        "backpropagation.",
        "",
        *_table(["", "bp", "dfa", "shallow", "share", "DFA beside shallow"], names, lines),
    ]


def _score(row: paper_rows.Row | None) -> str:
    if row is None:
        return ""
    return f"{row.mean:.{row.digits}f} ± {row.std:.{row.digits}f}"


def _cell(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.1f} ± {entry['std']:.1f} (lr {entry['lr']:g})"


def _table(head: list[str], names: list[str], rows: list[list[str]]) -> list[str]:
    body = [_row([n, *r]) for n, r in zip(names, rows, strict=True)]
    return [_row(head), _row(["---"] * len(head)), *body]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
