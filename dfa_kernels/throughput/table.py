"""A result on a terminal: a table for each shape and dtype, times and ratios with their noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from dfa_kernels.throughput.networks import Shape
from dfa_kernels.throughput.result import (
    BASELINE,
    FASTER,
    SLOWER,
    Ceilings,
    Curve,
    Prediction,
    Result,
    Row,
)

_COLOURS = {FASTER: "green", SLOWER: "red"}
_NOTHING = "–"
#: Of the page where nobody reads along on a terminal.
WIDTH = 165


def console() -> Console:
    """Wide where what is printed goes to a file."""
    made = Console()
    return made if made.is_terminal else Console(width=WIDTH)


def show(result: Result, console: Console) -> None:
    """All of it."""
    env = result.environment
    console.print(
        f"{env['device']}, {env['threads']} threads, torch {env['torch']}, {env['optimizer']}; "
        f"{ceilings_in_words(result.ceilings)}",
        highlight=False,
    )
    keys = dict.fromkeys((row.shape, row.dtype) for row in result.rows)
    for shape, dtype in keys:
        console.print(
            _of([r for r in result.rows if (r.shape, r.dtype) == (shape, dtype)], console)
        )
    for row in result.rows:
        if row.error:
            where = f"{Shape(*row.shape)} {row.dtype}"
            console.print(f"{row.contestant} died at {where}: {row.error}", markup=False)
    if result.scaling:
        console.print(_curves(result.scaling))
    for crossover in result.crossovers:
        console.print(crossover.sentence, markup=False, highlight=False)
    if result.predictions:
        show_predictions(result.predictions, console)
    for note in result.notes:
        console.print(note, markup=False, highlight=False)


def ceilings_in_words(ceilings: Ceilings) -> str:
    """The denominators of every percentage."""
    said = [f"copy {ceilings.gbps:.1f} GB/s"] if ceilings.gbps else []
    said += [f"{name} products {rate:.3g} TFLOP/s" for name, rate in ceilings.tflops.items()]
    said += [f"a launch {ceilings.launch_us:.1f} µs"] if ceilings.launch_us else []
    return ", ".join(said) or "no ceiling was measured"


#: Name of a column, and its cells; the first four are always shown.
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "": lambda row: row.contestant,
    "ms": lambda row: _between(row.ms, row.quartiles),
    f"÷ {BASELINE}": lambda row: _ratio(row),
    " ": lambda row: _verdict(row),
    "TFLOP/s": lambda row: _share(row.tflops, row.percent_of_matrix_rate),
    "GB/s": lambda row: _share(row.gbps, row.percent_of_bandwidth),
    "memory": lambda row: megabytes(row.peak_memory_bytes),
    "B": lambda row: megabytes(row.feedback_bytes),
    "samples/s": lambda row: _NOTHING if row.samples_per_s is None else f"{row.samples_per_s:,.0f}",
    "launches": lambda row: _share(row.launches, row.percent_of_launches),
}


def _of(rows: Sequence[Row], console: Console) -> Table:
    """As many columns as the console has room for: half of one says nothing."""
    for count in range(len(_COLUMNS), 3, -1):
        table = _first_columns(rows, count)
        wanted = Measurement.get(console, console.options.update_width(1000), table).maximum
        if wanted <= console.width:
            break
    return table


def _first_columns(rows: Sequence[Row], count: int) -> Table:
    batch, depth, width, outputs = rows[0].shape
    table = plain(f"batch {batch:,}, {depth} × {width:,}, {outputs:,} outputs, {rows[0].dtype}")
    columns = list(_COLUMNS.items())[:count]
    for head, _ in columns:
        table.add_column(head, justify="right" if head.strip() else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for _, cell in columns))
    return table


def _verdict(row: Row) -> str:
    colour = _COLOURS.get(row.verdict or "")
    said = "died" if row.error else row.verdict or ""
    return f"[{colour}]{said}" if colour else said


def plain(title: str) -> Table:
    """Without lines between the columns: a terminal is narrow."""
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _between(value: float | None, quartiles: tuple[float, float] | None) -> str:
    if value is None or quartiles is None:
        return _NOTHING
    return f"{figure(value)} ({figure(quartiles[0])}–{figure(quartiles[1])})"


def _ratio(row: Row) -> str:
    if row.ratio is None or row.ratio_quartiles is None:
        return _NOTHING
    low, high = row.ratio_quartiles
    return f"{row.ratio:.2f} ({low:.2f}–{high:.2f})"


def _share(value: float | None, percent: float | None) -> str:
    if value is None:
        return _NOTHING
    said = f"{value}" if isinstance(value, int) else figure(value)
    return said if percent is None else f"{said} ({percent:.0f} %)"


def figure(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def megabytes(count: int | None) -> str:
    return _NOTHING if count is None else f"{count / 1e6:,.1f} MB"


def _curves(curves: Iterable[Curve]) -> Table:
    table = plain("Scaling: time and memory ∝ valueᵖ")
    for head in ("along", "contestant", "from", "to", "ms", "p of time", "p of memory"):
        table.add_column(head, justify="left" if head in ("along", "contestant") else "right")
    for curve in curves:
        times = [p.ms for p in curve.points if p.ms is not None]
        table.add_row(
            curve.axis,
            curve.contestant,
            f"{curve.points[0].value:,}",
            f"{curve.points[-1].value:,}",
            f"{figure(times[0])} … {figure(times[-1])}" if times else _NOTHING,
            _exponent(curve.ms_exponent),
            _exponent(curve.memory_exponent),
        )
    return table


def _exponent(found: tuple[float, float] | None) -> str:
    return _NOTHING if found is None else f"{found[0]:.2f} ± {found[1]:.2f}"


def show_predictions(predictions: Iterable[Prediction], console: Console) -> None:
    """The cost model's times, beside those that were measured."""
    table = plain("Predicted by the cost model")
    for head in ("shape", "contestant", "predicted, ms", "measured, ms", "off by"):
        table.add_column(head, justify="left" if head in ("shape", "contestant") else "right")
    for p in predictions:
        if p.fitted:
            continue
        measured = p.measured_ms
        table.add_row(
            str(Shape(*p.shape)),
            p.contestant,
            figure(p.predicted_ms),
            _NOTHING if measured is None else figure(measured),
            _NOTHING if measured is None else f"{100 * (p.predicted_ms / measured - 1):+.0f} %",
        )
    console.print(table)
