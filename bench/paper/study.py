"""One problem by every method: a grid of rates, seeds, step times, rows and pictures.

Each method is tried with a `grid` of rates and of the problem's variants; what has the best
validation score with the first seed is trained with every seed. What lies under ``out`` already is
read, what was begun goes on, so the same command after an interruption loses nothing.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench import grid
from bench.grid import Choice
from bench.paper import rows as results
from bench.paper import training
from bench.paper.rows import Row, over_seeds
from bench.paper.task import Problem, Run, Task
from dfa_kernels import backends
from dfa_kernels.backends.reference import Reference
from dfa_kernels.throughput import environment
from dfa_kernels.training.interruption import interruptible

_REFRESH = 0.2  # seconds between updates of the bar
_LINE = 30.0  # seconds between lines where there is no terminal


class Study:
    def __init__(self, task: Task, problem: Problem, options: argparse.Namespace) -> None:
        self.task, self.problem, self.options = task, problem, options
        self.methods: list[str] = options.method
        self.variants = problem.variants()
        rates = options.lr or task.rates(options)
        self.choices = [Choice(rate, variant) for variant in self.variants for rate in rates]
        self.seeds = range(options.seed, options.seed + options.seeds)
        self.folder: Path = options.out / f"{problem.model}-{problem.data}"
        self.tried: dict[str, dict[Choice, float]] = {method: {} for method in self.methods}
        self.best: dict[str, Choice] = {}
        self.records: dict[str, list[dict[str, Any]]] = {method: [] for method in self.methods}

    def run(self) -> list[Row]:
        """Train all, draw, time, write the rows; they are returned too.

        Raises:
            training.Stopped: Ctrl-C, or SIGTERM; the same command goes on.
        """
        if self.options.overwrite and self.folder.is_dir():
            for path in self.folder.glob("*.[cd][ko]*"):
                path.unlink()
        with interruptible(signal.SIGINT, signal.SIGTERM) as stop, _Display(self) as watch:
            for method in self.methods:
                self._tune(method, watch, stop)
            for method in self.methods:
                for seed in self.seeds:
                    record = self._train(method, self.best[method], seed, watch, stop)
                    self.records[method].append(record)
        times = self._times(2.0 if self.options.quick else 20.0)
        rows = [row for method in self.methods for row in self._rows(method, times)]
        results.write(self.options.json, rows)
        self.problem.draw({m: self._finished(m) for m in self.methods}, self.folder)
        return rows

    # Training -------------------------------------------------------------------------------

    def _path(self, method: str, choice: Choice, seed: int) -> Path:
        return self.folder / f"{method}-{choice.label.replace(' ', '-')}-{seed}"

    def _train(
        self, method: str, choice: Choice, seed: int, watch: _Display, stop: Callable[[], bool]
    ) -> dict[str, Any]:
        watch.begin(method, choice, seed)
        problem, path = self.variants[choice.variant], self._path(method, choice, seed)
        record, _ = training.train(problem, method, choice.rate, seed, path, watch.step, stop)
        watch.end()
        return record

    def _tune(self, method: str, watch: _Display, stop: Callable[[], bool]) -> None:
        if len(self.choices) == 1:
            self.best[method] = self.choices[0]
            return
        metric = self.problem.metrics[0]

        def score(choice: Choice) -> float:
            if choice not in self.choices:
                watch.expect_one_more()
            record = self._train(method, choice, self.seeds[0], watch, stop)
            return record["selection"][metric.name]

        # A grid that was asked for stays what it is, and a quick one is quick.
        goes_on = not (self.options.lr or self.options.quick)
        found = grid.explored(self.choices, score, metric.better, goes_on)
        self.best[method], self.tried[method] = found

    def _finished(self, method: str) -> Run:
        choice, seed = self.best[method], self.seeds[0]
        problem, path = self.variants[choice.variant], self._path(method, choice, seed)
        return training.finished(problem, method, choice.rate, seed, path)

    # Times ----------------------------------------------------------------------------------

    def _times(self, seconds: float) -> dict[str, dict[str, Any]]:
        """Step times of fresh runs, interleaved step by step, so that whatever else the machine
        does meets all methods alike; and what each holds for B."""
        matrices = cast(Reference, backends.get("reference")).matrices
        runs, held = {}, {}
        for method in self.methods:
            matrices.clear()
            rate, variant = self.best[method]
            runs[method] = self.variants[variant].run(method, rate, self.seeds[0])
            for _ in range(3):
                runs[method].step()
            matrix = runs[method].net.feedback_matrix
            held[method] = matrices.bytes() + (0 if matrix is None else matrix.nbytes)
        times: dict[str, list[float]] = {method: [] for method in self.methods}
        until, turn = time.monotonic() + seconds, 0
        while turn < 5 or (time.monotonic() < until and turn < 300):
            for slot in range(len(runs)):
                method = self.methods[(slot + turn) % len(runs)]
                start = time.perf_counter()
                runs[method].step()
                times[method].append(1e3 * (time.perf_counter() - start))
            turn += 1
        ratios: dict[str, list[float] | None] = dict.fromkeys(self.methods)
        if "bp" in times:
            for method in self.methods:
                each = [a / b for a, b in zip(times[method], times["bp"], strict=True)]
                low, middle, high = quantiles(each, n=4)
                ratios[method] = [middle, low, high]
        return {
            m: {"ms": median(times[m]), "ratio": ratios[m], "bytes": held[m]} for m in self.methods
        }

    # Rows -----------------------------------------------------------------------------------

    def _rows(self, method: str, times: dict[str, dict[str, Any]]) -> Iterator[Row]:
        (rate, variant), records = self.best[method], self.records[method]
        problem = self.variants[variant]
        points = [] if method in ("bp", "shallow") else list(records[0]["alignment"])
        for metric in problem.metrics:
            values = [record["test"][metric.name] for record in records]
            mean, std = over_seeds(values)
            yield Row(
                task=self.task.name, model=problem.model, data=problem.data, method=method,
                metric=metric.name, mean=mean, std=std, seeds=len(values),
                step_ms=times[method]["ms"], feedback_bytes=times[method]["bytes"],
                values=values, higher_is_better=metric.higher_is_better, digits=metric.digits,
                lr=rate, variant=variant,
                grid=self._grid(method),
                step_ratio=times[method]["ratio"],
                alignment={
                    name: over_seeds([record["alignment"][name] for record in records])[0]
                    for name in points
                },
                steps=problem.steps, parameters=records[0]["parameters"],
                description=problem.described(method), environment=environment.describe(),
                quick=self.options.quick,
            )  # fmt: skip

    def _grid(self, method: str) -> dict[str, float]:
        """Variant by variant, its rates rising."""
        variants, tried = list(self.variants), self.tried[method]
        order = sorted(tried, key=lambda choice: (variants.index(choice.variant), choice.rate))
        return {choice.label: tried[choice] for choice in order}


class _Display:
    """A bar on a terminal, else a line now and then; both on standard error."""

    def __init__(self, study: Study) -> None:
        methods, choices, seeds = len(study.methods), len(study.choices), len(study.seeds)
        runs = methods * (seeds + (choices if choices > 1 else 0))
        self._steps = study.problem.steps
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(), console=self._console, auto_refresh=False,
            disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=runs * self._steps)
        self._name, self._done, self._total = "", 0, runs * self._steps
        self._shown = time.monotonic()

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def expect_one_more(self) -> None:
        self._total += self._steps
        self._bar.update(self._task, total=self._total)

    def begin(self, method: str, choice: Choice, seed: int) -> None:
        self._name = f"{method} · lr {choice.label} · seed {seed}"

    def end(self) -> None:
        self._done += self._steps
        self._bar.update(self._task, completed=self._done, refresh=True)

    def step(self, step: int, loss: float) -> None:
        now, interactive = time.monotonic(), self._console.is_terminal
        if now - self._shown < (_REFRESH if interactive else _LINE):
            return
        self._shown = now
        where = f"{self._name} · step {step} of {self._steps} · loss {loss:.4g}"
        if interactive:
            done = self._done + step
            self._bar.update(self._task, completed=done, description=where, refresh=True)
        else:
            share = 100 * (self._done + step) / self._total
            self._console.print(f"{share:3.0f} %  {where}", highlight=False)
