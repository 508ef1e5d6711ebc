"""What the Triton backend does on a GPU: `python -m bench.gpu`, at most 8 minutes on an H200.

Tests, then ceilings, then every figure against them, from a checkout, without a network. Results
are written after each part to OUT/DEVICE/gpu.{json,md}. Exit status: 0 if the tests passed, figures
missed or not; 1 if a test failed or none finished; 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.dry_run:  # before Triton is imported, here and in the workers
        os.environ["TRITON_INTERPRET"] = "1"

    import torch

    from bench.gpu import machine, report
    from bench.gpu.parts import PARTS
    from bench.gpu.supervisor import Budget, Result, Worker, run_all

    parts = PARTS
    names = options.only or [n for n, p in PARTS.items() if not p.asked]
    if unknown := [n for n in names if n not in PARTS]:
        print(f"unknown part {unknown[0]!r}: known are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if options.sweep and "sweep" not in names:
        names.append("sweep")
    if options.dry_run:
        device, name = "cpu", "rehearsal"
        parts = {n: p._replace(most=600.0) for n, p in PARTS.items()}
    elif torch.cuda.is_available():
        device = "cuda"
        name = options.device or torch.cuda.get_device_properties(0).name
    else:
        print("bench.gpu needs a GPU, and torch sees none here.", file=sys.stderr)
        return 2
    out = Path(tempfile.mkdtemp() if options.dry_run else options.out) / machine.slug(name)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Result] = {}

    def after(part: str, result: Result) -> None:
        results[part] = result
        made = report.derived(results)
        (out / "gpu.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
        (out / "gpu.md").write_text(report.markdown(made))
        told = result.error.strip().splitlines()[-1:] or [f"{len(result.rows)} rows"]
        print(f"{part}: {result.status}, {result.seconds:.0f} s: {told[0]}", flush=True)
        if options.dry_run and result.error:
            print(result.error, flush=True)

    worker = Worker(device, options.dry_run)
    try:
        run_all(
            parts, names, Budget(3600 if options.dry_run else options.budget), worker.run, after
        )
    finally:
        worker.stop()
    print((out / "gpu.md").read_text())
    print(f"written to {out}")
    return _status(results)


def _status(results: dict) -> int:
    """1 if a test failed, or the tests were to run and none finished."""
    checks = [r for p in results.values() for r in p.rows if r["kind"] == "tests"]
    if any(r["verdict"] == "missed" for r in checks):
        return 1
    ran = any(r["name"] == "tests/gpu" for r in checks)
    return 1 if "tests" in results and not ran else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts, by their names")
    parser.add_argument("--device", metavar="NAME", help="what the folder is called after")
    parser.add_argument("--out", default="bench/results", metavar="DIR")
    parser.add_argument("--sweep", action="store_true", help="time other tiles too")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="rehearse every part on the CPU, tiny, in Triton's interpreter; no figure is kept",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
