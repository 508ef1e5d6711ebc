"""`bench.gpu`'s results as JSON and Markdown, from what the parts emitted alone."""

from __future__ import annotations

from typing import Any

from bench.gpu import ceilings
from bench.gpu.parts import PARTS
from bench.gpu.rows import TARGETS, Row, against_ceilings
from bench.gpu.supervisor import DONE, Result


def derived(results: dict[str, Result]) -> dict[str, Any]:
    """Every part with its rows, those of kernels held against the ceilings of the same run."""
    found = ceilings.of(results["ceilings"].rows) if "ceilings" in results else {}
    parts = {}
    for name, (status, seconds, rows, error) in results.items():
        made = [against_ceilings(r, found) if r["kind"] == "timed" else r for r in rows]
        parts[name] = {
            "status": status, "seconds": round(seconds, 1), "error": error, "rows": made,
        }  # fmt: skip
    return {"ceilings": found, "parts": parts}


def markdown(report: dict[str, Any]) -> str:
    """What a reader wants first comes first: targets, then each part."""
    parts = report["parts"]
    lines = ["# The Triton backend on a GPU", "", *_machine(parts.get("environment"))]
    lines += ["", *_ceilings(report["ceilings"])]
    goals = [r for p in parts.values() for r in p["rows"] if _is_goal(r)]
    if goals:
        lines += ["", "## Targets", "", *_table(_GOAL, map(_goal, goals))]
    for name, part in parts.items():
        if name != "environment":
            lines += ["", f"## {PARTS[name].title if name in PARTS else name}", ""]
            lines += _part(part)
    return "\n".join(lines) + "\n"


def _is_goal(row: Row) -> bool:
    return "verdict" in row and (row["kind"] != "compared" or row["target"] is not None)


def _machine(part: dict[str, Any] | None) -> list[str]:
    if part is None:
        return ["Written by `python -m bench.gpu`."]
    known = {r["name"]: r["value"] for r in part["rows"] if r["kind"] == "fact"}
    sentence = "; ".join(f"{k} {v}" for k, v in known.items())
    return ["Written by `python -m bench.gpu`.", "", sentence + "."]


def _ceilings(found: dict[str, float]) -> list[str]:
    if not found:
        return ["No ceiling was measured: nothing is held against one."]
    rates = [f"{name} products {v / 1e12:.0f} TFLOP/s" for name, v in found.items()]
    if "copy" in found:
        rates[0] = f"copy {found['copy'] / 1e9:.0f} GB/s (read and written)"
    return ["Measured in the same run, and divided by: " + ", ".join(rates) + "."]


_GOAL = ("what", "to reach", "measured", "")


def _goal(row: Row) -> tuple[str, ...]:
    verdict = row["verdict"] or "not run"
    if row["kind"] == "timed":
        wanted = str(TARGETS[row["target"]])
        return row["name"], wanted, _share(row), verdict
    if row["kind"] == "compared":
        against = f"{row['name']}; against {row['against']}"
        return against, f"≥ {row['target']:g} ×", _ratio(row), verdict
    if row["kind"] == "tests":
        return row["name"], "all pass", _counts(row), verdict
    return row["name"], _value(row["wanted"], row), _value(row["value"], row), verdict


def _part(part: dict[str, Any]) -> list[str]:
    lines = []
    if part["status"] != DONE:
        lines += [f"{part['status'].capitalize()}: {part['error'].strip().splitlines()[-1]}", ""]
    rows = part["rows"]
    timed = [r for r in rows if r["kind"] == "timed"]
    if timed:
        head = ("", "µs (quartiles)", "GB/s", "TFLOP/s", "of what binds")
        lines += [*_table(head, map(_timed, timed)), ""]
    compared = [r for r in rows if r["kind"] == "compared"]
    if compared:
        head = ("", "ours, ms (quartiles)", "against", "its ms", "ratio (quartiles)")
        lines += [*_table(head, map(_compared, compared)), ""]
    facts = [r for r in rows if r["kind"] == "fact"]
    if facts:
        lines += [*_table(("", "value"), ((r["name"], _value(r["value"], r)) for r in facts)), ""]
    for row in rows:
        if row["kind"] == "note":
            lines += [f"- {row['text']}"]
        if row["kind"] == "tests":
            lines += [f"- {row['name']}: {_counts(row)}"]
            lines += [f"  - failed: `{name}`" for name in row["failed"]]
    return lines


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    body = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in body]


def _timed(row: Row) -> tuple[str, ...]:
    median, low, high = (f"{1e3 * t:.1f}" for t in row["ms"])
    bandwidth = f"{row['gb_per_s']:.0f}" if row["bytes"] else "–"
    rate = f"{row['tflop_per_s']:.1f}" if row["flops"] else "–"
    return row["name"], f"{median} ({low}–{high})", bandwidth, rate, _share(row)


def _compared(row: Row) -> tuple[str, ...]:
    median, low, high = row["ms"]
    who = row.get("ours")
    name = row["name"] if who is None else f"{row['name']}: {who}"
    ours, theirs = f"{median:.3f} ({low:.3f}–{high:.3f})", f"{row['rival_ms'][0]:.3f}"
    return name, ours, row["against"], theirs, _ratio(row)


def _ratio(row: Row) -> str:
    median, low, high = row["ratio"]
    doubt = " (undecided)" if low < 1 <= high else ""
    return f"{median:.2f} ({low:.2f}–{high:.2f}){doubt}"


def _share(row: Row) -> str:
    if "share" not in row:
        return "–"
    median, low, high = (f"{100 * s:.0f}" for s in row["share"])
    return f"{median} % ({low}–{high}) of {row['bound']}"


def _counts(row: Row) -> str:
    counted = ", ".join(f"{n} {how}" for how, n in row["counts"].items())
    return "; ".join(filter(None, (counted, row["why"]))) or "passed"


def _value(value: Any, row: Row) -> str:
    return f"{value} {row['unit']}".strip()
