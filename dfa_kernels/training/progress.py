"""How a run goes on, on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dfa_kernels.training.experiment import Experiment, Turn

_REFRESH = 0.1  # seconds between updates of the bar: a step may take less than drawing it
_LINE = 10.0  # seconds between lines


class Display:
    """``with Display(experiment) as watch: experiment.run(watch)``."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,  # its thread would steal time from the steps that are timed
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=experiment.turns)
        self._shown = time.monotonic()

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.update(self._task, completed=self._experiment.done, refresh=True)
        self._bar.stop()

    def __call__(self, turn: Turn, share: float) -> None:
        now, interactive = time.monotonic(), self._console.is_terminal
        if now - self._shown < (_REFRESH if interactive else _LINE):
            return
        self._shown = now
        done, all_ = self._experiment.done, self._experiment.turns
        where = f"seed {turn.seed} · epoch {turn.epoch + 1} · {turn.method}"
        if interactive:
            self._bar.update(self._task, completed=done + share, description=where, refresh=True)
        else:
            self._console.print(f"{100 * (done + share) / all_:3.0f} %  {where}", highlight=False)
