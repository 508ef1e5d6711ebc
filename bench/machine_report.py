"""The table of `bench.machine_code`, in a terminal and in Markdown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

NAME = "machine_code.json"

#: By compiler and version: its date, how many cases there are, and their rows.
Result = dict[str, Any]

#: Whose kernels a compiler makes.
COMPILERS = {"Triton": "the Triton backend", "nvcc": "the CUDA backend"}


def line(row: dict[str, Any]) -> str:
    """One row, for whoever watches."""
    return " | ".join((row["arch"], row["kernel"], row["case"], *_figures(row), _verdict(row)))


def read(folder: Path | None) -> Result:
    """What was written there, or nothing."""
    kept = folder and folder / NAME
    return json.loads(kept.read_text()) if kept and kept.exists() else {}


def write(result: Result, folder: Path | None) -> None:
    """Both forms of the table; nothing where there is no folder."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / NAME
        for file, text in ((kept, compact(result)), (kept.with_suffix(".md"), markdown(result))):
            part = file.with_suffix(".part")
            part.write_text(text)
            part.replace(file)  # whole at any time, whoever reads it meanwhile


def compact(result: Result) -> str:
    """JSON with a row a line, so that a change of one shows as one."""
    versions = []
    for version, run in result.items():
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in run["rows"])
        head = f'"date": "{run["date"]}", "of": {run["of"]}'
        versions.append(f'"{version}": {{{head}, "rows": [\n{rows}\n]}}')
    return "{" + ",\n".join(versions) + "}\n"


def joined(before: Result, after: Result) -> Result:
    """Of each compiler the rows ``after``, and those ``before`` that these do not replace."""
    made = before | after
    for version in before.keys() & after.keys():
        rows = {_key(r): r for v in (before, after) for r in v[version]["rows"]}
        cases = list(dict.fromkeys(key[:2] for key in rows))  # each with its architectures
        every = sorted(rows.values(), key=lambda row: cases.index(_key(row)[:2]))
        made[version] = after[version] | {"rows": every}
    return made


def newest_first(result: Result, compiler: str) -> list[str]:
    """The versions of a compiler, such as "Triton 3.9.0"."""
    of_it = [name for name in result if name.startswith(compiler)]
    return sorted(of_it, key=lambda v: [int(n) for n in re.findall(r"\d+", v)[:2]], reverse=True)


def summary(result: Result) -> list[str]:
    """What passed, by compiler and architecture."""
    lines = ["| compiler | compiled on | arch | cases | without spills | pass |"]
    lines.append("|---|---|---|---|---|---|")
    for name in (n for c in COMPILERS for n in newest_first(result, c)):
        run = result[name]
        for arch in dict.fromkeys(row["arch"] for row in run["rows"]):
            rows = [row for row in run["rows"] if row["arch"] == arch]
            whole = sum(not _spills(row) for row in rows)
            passed = sum(not row["violations"] for row in rows)
            cases = f"{len(rows)} of {run['of']}"
            lines.append(f"| {name} | {run['date']} | {arch} | {cases} | {whole} | {passed} |")
    return lines


def markdown(result: Result) -> str:
    """The whole table: figures of each compiler's newest version, and the verdict of each."""
    lines = [
        "# What the kernels compile to",
        "",
        "By `python -m bench.machine_code`, without a GPU: nothing here was timed. Registers and",
        "stack are a thread's, shared memory (bytes) a program's; programs: as many as a",
        "multiprocessor holds at a time, by calculation. Products: tensor-core instructions",
        "(W wgmma, T tcgen05, M mma). Copies: asynchronous (A) and bulk (B) ones. Loads and",
        "stores: of 128 bits / narrower ones, whose share includes tables, biases and, of what is",
        "not whole vectors, the whole path; csrc/ has one in each kernel. Figures are of a",
        "compiler's newest version; the last columns say for each version what of the gate",
        "(`bench/machine_gate.py`) is broken.",
        "Of an architecture with fewer cases than there are, the others were not compiled for this",
        "table: `python -m bench.machine_code` compiles them all.",
        "",
        *summary(result),
    ]
    for compiler, backend in COMPILERS.items():
        versions = newest_first(result, compiler)
        for kernel in ("project", "update") if versions else ():
            lines += ["", f"## {kernel}, {backend}", "", *_table(result, versions, kernel)]
    return "\n".join(lines) + "\n"


def _table(result: Result, versions: list[str], kernel: str) -> list[str]:
    newest, *older = versions
    verdicts = {v: {_key(row): _verdict(row) for row in result[v]["rows"]} for v in versions}
    titles = [
        "arch", "case", "registers", "stack", "shared", "warps", "programs",
        "products", "copies", "loads", "stores", *versions,
    ]  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in result[newest]["rows"]:
        if row["kernel"] == kernel:
            told = [verdicts[v].get(_key(row), "–") for v in (newest, *older)]
            cells = (row["arch"], row["case"], *_figures(row), *told)
            lines.append("| " + " | ".join(cells) + " |")
    return lines


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
