"""What the kernels compile to, without a GPU: `python -m bench.machine_code`.

Every case of `bench.machine_cases` is compiled by Triton for each architecture, the kernels of
csrc/ are read where they were built (`machine_built`), and `machine_gate` says where their machine
code (`machine_listing`) is not what the tiles were chosen for: registers in memory, products off
the tensor cores, copies that wait, narrow loads and stores. Exit status: 0; 1 where something is
violated; 2 without Triton, whose wheel has the disassembler. Nothing is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
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
        print("nothing was looked at: Triton is not installed (pip install triton)")
        return 2
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default, without a warning
    from bench import machine_report

    whole = not options.case and not options.usual and set(options.arch) == set(ARCHITECTURES)
    out = Path(options.out or "bench/results") if options.out or whole else None
    result = machine_report.read(out)
    broken = looked = 0
    for kernels in options.kernels:
        name, of, rows = SOURCES[kernels](options)
        for row in rows:
            looked += 1
            broken += bool(row["violations"])
            print(machine_report.line(row), file=sys.stderr, flush=True)
            run = {"date": date.today().isoformat(), "of": of, "rows": [row]}
            result = machine_report.joined(result, {name: run})
            machine_report.write(result, out)  # at once: the rest may take an hour
    if not looked:
        print("nothing was looked at" + (options.case and f": no case has {options.case!r} in it"))
        return 2
    print("\n".join(machine_report.summary(result)))
    return int(broken > 0)


Rows = Iterator[dict[str, Any]]


def of_triton(options: argparse.Namespace) -> tuple[str, int, Rows]:
    """The Triton kernels: who compiles them, how many cases there are, and a row of each chosen."""
    import triton

    from bench.machine_cases import cases, usual

    every = cases()
    chosen = [
        c for c in (usual() if options.usual else every) if _asked(options, f"{c.kernel}: {c}")
    ]
    wanted = [(case, arch) for case in chosen for arch in options.arch]
    return f"Triton {triton.__version__}", len(every), measured(wanted, options.jobs)


def of_csrc(options: argparse.Namespace) -> tuple[str, int, Rows]:
    """The same of csrc/: whatever architectures it was built for, since none is compiled here."""
    from bench import machine_built
    from dfa_kernels.backends.cuda import extension

    every, missing = machine_built.kernels(), extension.missing()
    if missing is not None:
        print(f"the CUDA backend is left out: {missing}", file=sys.stderr)
        return "nvcc", len(every), iter(())
    rows = (r for r in machine_built.rows() if _asked(options, f"{r['kernel']}: {r['case']}"))
    return machine_built.compiler(), len(every), rows


SOURCES = {"triton": of_triton, "cuda": of_csrc}


def _asked(options: argparse.Namespace, described: str) -> bool:
    return options.case in described


def measured(wanted: list[tuple[Any, str]], jobs: int) -> Rows:
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
    parser.add_argument(
        "--kernels", nargs="+", choices=tuple(SOURCES), default=tuple(SOURCES), help="whose"
    )
    parser.add_argument(
        "--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES,
        help="what Triton compiles for; csrc/ is looked at for each that it was built for",
    )  # fmt: skip
    parser.add_argument(
        "--usual", action="store_true", help="of Triton's, only what a usual network launches"
    )
    parser.add_argument(
        "--case", metavar="TEXT", default="", help="only cases whose description has it"
    )
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
