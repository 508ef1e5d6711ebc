"""What the Triton kernels compile to, without a GPU: `python -m bench.machine_code`.

Every case of `bench.machine_cases` is compiled for each architecture (`machine_listing`), and
`machine_gate` says where its machine code is not what the tiles of `rules.py` were chosen for:
registers in memory, products off the tensor cores, copies that wait, narrow loads and stores. Exit
status: 0; 1 where something is violated; 2 without Triton. Nothing is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ARCHITECTURES = ("80", "90", "100", "120", "gfx942")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if importlib.util.find_spec("triton") is None:
        print("nothing was compiled: Triton is not installed (pip install triton)")
        return 2
    import triton

    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default, without a warning
    from bench import machine_report
    from bench.machine_cases import Case, cases, usual

    chosen: list[Case] = usual() if options.usual else cases()
    chosen = [c for c in chosen if (options.case or "") in f"{c.kernel}: {c}"]
    if not chosen:
        print(f"nothing was compiled: no case has {options.case!r} in it")
        return 2
    rows = []
    for row in measured([(case, arch) for case in chosen for arch in options.arch], options.jobs):
        rows.append(row)
        print(machine_report.line(row), file=sys.stderr, flush=True)
    run = {"date": date.today().isoformat(), "of": len(cases()), "rows": rows}
    result = {triton.__version__: run}
    every = len(chosen) == len(cases()) and set(options.arch) == set(ARCHITECTURES)
    if options.out or every:
        out = Path(options.out or "bench/results")
        out.mkdir(parents=True, exist_ok=True)
        kept = out / "machine_code.json"
        if kept.exists():
            result = machine_report.joined(json.loads(kept.read_text()), result)
        kept.write_text(machine_report.compact(result))
        (out / "machine_code.md").write_text(machine_report.markdown(result))
    print("\n".join(machine_report.summary(result)))
    return int(any(row["violations"] for row in rows))


def measured(wanted: list[tuple[Any, str]], jobs: int) -> Iterator[dict[str, Any]]:
    """The rows of cases and architectures, in their order. A compiler that aborts takes its process
    along: then the first case without a row runs again, alone, to see whether it was the one."""
    done = 0
    while done < len(wanted):
        with _processes(jobs) as pool:
            try:
                for row in pool.map(measure, *zip(*wanted[done:], strict=True)):
                    yield row
                    done += 1
            except BrokenProcessPool:
                pass
        if done < len(wanted):
            case, arch = wanted[done]
            with _processes(1) as pool:
                try:
                    yield pool.submit(measure, case, arch).result()
                except BrokenProcessPool:
                    yield _failed(case, arch, "the compiler aborted")
            done += 1


def _processes(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def _failed(case: Any, arch: str, reason: str) -> dict[str, Any]:
    return {
        "kernel": case.kernel,
        "case": str(case),
        "arch": arch,
        "code": None,
        "programs": 0,
        "violations": [f"not compiled: {reason}"],
    }


def measure(case: Any, arch: str) -> dict[str, Any]:
    """The row of one case on one architecture."""
    from bench.machine_cases import DEVICES
    from bench.machine_gate import violations
    from bench.machine_listing import compiled, programs

    launch = case.launch(DEVICES[arch])
    constants = {k: v.value for k, v in vars(launch.constants).items()}
    try:
        code = compiled(launch, arch)
    except Exception as failure:  # of the compiler: the row says so, and the others go on
        reason = str(failure).strip().splitlines() or [type(failure).__name__]
        return _failed(case, arch, reason[-1])
    figures = code._asdict()
    del figures["loops"]
    return {
        "kernel": case.kernel,
        "case": str(case),
        "arch": arch,
        "code": figures,
        "programs": programs(code, arch),
        "violations": violations(case.kernel, constants, code, arch),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.machine_code", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--usual", action="store_true", help="only what a usual network launches")
    parser.add_argument("--case", metavar="TEXT", help="only cases whose description has it")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where the table is, whose other rows stay; without it bench/results for every case "
        "on every architecture, and none for a part of them",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
