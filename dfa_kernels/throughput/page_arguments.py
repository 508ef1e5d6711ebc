"""`dfa-kernels report` on the command line: its options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dfa_kernels.training import extras

DEFAULT = Path("report.html")


def add(commands: Any) -> None:
    """The command, to a parser's subparsers."""
    report = commands.add_parser(
        "report",
        help="one HTML page of results, of one machine or of several side by side",
        description="Make one self-contained HTML page of what dfa-kernels bench (throughput.json) "
        "and profile (profile.json) wrote: verdict, ratios, roofline, scaling, environment. "
        "Several machines or commits stand side by side, in the order in which they are given.",
    )
    report.add_argument("files", nargs="+", type=Path, metavar="RESULT.json")
    report.add_argument(
        "--out", type=Path, default=DEFAULT, metavar="PAGE.html", help=f"({DEFAULT})"
    )
    report.add_argument(
        "--overwrite", action="store_true", help="replace --out even where it is no such page"
    )
    report.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    """Write the page; the exit status."""
    extras.need("bench", "jinja2")
    from dfa_kernels.throughput.page import report

    return report(asked.files, asked.out, asked.overwrite)
