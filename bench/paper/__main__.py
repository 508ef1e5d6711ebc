"""`python -m bench.paper TASK …` trains one model by every method; `report` shows all results.

What cannot be done is said in one sentence on standard error, with exit status 2 and before
training starts; 130 is an interruption, after which the same command goes on.
"""

from __future__ import annotations

import importlib
import sys

from rich.console import Console
from rich.table import Table

from bench.paper import options as asked_options
from bench.paper.rows import EDGE, Row
from bench.paper.study import Study
from bench.paper.task import Task
from bench.paper.training import Stopped
from dfa_kernels.training import InputError, folders

TASKS = ("view", "recommender", "graph", "language")


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = asked_options.Parser(prog="python -m bench.paper", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    if given and given[0] in TASKS:  # one task's packages are imported, not all
        try:
            task: Task = importlib.import_module(f"bench.paper.{given[0]}").TASK
        except ModuleNotFoundError as missing:
            print(
                f"bench.paper {given[0]}: {missing.name} is missing: "
                'pip install "dfa_kernels[paper]"',
                file=sys.stderr,
            )
            return 2
        asked_options.add(commands.add_parser(task.name), task)
    else:
        for name in TASKS:
            commands.add_parser(name, help=f"--help after {name} shows its options")
        from bench.paper import report

        report.add_options(commands.add_parser("report", help="one HTML page of all results"))
    asked = parser.parse_args(given)
    try:
        if asked.command == "report":
            return report.main(asked)
        asked_options.check(asked, task)
        study = Study(task, task.problem(asked), asked)
        folders.make(asked.out)
        rows = study.run()
    except InputError as bad:
        print(f"bench.paper {asked.command}: {bad}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt):
        same = "the same command" + ", without --overwrite," * getattr(asked, "overwrite", False)
        print(
            f"bench.paper {asked.command}: interrupted; {same} goes on from there", file=sys.stderr
        )
        return 130
    _print(rows)
    print(f"{asked.json}, {study.folder}")
    return 0


def _print(rows: list[Row]) -> None:
    first = rows[0]
    table = Table(title=f"{first.task}: {first.model} on {first.data}, {first.seeds} seeds")
    for column in ("method", "metric", "mean", "std", "lr", "step ms", "step / bp"):
        table.add_column(column, justify="left" if column in ("method", "metric") else "right")
    for row in rows:
        ratio = "" if row.step_ratio is None else "{:.2f} ({:.2f}–{:.2f})".format(*row.step_ratio)
        table.add_row(
            row.method, row.metric, f"{row.mean:.{row.digits}f}", f"{row.std:.{row.digits}f}",
            f"{row.lr:g}{EDGE * row.at_the_edge}", f"{row.step_ms:.2f}", ratio,
        )  # fmt: skip
    if any(row.at_the_edge for row in rows):
        table.caption = f"{EDGE}: the first or last rate of the grid; beyond it may be a better"
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
