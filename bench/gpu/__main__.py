"""What the Triton backend does on a GPU: `python -m bench.gpu`, at most 8 minutes on an H200.

csrc/ compiled, the emulator's vectors, tests, then ceilings, then every figure against them, from a
checkout, without a network. Each result is in OUT/DEVICE/gpu.{json,md} as soon as it is there.
Exit status: 0 if all tests passed, figures missed or not; 1 if a test or a part failed, or not all
tests ran; 2 where nothing can run.

The same command on the same sources goes on with the parts that are not done, on this machine or
another of the kind: what belongs to the machine itself (environment, build, ceilings) is done
again, and the page says which figures are an earlier run's. It needs OUT/DEVICE/gpu.json alone.
Where OUT is emptied between commands, keep that file in the checkout and put it back first:

    mkdir -p OUT/DEVICE && cp KEPT/gpu.json OUT/DEVICE/ && python -m bench.gpu --out OUT

Where there is no .git, `--commit SHA` says what the checkout is of. The sources are compared too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu import earlier, sources

#: Parts that say what this machine is and make it ready: never taken over from another.
MACHINE = ("environment", "build", "ceilings")


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
    commit = environment.commit()
    if options.commit:
        given = re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", options.commit)  # as git's is here
        if commit not in ("unknown", given):
            return _refuse(f"--commit is {given}, and git says {commit}")
        commit = given
    book = _Book(folder, commit, options.dry_run)
    if (folder / "gpu.json").exists() and not options.overwrite:
        try:
            names = book.resume(names)
        except ValueError as other:
            return _refuse(f"{folder} holds {other}: --overwrite, or another --out")
        print(f"{len(book.done)} parts are taken over; {len(names)} to go")
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
        self._sources = sources.digest()
        self._results: dict[str, Any] = {}
        self._earlier: list[dict[str, Any]] = []
        self._start = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def done(self) -> list[str]:
        """The parts so far."""
        return list(self._results)

    def resume(self, names: list[str]) -> list[str]:
        """Take over what is done, of the run of these sources whose file is there; the rest of
        ``names``, and with it what belongs to the machine.

        Raises:
            ValueError: the file is of another run, or no result at all.
        """
        from bench.gpu import report, supervisor

        try:
            held = json.loads((self._folder / "gpu.json").read_text())
            commit, parts = held["commit"], held["parts"]
            same = held["sources"] == self._sources
            done = {
                name: supervisor.Result(part["status"], part["seconds"], part["rows"], "")
                for name, part in parts.items()
                if part["status"] == supervisor.DONE and _to_the_end(part)
            }
            left = [name for name in names if name not in done]
            if left:
                self._earlier = earlier.runs(held, [n for n in done if n not in MACHINE])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError("a gpu.json that is no result") from None
        if commit != self._commit:
            raise ValueError(f"the results of another run, at commit {commit}")
        if not same:
            raise ValueError(f"the results of another run, at commit {commit} of other sources")
        if not left:
            self._results = done
            self._replace("gpu.md", report.markdown(held))
            return []
        self._results = {n: result for n, result in done.items() if n not in MACHINE}
        again = [n for n in MACHINE if n in parts or n in left]
        return again + [n for n in left if n not in MACHINE]

    def write(self, part: str, result: Any) -> None:
        """Of a part under way, or at its end, which is told."""
        from bench.gpu import report, supervisor
        from bench.gpu.parts import PARTS

        found = {**self._results, part: result}
        order = [*PARTS, *found]
        self._results = {n: found[n] for n in sorted(found, key=order.index)}
        made = {
            "commit": self._commit,
            "sources": self._sources,
            "rehearsal": self._tiny,
            "earlier": self._earlier,
            **report.derived(self._results),
        }
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


def _to_the_end(part: dict[str, Any]) -> bool:
    """Whether all of its tests had the time that they need."""
    return "counts" not in part or part["verdict"] is not None


def _refuse(sentence: str) -> int:
    print(f"bench.gpu: {sentence}.", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts, by their names")
    parser.add_argument("--device", metavar="NAME", help="what the folder is called after")
    parser.add_argument(
        "--commit", metavar="NAME", help="of the checkout, where git cannot tell; recorded"
    )
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
