"""The CPU's result, from the package's own tool: `python -m bench.throughput`, about 10 minutes.

On a quiet machine. It runs `dfa-kernels bench --scaling` and leaves

- bench/results/throughput.json and .md: the result, and its tables
- dfa_kernels/throughput/devices/NAME.json: the cost model's constants for this device
- bench/results/README.md, README.md: the claim, and the table of steps (`bench.readme`)

Options of `dfa-kernels bench` go behind ours. What is there already is replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from bench import readme, throughput_report
from dfa_kernels import cli
from dfa_kernels.throughput import result
from dfa_kernels.throughput.options import FILE
from dfa_kernels.throughput.result import Result

ROOT = Path(__file__).parent.parent
CLAIM = "A training step against compiled backpropagation and every rival that is installed"


def main(arguments: list[str] | None = None) -> int:
    options, others = _parser().parse_known_args(arguments)
    root = Path(options.root)
    results, devices = root / "bench/results", root / "dfa_kernels/throughput/devices"
    if not options.keep:
        command = ["bench", "--scaling", "--overwrite", "--out", str(results), "--processes", "3"]
        status = cli.main([*command, *others])
        if status:
            return status
    found = result.read(results / FILE)
    (results / "throughput.md").write_text(throughput_report.markdown(found))
    claims = results / "README.md"
    claims.write_text(claimed(claims.read_text(), found))
    readme.main(root)
    return cli.main(["bench", "--calibrate", str(results / FILE), "--out", str(devices)])


def claimed(page: str, found: Result) -> str:
    """The page of claims with this result's row, in place of an older one or before the others."""
    env = found.environment
    files = f"[throughput.json]({FILE}), [throughput.md](throughput.md)"
    machine = f"{env['device']}, {env['cores']} cores, {env['threads']} threads"
    line = f"| {CLAIM} | {files} | {machine} | {env['date']} | {env['commit']} |"
    page = re.sub(rf"^\| {re.escape(CLAIM)} \|.*\n", "", page, flags=re.MULTILINE)
    head = "| --- | --- | --- | --- | --- |\n"
    return page.replace(head, f"{head}{line}\n", 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.throughput", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--root", default=str(ROOT), metavar="DIR", help="of the checkout")
    parser.add_argument(
        "--keep", action="store_true", help="write everything anew from the result that is there"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
