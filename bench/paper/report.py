"""`python -m bench.paper report`: one self-contained HTML page of all committed results.

Every table beside the paper's figures, the learning-rate grids, alignment, step times, and every
picture; nothing on it is typed by hand.
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import jinja2

from bench.paper import published, rows, verdict
from bench.paper.rows import Row
from dfa_kernels.training import InputError

RESULTS = Path(__file__).parents[1] / "results" / "paper"
TITLES = {
    "view": "Neural view synthesis",
    "recommender": "Recommenders",
    "graph": "Geometric learning",
    "language": "Language modelling",
}
_METHODS = ("bp", "dfa", "shallow")  # first, in this order
_PICTURES = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg"}


class Cell(NamedTuple):
    """A method's score: ours, and the paper's own where it has one."""

    ours: str
    paper: str
    best: bool


class Line(NamedTuple):
    """A row of a task's table: a model on some data, by one metric."""

    model: str
    data: str
    metric: str
    cells: list[Cell]
    verdict: str
    share: str
    ratio: str
    feedback: str
    alignment: str
    seeds: int


class Picture(NamedTuple):
    name: str
    uri: str


class Section(NamedTuple):
    task: str
    title: str
    methods: list[str]
    lines: list[Line]
    grids: list[tuple[str, str, str, str, list[tuple[str, str, bool]]]]
    machine: list[str]
    pictures: list[Picture]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR",
        help="TASK.json and TASK/*.png (bench/results/paper)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/paper/report.html"), metavar="FILE")


def main(options: argparse.Namespace) -> int:
    """Write the page.

    Raises:
        InputError: there are no results, one cannot be read, or the page cannot be written.
    """
    page = html(options.results)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page, encoding="utf-8")
    except OSError as failed:
        raise InputError(f"{options.out} cannot be written: {failed.strerror}") from None
    print(options.out)
    return 0


def html(results: Path) -> str:
    """The page of every TASK.json in ``results``, by the template beside this file."""
    found = [p for name in TITLES if (p := results / f"{name}.json").exists()]
    if not found:
        raise InputError(f"{results} holds none of {', '.join(f'{n}.json' for n in TITLES)}")
    sections = [section(path.stem, rows.read(path), results / path.stem) for path in found]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(sections=sections)


def section(task: str, made: list[Row], pictures: Path) -> Section:
    groups = verdict.grouped(made)
    methods = _methods(made)
    return Section(
        task,
        TITLES.get(task, task),
        methods,
        [_line(group, by_method, methods) for group, by_method in groups.items()],
        list(_grids(groups)),
        sorted({_machine(row) for row in made}),
        [_embedded(p, pictures) for p in sorted(pictures.rglob("*")) if p.suffix in _PICTURES],
    )


def _methods(made: list[Row]) -> list[str]:
    """Those that every task has, then controls, as they come."""
    there = list(dict.fromkeys(row.method for row in made))
    return [m for m in _METHODS if m in there] + [m for m in there if m not in _METHODS]


def _line(group: verdict.Group, by_method: dict[str, Row], methods: list[str]) -> Line:
    task, model, data, metric = group
    paper = published.of(task, model, metric)
    first = next(iter(by_method.values()))
    means = [row.mean for row in by_method.values()]
    best = max(means) if first.higher_is_better else min(means)
    cells = []
    for method in methods:
        row, figure = by_method.get(method), paper.get(method)
        said = "" if figure is None else f"{figure.text} ({figure.data})"
        ours = "" if row is None else row.score
        cells.append(Cell(ours, said, row is not None and row.mean == best))
    dfa = by_method.get("dfa")
    said = None if dfa is None else verdict.of("dfa", by_method)
    return Line(
        model,
        data,
        metric + (" ↑" if first.higher_is_better else " ↓"),
        cells,
        "" if said is None or "shallow" not in by_method else said.sentence,
        "" if said is None or said.share is None else f"{100 * said.share:.0f} %",
        _ratio(dfa),
        "" if dfa is None else f"{dfa.feedback_bytes:,}",
        "" if dfa is None else _alignment(dfa),
        first.seeds,
    )


def _ratio(row: Row | None) -> str:
    if row is None or row.step_ratio is None:
        return ""
    middle, low, high = row.step_ratio
    doubt = ", undecided" if low < 1 < high else ""
    return f"{middle:.2f} ({low:.2f}–{high:.2f}{doubt})"


def _alignment(row: Row) -> str:
    known = [value for value in row.alignment.values() if value == value]
    if not known:
        return ""
    return f"{mean(known):.2f} ({min(known):.2f}–{max(known):.2f})"


def _grids(groups: dict[verdict.Group, dict[str, Row]]) -> Any:
    """Of each model and method once: every choice, its validation score, whether it is taken."""
    seen = set()
    for (_, model, data, metric), by_method in groups.items():
        for method, row in by_method.items():
            if not row.grid or (model, data, method) in seen:
                continue
            seen.add((model, data, method))
            taken = f"{row.lr:g} {row.variant}".rstrip()
            tried = [
                (choice, f"{score:.{row.digits}f}", choice == taken)
                for choice, score in row.grid.items()
            ]
            yield model, data, method, metric, tried


def _machine(row: Row) -> str:
    known = {k: v for k, v in row.environment.items() if v not in (None, "")}
    return ", ".join(f"{name} {value}" for name, value in known.items())


def _embedded(path: Path, folder: Path) -> Picture:
    coded = base64.b64encode(path.read_bytes()).decode()
    return Picture(
        path.relative_to(folder).with_suffix("").as_posix(),
        f"data:{_PICTURES[path.suffix]};base64,{coded}",
    )
