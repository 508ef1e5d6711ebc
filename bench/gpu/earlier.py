"""The runs that a resumed one goes on from: their machine, their ceilings, and which parts."""

from __future__ import annotations

from typing import Any


def runs(held: dict[str, Any], kept: list[str]) -> list[dict[str, Any]]:
    """Of a report, and of those that it goes on from itself, with what is ``kept`` of each."""
    known: list[dict[str, Any]] = []
    for run in held["earlier"]:
        known.append({**run, "parts": [name for name in run["parts"] if name in kept]})
    before = {name for run in known for name in run["parts"]}
    machine = held["parts"].get("environment", {"rows": []})["rows"]
    known.append(
        {
            "parts": [name for name in kept if name not in before],
            "machine": {r["name"]: r["value"] for r in machine if r["kind"] == "fact"},
            "ceilings": held["ceilings"],
        }
    )
    return [run for run in known if run["parts"]]
