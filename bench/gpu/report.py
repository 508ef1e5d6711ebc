"""`bench.gpu`'s results as JSON and Markdown, from what the parts emitted alone."""

from __future__ import annotations

from typing import Any

from bench.gpu.parts import PARTS
from bench.gpu.rows import (
    BROKEN,
    NO_TIME,
    PASSED,
    TARGETS,
    Row,
    against_ceilings,
    ceilings,
    checked,
)
from bench.gpu.supervisor import DONE, LATE, SKIPPED, Result


def derived(results: dict[str, Result]) -> dict[str, Any]:
    """Every part with its rows, those of kernels held against the ceilings of the same run: what an
    earlier run left is held against that one's already."""
    found = ceilings(results["ceilings"].rows) if "ceilings" in results else {}
    parts = {}
    for name, (status, seconds, rows, error) in results.items():
        made = [
            against_ceilings(r, found) if r["kind"] == "timed" and "gb_per_s" not in r else r
            for r in latest(rows)
        ]
        parts[name] = {
            "status": status, "seconds": round(seconds, 1), "error": error, "rows": made,
        }  # fmt: skip
        if any(r["kind"] == "check" for r in rows):
            counts, verdict = checked(rows, status == DONE)
            parts[name] |= {"counts": counts, "verdict": verdict}
    return {"ceilings": found, "parts": parts}


def latest(rows: list[Row]) -> list[Row]:
    """Without the rows of two that were compared once more, beside more rivals."""
    last = {_who(row): row for row in rows if row["kind"] == "compared"}
    return [r for r in rows if r["kind"] != "compared" or last[_who(r)] is r]


def _who(row: Row) -> tuple[str, ...]:
    return row["name"], row.get("ours", ""), row["against"]


def failures(results: dict[str, Result], rehearsal: bool = False) -> list[str]:
    """What did not end well: a part, but for one whose time was short in a real run; a check; or
    tests that did not all run."""
    fine = {DONE} if rehearsal else {DONE, LATE, SKIPPED}
    found = []
    for name, (status, _, rows, _) in results.items():
        if status not in (fine if name != "tests" else {DONE}):
            found.append(f"{name}: {status}")
        elif name == "tests" and not any(r.get("outcome") == PASSED for r in rows):
            found.append("tests: none passed")
        checks = [row for row in rows if row["kind"] == "check"]
        found += [row["name"] for row in checks if row["outcome"] == BROKEN]
        if stopped := sum(row["outcome"] == NO_TIME for row in checks):
            found.append(f"{name}: {stopped} had too little time")
    return found


def markdown(report: dict[str, Any]) -> str:
    """What a reader wants first comes first: targets, then each part."""
    parts = report["parts"]
    lines = ["# The kernels on a GPU", ""]
    if report["rehearsal"]:
        lines += ["**A rehearsal on a CPU: no figure here means anything.**", ""]
    lines += [f"Written by `python -m bench.gpu` at commit {report['commit']}.", ""]
    lines += [*_machine(_facts(parts.get("environment"))), *_ceilings(report["ceilings"])]
    for run in report["earlier"]:
        titles = ", ".join(_title(name) for name in run["parts"])
        lines += [
            "",
            f"**Of an earlier run, on another machine or at another time: {titles}.**",
            "",
        ]
        lines += [*_machine(run["machine"]), *_ceilings(run["ceilings"])]
    goals = [_goal(r) for p in parts.values() for r in p["rows"] if _is_goal(r)]
    goals = [_all_pass(name, p) for name, p in parts.items() if "counts" in p] + goals
    if goals:
        lines += ["", "## Targets", "", *_table(_GOAL, goals)]
    for name, part in parts.items():
        if name != "environment" or part["status"] != DONE:
            lines += ["", f"## {_title(name)}", "", *_part(part)]
    return "\n".join(lines) + "\n"


def _title(name: str) -> str:
    return PARTS[name].title if name in PARTS else name


def _is_goal(row: Row) -> bool:
    return "verdict" in row and (row["kind"] != "compared" or row["target"] is not None)


def _facts(part: dict[str, Any] | None) -> dict[str, Any]:
    rows = [] if part is None else part["rows"]
    return {r["name"]: r["value"] for r in rows if r["kind"] == "fact"}


def _machine(known: dict[str, Any]) -> list[str]:
    return ["; ".join(f"{k} {v}" for k, v in known.items()) + ".", ""] if known else []


def _ceilings(found: dict[str, float]) -> list[str]:
    if not found:
        return ["No ceiling was measured: nothing is held against one."]
    rates = [
        f"copy {v / 1e9:.0f} GB/s (read and written)"
        if name == "copy"
        else f"{name} products {v / 1e12:.0f} TFLOP/s"
        for name, v in found.items()
    ]
    return ["Measured in the same run, and divided by: " + ", ".join(rates) + "."]


_GOAL = ("what", "to reach", "measured", "")


def _goal(row: Row) -> tuple[str, ...]:
    verdict = row["verdict"]
    if row["kind"] == "timed":
        wanted = str(TARGETS[row["target"]])
        return row["name"], wanted, _share(row), verdict
    if row["kind"] == "compared":
        who = f": {row['ours']}" if "ours" in row else ""
        against = f"{row['name']}{who}; against {row['against']}"
        return against, f"≥ {row['target']:g} ×", _ratio(row), verdict
    return row["name"], _value(row["wanted"], row), _value(row["value"], row), verdict


def _all_pass(name: str, part: dict[str, Any]) -> tuple[str, ...]:
    counted = ", ".join(f"{n} {how}" for how, n in part["counts"].items())
    return _title(name), "all pass", counted, part["verdict"] or "not run to the end"


def _part(part: dict[str, Any]) -> list[str]:
    lines = []
    if part["status"] != DONE:
        last = part["error"].strip().splitlines()[-1]
        lines += [f"{part['status'].capitalize()} after {part['seconds']:.0f} s: {last}", ""]
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
        if row["kind"] == "check" and (row["outcome"] != PASSED or row["why"]):
            why = f": {row['why']}" if row["why"] else ""
            lines += [f"- {row['outcome']}: `{row['name']}`{why}"]
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


def _value(value: Any, row: Row) -> str:
    return f"{value} {row['unit']}".strip()
