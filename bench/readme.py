"""Put the committed results into the README's marked sections: `python -m bench.readme`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
MEMORY = {"peak_bytes": "peak memory", "in_use_bytes": "peak in use"}


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    step = json.loads((RESULTS / "step.json").read_text())
    quality = json.loads((RESULTS / "quality.json").read_text())
    for name, lines in (("step", _step(step)), ("quality", _quality(quality))):
        section = "\n".join([f"<!-- {name}: begin -->", *lines, f"<!-- {name}: end -->"])
        pattern = rf"<!-- {name}: begin -->.*?<!-- {name}: end -->"
        text = re.sub(pattern, lambda _, s=section: s, text, flags=re.DOTALL)
    readme.write_text(text)
    return 0


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


def _cell(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.1f} ± {entry['std']:.1f} (lr {entry['lr']:g})"


def _table(head: list[str], names: list[str], rows: list[list[str]]) -> list[str]:
    body = [_row([n, *r]) for n, r in zip(names, rows, strict=True)]
    return [_row(head), _row(["---"] * len(head)), *body]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
