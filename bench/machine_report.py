"""The table of `bench.machine_code`, in a terminal and in Markdown."""

from __future__ import annotations

import json
from typing import Any

Result = dict[str, Any]


def line(row: dict[str, Any]) -> str:
    """One row, for whoever watches."""
    return " | ".join((row["arch"], row["kernel"], row["case"], *_figures(row), _verdict(row)))


def compact(result: Result) -> str:
    """JSON with a row a line, so that a change of one shows as one."""
    versions = []
    for version, run in result.items():
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in run["rows"])
        head = f'"date": "{run["date"]}", "of": {run["of"]}'
        versions.append(f'"{version}": {{{head}, "rows": [\n{rows}\n]}}')
    return "{" + ",\n".join(versions) + "}\n"


def joined(before: Result, after: Result) -> Result:
    """Of each version the rows ``after``, and those ``before`` that these do not replace."""
    made = before | after
    for version in before.keys() & after.keys():
        rows = {_key(r): r for v in (before, after) for r in v[version]["rows"]}
        made[version] = after[version] | {"rows": list(rows.values())}
    return made


def newest_first(result: Result) -> list[str]:
    """The versions of Triton."""
    return sorted(result, key=lambda v: [int(n) for n in v.split(".")[:2]], reverse=True)


def summary(result: Result) -> list[str]:
    """What passed, by version and architecture."""
    lines = ["| Triton | compiled on | arch | cases | without spills | pass |"]
    lines.append("|---|---|---|---|---|---|")
    for version in newest_first(result):
        run = result[version]
        for arch in dict.fromkeys(row["arch"] for row in run["rows"]):
            rows = [row for row in run["rows"] if row["arch"] == arch]
            whole = sum(not _spills(row) for row in rows)
            passed = sum(not row["violations"] for row in rows)
            cases = f"{len(rows)} of {run['of']}"
            lines.append(f"| {version} | {run['date']} | {arch} | {cases} | {whole} | {passed} |")
    return lines


def markdown(result: Result) -> str:
    """The whole table: figures of the newest version, and the verdict of each."""
    versions = newest_first(result)
    newest, *older = versions
    verdicts = {v: {_key(row): _verdict(row) for row in result[v]["rows"]} for v in versions}
    titles = [
        "arch", "case", "registers", "stack", "shared", "warps", "programs",
        "products", "copies", "loads", "stores", *versions,
    ]  # fmt: skip
    lines = [
        "# What the Triton kernels compile to",
        "",
        "By `python -m bench.machine_code`, without a GPU: nothing here was timed. Registers and",
        "stack are a thread's, shared memory (bytes) a program's; programs: as many as a",
        "multiprocessor holds at a time, by calculation. Products: tensor-core instructions",
        "(W wgmma, T tcgen05, M mma). Copies: asynchronous (A) and bulk (B) ones. Loads and",
        "stores: of 128 bits / narrower ones, whose share includes tables, biases and, in the",
        f"cases with unaligned rows, the whole path of those. Figures are of Triton {newest}; the",
        "last columns say for each version what of the gate (`bench/machine_gate.py`) is broken.",
        "Of an architecture with fewer cases than there are, the others were not compiled for this",
        "table: `python -m bench.machine_code` compiles them all.",
        "",
        *summary(result),
    ]
    for kernel in ("project", "update"):
        rows = [row for row in result[newest]["rows"] if row["kernel"] == kernel]
        lines += ["", f"## {kernel}", "", "| " + " | ".join(titles) + " |"]
        lines.append("|" + "---|" * len(titles))
        for row in rows:
            told = [verdicts[v].get(_key(row), "–") for v in (newest, *older)]
            lines.append(
                "| " + " | ".join((row["arch"], row["case"], *_figures(row), *told)) + " |"
            )
    return "\n".join(lines) + "\n"


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["kernel"], row["case"], row["arch"]


def _spills(row: dict[str, Any]) -> bool:
    code = row["code"]
    return code is None or bool(code["stack"] or code["spills"])


def _verdict(row: dict[str, Any]) -> str:
    return "; ".join(row["violations"]) or "passes"


def _figures(row: dict[str, Any]) -> list[str]:
    code = row["code"]
    if code is None:
        return ["–"] * 9
    counts = code["counts"]

    def tagged(**names: str) -> str:
        return " ".join(f"{counts[n]}{t}" for t, n in names.items() if n in counts) or "0"

    def wide(name: str) -> str:
        whole = counts.get(f"{name} 128", 0)
        return f"{whole}/{counts.get(name, 0) - whole}"

    return [
        *(str(code[name]) for name in ("registers", "stack", "shared", "warps")),
        str(row["programs"]),
        tagged(W="wgmma", T="tcgen05", M="mma"),
        tagged(A="asynchronous", B="bulk"),
        wide("load"),
        wide("store"),
    ]
