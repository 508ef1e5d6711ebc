"""What the Triton backend does on a GPU: `python -m bench.gpu`, at most 8 minutes on an H200.

Tests, then ceilings, then every figure against them, from a checkout, without a network. Each
result is in OUT/DEVICE/gpu.{json,md} as soon as it is there. Exit status: 0 if all tests passed,
figures missed or not; 1 if a test or a part failed, or not all tests ran; 2 where nothing can run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from bench.gpu import rehearsal

    if options.dry_run:
        rehearsal.ask_for_interpreter()

    import torch

    from bench.gpu import supervisor
    from bench.gpu.parts import PARTS
    from dfa_kernels.throughput import environment

    names = options.only or [n for n, p in PARTS.items() if not p.asked or options.dry_run]
    if unknown := [n for n in names if n not in PARTS]:
        return _refuse(f"unknown part {unknown[0]!r}: known are {', '.join(PARTS)}")
    if options.sweep and "sweep" not in names:
        names.append("sweep")
    parts, seconds = PARTS, options.budget
    if options.dry_run:
        folder = Path(tempfile.mkdtemp()) / "rehearsal"
        parts, seconds = {n: p._replace(least=0.0, most=600.0) for n, p in PARTS.items()}, 3600.0
    elif torch.cuda.is_available():
        name = options.device or torch.cuda.get_device_properties(0).name
        folder = Path(options.out) / environment.slug(name)
    else:
        return _refuse("torch sees no GPU here")
    if (folder / "gpu.json").exists() and not options.overwrite:
        return _refuse(f"{folder} holds the results of another run: --overwrite, or another --out")
    book = _Book(folder, options.commit or environment.commit(), options.dry_run)
    worker = supervisor.Worker("cpu" if options.dry_run else "cuda", options.dry_run)
    budget = supervisor.Budget(seconds)
    supervisor.end_on_terminate()
    try:
        supervisor.run_all(parts, names, budget, worker.run, book.write)
    finally:
        worker.stop()
    print((folder / "gpu.md").read_text())
    print(f"written to {folder}")
    return book.status()


class _Book:
    """The results so far, and their files."""

    def __init__(self, folder: Path, commit: str, tiny: bool) -> None:
        self._folder, self._commit, self._tiny = folder, commit, tiny
        self._results: dict[str, Any] = {}
        self._start = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, part: str, result: Any) -> None:
        """Of a part under way, or at its end, which is told."""
        from bench.gpu import report, supervisor

        self._results[part] = result
        made = {"commit": self._commit, "rehearsal": self._tiny, **report.derived(self._results)}
        self._replace("gpu.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n")
        self._replace("gpu.md", report.markdown(made))
        if result.status == supervisor.CUT_OFF:
            return
        told = result.error.strip().splitlines()[-1:] or [f"{len(result.rows)} rows"]
        since = time.monotonic() - self._start
        print(f"{since:4.0f} s {part}: {result.status}, {result.seconds:.0f} s: {told[0]}")
        if self._tiny and result.error:
            print(result.error)
        sys.stdout.flush()

    def _replace(self, name: str, text: str) -> None:
        """Whoever reads it meanwhile sees the one or the other."""
        new = self._folder / f".{name}"
        new.write_text(text)
        os.replace(new, self._folder / name)

    def status(self) -> int:
        """Of this process; what failed is told."""
        from bench.gpu import report

        failed = report.failures(self._results, self._tiny)
        for name in failed:
            print(f"failed: {name}", file=sys.stderr)
        return 1 if failed else 0


def _refuse(sentence: str) -> int:
    print(f"bench.gpu: {sentence}.", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts, by their names")
    parser.add_argument("--device", metavar="NAME", help="what the folder is called after")
    parser.add_argument("--commit", metavar="NAME", help="of the checkout, where git cannot tell")
    parser.add_argument("--out", default="bench/results", metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run's results")
    parser.add_argument("--sweep", action="store_true", help="time other tiles too")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="rehearse every part on the CPU, tiny, in Triton's interpreter; no figure is kept",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
