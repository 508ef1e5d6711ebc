"""`bench.step`'s table and figure, from its result alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS = ("dfa_kernels",)


def markdown(result: dict[str, Any]) -> str:
    """A table of ratios, one of flops, one of memory, and what they were measured on."""
    env = result["environment"]
    shapes = result["shapes"]
    head = [",".join(map(str, s["shape"])) for s in shapes]
    names = list(dict.fromkeys(n for s in shapes for n in s["rows"]))
    lines = [
        "# A training step beside eager backpropagation",
        "",
        "Written by `python -m bench.step`: one process, interleaved turns, tanh MLP on 784",
        "inputs, cross-entropy, SGD with momentum 0.9, fp32. Shapes: batch, hidden layers, width,",
        "outputs.",
        "",
        f"{env['processor']}, {env['cores']} cores, {env['threads']} threads, {env['capability']}; "
        f"torch {env['torch']}, Python {env['python']}, dfa_kernels {env['dfa_kernels']}; "
        f"{env['date']}.",
        "",
        "## Time: median of the ratio to backpropagation (lower to upper quartile)",
        "",
        *_table(names, shapes, head, _time),
    ]
    over = [s["ours_over_hand_written"] for s in shapes]
    if all(over):
        lines += [_row("dfa_kernels ÷ hand-written DFA", [f"{o:.2f}" for o in over])]
    lines += [
        _row("rounds", [str(s["rounds"]) for s in shapes]),
        _row("backpropagation, ms", [f"{s['rows']['backpropagation']['ms']:.1f}" for s in shapes]),
        "",
        "## Flops of the matrix products, as a ratio to backpropagation",
        "",
        *_table(names, shapes, head, _part("flops")),
        "",
        "## Peak memory over the bare process, as a ratio to backpropagation (MB)",
        "",
        "Medians of three processes (lowest to highest): what malloc keeps of freed blocks differs",
        "between them.",
        "",
        *_table(names, shapes, head, _memory),
        "",
        "## Peak of what is in use, as a ratio to backpropagation (MB)",
        "",
        "The same with malloc told to give large blocks back at once.",
        "",
        *_table(names, shapes, head, _in_use),
    ]
    missing = {n: why for s in shapes for n, why in s["missing"].items()}
    if missing:
        lines += ["", *(f"Not installed: {n} ({why})." for n, why in missing.items())]
    return "\n".join(lines) + "\n"


def _table(names: list[str], shapes: list[dict], head: list[str], cell: Any) -> list[str]:
    rows = [[cell(s, n) for s in shapes] for n in names]
    body = [_row(n, r) for n, r in zip(names, rows, strict=True) if any(c != "–" for c in r)]
    return [_row("", head), _row("---", ["---"] * len(head)), *body]


def _row(name: str, cells: list[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


def _time(shape: dict[str, Any], name: str) -> str:
    row = shape["rows"].get(name)
    if row is None:
        return "–"
    low, high = row["quartiles"]
    return f"{row['ratio']:.2f} ({low:.2f}–{high:.2f})"


def _part(field: str) -> Any:
    def cell(shape: dict[str, Any], name: str) -> str:
        row, base = shape["rows"].get(name), shape["rows"]["backpropagation"]
        if row is None or not row[field] or not base[field]:
            return "–"
        return f"{row[field] / base[field]:.2f}"

    return cell


def _memory(shape: dict[str, Any], name: str) -> str:
    ratio = _part("peak_bytes")(shape, name)
    if ratio == "–":
        return ratio
    low, high = (b / 1e6 for b in shape["rows"][name]["peak_range"])
    return f"{ratio} ({low:.0f}–{high:.0f})"


def _in_use(shape: dict[str, Any], name: str) -> str:
    ratio = _part("in_use_bytes")(shape, name)
    return ratio if ratio == "–" else f"{ratio} ({shape['rows'][name]['in_use_bytes'] / 1e6:.0f})"


def figure(result: dict[str, Any], path: Path) -> None:
    """Ratios as bars, quartiles as whiskers, a panel a shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = result["shapes"]
    names = [n for n in shapes[0]["rows"] if n != "backpropagation"]
    fig, axes = plt.subplots(
        1, len(shapes), figsize=(2.1 * len(shapes) + 2.6, 0.42 * len(names) + 1.5), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for ax, shape in zip(axes[0], shapes, strict=True):
        for i, name in enumerate(names):
            row = shape["rows"].get(name)
            if row is None:
                continue
            low, high = row["quartiles"]
            ours = name.startswith(OURS)
            color = "#c2410c" if ours else "#64748b" if "DFA" in name else "#cbd5e1"
            ink = "white" if "DFA" in name or ours else "black"
            error = [[row["ratio"] - low], [high - row["ratio"]]]
            ax.barh(i, row["ratio"], color=color, xerr=error, ecolor="#1e293b", height=0.72)
            ax.text(0.03, i, f"{row['ratio']:.2f}", va="center", fontsize=8, color=ink)
        ax.axvline(1, color="#1e293b", linewidth=1)
        batch, depth, width, outputs = shape["shape"]
        ax.set_title(f"{depth} × {width}, batch {batch}\n{outputs:,} outputs", fontsize=9)
        ax.set_xlim(0, max(1.1, *(r["quartiles"][1] * 1.05 for r in shape["rows"].values())))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0][0].invert_yaxis()
    env = result["environment"]
    fig.supxlabel(
        f"training step ÷ eager backpropagation's (line: 1)    {env['processor']}, "
        f"{env['threads']} threads, torch {env['torch']}",
        fontsize=8,
    )
    fig.savefig(path, dpi=150)
    plt.close(fig)
