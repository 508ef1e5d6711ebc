"""`dfa-kernels bench`, from what was asked for to the file and the tables that it leaves.

The file is written at the first row, and again whenever something was measured: what ends the run
early, Ctrl-C among it, leaves everything until then.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dfa_kernels.throughput import (
    ceilings,
    environment,
    lineup,
    memory,
    result,
    rows,
    scaling,
    table,
)
from dfa_kernels.throughput.job import Job
from dfa_kernels.throughput.options import Options, prepare
from dfa_kernels.throughput.result import BASELINE, EAGER, Result
from dfa_kernels.throughput.runner import Interrupted, events
from dfa_kernels.training import InputError

#: For each place on the scaling curves, after its first rounds.
SCALING_SECONDS = 1.0


class Book:
    """The result so far, and its file, which begins with the first row."""

    def __init__(self, path: Path, begun: Result) -> None:
        self.path, self.result = path, begun

    def add(self, **changes: Any) -> None:
        """Fields of `Result`: tuples are added to what is there."""
        for name, value in changes.items():
            if isinstance(value, tuple):
                changes[name] = getattr(self.result, name) + value
        self.put(**changes)

    def put(self, **changes: Any) -> None:
        """Fields of `Result`, in place of what is there."""
        self.result = replace(self.result, **changes)
        if not self.result.rows:
            return
        try:
            result.write(self.path, self.result)
        except InputError as refused:  # the disk may have room again, and the tables are printed
            _say(str(refused))


def measure(
    given: Mapping[str, Any],
    out: Path,
    overwrite: bool = False,
    with_memory: bool = True,
    with_scaling: bool = False,
) -> int:
    """Measure, then print the tables.

    Returns:
        The exit status: 0, or 130 after an interruption.

    Raises:
        InputError: before anything is measured.
    """
    options = Options.resolve(given)
    path = prepare(out, overwrite)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    about = {**environment.describe(device), "optimizer": options.optimizer}
    book = Book(path, Result(environment=about, notes=options.notes))
    status = 0
    try:
        _limit(options, book)
        _time(options, book)
        if with_memory:
            _weigh(options.jobs(), book)
        if with_scaling:
            _scale(options, book, with_memory)
    except (Interrupted, KeyboardInterrupt):
        status = 130
    if status and not book.result.rows:
        _say("interrupted before the first row: nothing was written")
        return status
    table.show(book.result, table.console())
    if status:
        _say(f"interrupted: the {len(book.result.rows)} rows until then are in {path}")
    else:
        print(path)
    return status


def _limit(options: Options, book: Book) -> None:
    """The ceilings; a device that is too small or too full for them can time steps all the same."""
    _say(f"ceilings of {book.result.environment['device']} …")
    try:
        book.put(ceilings=ceilings.measure(torch.device(options.device), options.dtypes))
    except (RuntimeError, MemoryError) as failed:
        book.add(notes=(f"The ceilings could not be measured: {lineup.summary(failed)}.",))


def _time(options: Options, book: Book) -> None:
    """All shapes by one process each, then all of them again: where a process comes to have its
    memory, and what the machine does in that minute, are then in the spread. Who died or is absent
    does not take part again."""
    methods = {name: lineup.named(name).method for name in options.contestants}
    jobs = options.jobs()
    told: list[list[Mapping[str, Any]]] = [[] for _ in jobs]
    absent: dict[str, str] = {}
    turns = options.processes * list(zip(jobs, told, strict=True))
    for i, (job, found) in enumerate(turns, 1):
        gone = {e["contestant"] for e in found if e["event"] in ("died", "absent")}
        left = tuple(name for name in job.contestants if name not in gone)
        if not left:
            continue
        _say(f"{i} of {len(turns)}: {job.where}, {len(left)} contestants …")
        try:
            for event in events([replace(job, contestants=left)]):
                found.append(event)
                if event["event"] == "died":
                    _say(f"  {event['contestant']} died: {event['why']}")
                elif event["event"] == "absent":
                    absent[event["contestant"]] = event["why"]
        finally:
            limits = book.result.ceilings
            made = (rows.rows(j, methods, t, limits) for j, t in zip(jobs, told, strict=True))
            book.put(rows=tuple(row for each in made for row in each))
    book.add(notes=tuple(f"{name} is not installed: {why}." for name, why in absent.items()))
    if any(row.contestant == BASELINE and row.ms is None for row in book.result.rows):
        book.add(notes=(f"Where {BASELINE} died there is no ratio: see its error.",))


def _scale(options: Options, book: Book, with_memory: bool) -> None:
    """Curves of eager backpropagation and what is usual here, or of who was asked for: compilation
    would take longer than all the steps. The shapes of the rows are timed among the places."""
    kind = torch.device(options.device).type
    names = [EAGER, lineup.chosen(torch.device(options.device))]
    if options.asked:
        names += [name for name in options.contestants if name != BASELINE]
    methods = {name: lineup.named(name).method for name in dict.fromkeys(names)}
    job = options.of(tuple(methods), SCALING_SECONDS).job(scaling.BASE[kind], options.dtypes[0])
    jobs = scaling.jobs(job, kind, options.shapes)
    visits = jobs * scaling.VISITS
    found = scaling.Scaling.empty()
    place = 0
    for event in events(visits):
        if event["event"] == "begun":
            place = event["job"]
            _say(f"scaling, {place + 1} of {len(visits)}: {visits[place].where} …")
        else:
            found.take(visits[place].shape, event)
        if event["event"] == "measured":
            book.put(scaling=tuple(scaling.curves(found, methods, job, kind)))
    if with_memory:
        _say("scaling, peak memory …")
        for weighed in memory.measured(jobs):
            found.weigh(weighed)
    made = scaling.curves(found, methods, job, kind)
    fitted = scaling.constants(made)
    book.put(
        scaling=tuple(made),
        crossovers=tuple(scaling.crossovers(fitted, methods, job, kind)),
        predictions=tuple(scaling.predictions(fitted, made, found.held_out(kind))),
    )


def _weigh(jobs: Sequence[Job], book: Book) -> None:
    """Peak memory of who did not die."""
    alive = {(r.contestant, r.shape, r.dtype) for r in book.result.rows if not r.error}
    wanted = []
    for job in jobs:
        names = tuple(n for n in job.contestants if (n, job.shape, job.precision) in alive)
        wanted.append(replace(job, contestants=names))
    for dtype in dict.fromkeys(job.precision for job in jobs):
        _say(f"peak memory, {dtype} …")
        for found in memory.measured([job for job in wanted if job.precision == dtype]):
            book.put(rows=tuple(rows.with_memory(book.result.rows, found, dtype)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
