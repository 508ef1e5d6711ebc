"""`bench.throughput`'s Markdown, from a result of `dfa-kernels bench` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.result import BASELINE, UNDECIDED, Result, Row
from dfa_kernels.throughput.table import ceilings_in_words, figure

OURS, HAND = "reference", "hand-written-dfa"

Cells = Callable[[Row], str | None]


def markdown(result: Result) -> str:
    """Tables of ratios, rates, launches and memory; curves, crossovers and predictions."""
    head = shapes(result)
    lines = [
        "# A training step beside compiled backpropagation",
        "",
        "Written by `python -m bench.throughput`: contestants in turns, a shape in a process;",
        "tanh MLP on 784 inputs, cross-entropy. Shapes: batch, hidden layers, width, outputs.",
        "",
        f"{machine(result)}; {ceilings_in_words(result.ceilings)}.",
        "",
        f"## Time: median of the ratio to {BASELINE} in the same round (quartiles)",
        "",
        "Italics: undecided, for the quartiles straddle 1.",
        "",
        *table(result, _ratio),
        row("reference ÷ hand-written-dfa", over_hand(result)),
        row("rounds", [str(_of(result, s, BASELINE).rounds) for s in head]),
        row("in processes", [str(len(_of(result, s, BASELINE).processes) or 1) for s in head]),
        "",
        "## Milliseconds (quartiles)",
        "",
        *table(result, _ms),
        "",
        "## TFLOP/s, and percent of the matrix rate",
        "",
        *table(result, lambda r: _share(r.tflops, r.percent_of_matrix_rate)),
        "",
        "## GB/s, and percent of the copy bandwidth",
        "",
        *table(result, lambda r: _share(r.gbps, r.percent_of_bandwidth)),
        "",
        "## Operations launched, and percent of the time that launching takes",
        "",
        *table(result, lambda r: _share(r.launches, r.percent_of_launches)),
        "",
        "## Peak memory, MB (held for B)",
        "",
        *table(result, _memory),
    ]
    if result.scaling:
        lines += ["", "## Scaling: p of c·valueᵖ (standard error)", "", *_curves(result)]
        lines += ["", *(f"- {c.sentence}" for c in result.crossovers)]
    held = [p for p in result.predictions if not p.fitted and p.measured_ms]
    if held:
        lines += [
            "",
            "## The cost model at shapes that it was not fitted to: predicted by measured time",
            "",
            row("", [str(Shape(*s)) for s in head]),
            row("---", ["---"] * len(head)),
        ]
        for name in dict.fromkeys(p.contestant for p in held):
            off = {p.shape: p.predicted_ms / p.measured_ms for p in held
                   if p.contestant == name and p.measured_ms}  # fmt: skip
            lines.append(row(name, [f"{off[s]:.2f}" if s in off else "–" for s in head]))
    lines += ["", *(f"- {note}" for note in result.notes)]
    return "\n".join(lines) + "\n"


def machine(result: Result) -> str:
    env = result.environment
    return (
        f"{env['device']}, {env['cores']} cores, {env['threads']} threads, {env['capability']}; "
        f"{result.rows[0].dtype}, {env['optimizer']}; torch {env['torch']}, Python "
        f"{env['python']}, dfa_kernels {env['dfa_kernels']} at {env['commit']}; {env['date']}"
    )


def shapes(result: Result) -> list[tuple[int, int, int, int]]:
    return list(dict.fromkeys(r.shape for r in result.rows))


def contestants(result: Result) -> list[str]:
    return list(dict.fromkeys(r.contestant for r in result.rows))


def table(result: Result, cell: Cells) -> list[str]:
    """A row for each contestant, a column for each shape."""
    head = shapes(result)
    lines = [row("", [str(Shape(*s)) for s in head]), row("---", ["---"] * len(head))]
    found = {(r.contestant, r.shape): r for r in result.rows}
    for name in contestants(result):
        cells = [cell(found[name, s]) if (name, s) in found else None for s in head]
        if any(cells):
            lines.append(row(name, [c or "–" for c in cells]))
    return lines


def row(name: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


def over_hand(result: Result) -> list[str]:
    """Ours by the hand-written loop, in the same rounds."""
    made = []
    for shape in shapes(result):
        ours, hand = (_of(result, shape, name).samples_ms for name in (OURS, HAND))
        ratios = [a / b for a, b in zip(ours, hand, strict=False)]
        made.append(f"{median(ratios):.2f}" if ratios else "–")
    return made


def _of(result: Result, shape: tuple[int, int, int, int], name: str) -> Row:
    empty = Row(name, "dfa", shape, "", "")
    return next((r for r in result.rows if (r.shape, r.contestant) == (shape, name)), empty)


def _ratio(found: Row) -> str | None:
    if found.ratio is None or found.ratio_quartiles is None:
        return "died" if found.error else None
    low, high = found.ratio_quartiles
    shown = f"{found.ratio:.2f} ({low:.2f}–{high:.2f})"
    return f"*{shown}*" if found.verdict == UNDECIDED else shown


def _ms(found: Row) -> str | None:
    if found.ms is None or found.quartiles is None:
        return None
    low, high = found.quartiles
    return f"{figure(found.ms)} ({figure(low)}–{figure(high)})"


def _share(value: float | None, percent: float | None) -> str | None:
    if value is None:
        return None
    said = str(value) if isinstance(value, int) else figure(value)
    return said if percent is None else f"{said} ({percent:.0f} %)"


def _memory(found: Row) -> str | None:
    if found.peak_memory_bytes is None:
        return None
    held = "?" if found.feedback_bytes is None else f"{found.feedback_bytes / 1e6:.1f}"
    return f"{found.peak_memory_bytes / 1e6:.0f} ({held})"


def _curves(result: Result) -> list[str]:
    lines = [row("along", ["contestant", "from", "to", "time", "memory"])]
    lines.append(row("---", ["---"] * 5))
    for c in result.scaling:
        exponents = [
            "–" if e is None else f"{e[0]:.2f} ({e[1]:.2f})"
            for e in (c.ms_exponent, c.memory_exponent)
        ]
        ends = [f"{c.points[0].value:,}", f"{c.points[-1].value:,}"]
        lines.append(row(c.axis, [c.contestant, *ends, *exponents]))
    return lines
