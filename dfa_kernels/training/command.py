"""`dfa-kernels train`, from what was asked for to the three files that it leaves in a folder.

checkpoint.pt: everything to go on from, and at the end the last seed's weights. log.json and
curves.png: written when all is trained.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dfa_kernels import backends
from dfa_kernels.training import InputError, checkpoint, folders, report
from dfa_kernels.training.datasets import Split, load
from dfa_kernels.training.experiment import Experiment, Interrupted
from dfa_kernels.training.interruption import interruptible
from dfa_kernels.training.memory import MeasurementError, measured
from dfa_kernels.training.options import Options
from dfa_kernels.training.plot import draw
from dfa_kernels.training.progress import Display

CHECKPOINT, LOG, CURVES = "checkpoint.pt", "log.json", "curves.png"


def train(
    given: Mapping[str, Any],
    out: Path | None = None,
    root: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    """Train, then print the table and write the log and the curves.

    Args:
        given: the options that were given: see `Options.resolve`.
        out: the folder to write to; None: runs/DATA.
        root: the folder of the data's files.
        resume: go on from the checkpoint in ``out``.
        overwrite: replace the run that lies in ``out``.

    Returns:
        The exit status: 0, or 130 after an interruption.

    Raises:
        InputError: before anything is written.
    """
    folder = out or Path("runs") / given.get("data", "digits")
    state = checkpoint.load(folder / CHECKPOINT) if resume else None
    if state is None:
        options = Options.resolve(given)
        _check_free(folder, overwrite)
    else:
        begun = Options(**state["options"])
        options = begun.resumed(given, str(folder))
    try:
        backends.chosen(torch.device(options.device))
    except (ValueError, RuntimeError) as refused:
        raise InputError(str(refused)) from None
    data = partial(load, options.data, root)
    split = data(options.seed)
    experiment = Experiment(options, data, folder / CHECKPOINT)
    if state is not None:
        experiment.restore(state)
    folders.make(folder)
    try:
        with interruptible(signal.SIGINT) as stop, Display(experiment) as watch:
            experiment.run(watch, stop)
    except Interrupted as interrupted:
        turn = interrupted.turn
        print(
            f"interrupted at seed {turn.seed}, epoch {turn.epoch + 1} of {options.epochs}, "
            f"{turn.method}: everything up to this step is in {folder / CHECKPOINT}, and "
            "--resume goes on from there",
            file=sys.stderr,
        )
        return 130
    with Console(stderr=True).status("measuring peak memory, each method in a fresh process"):
        _measure_memory(experiment, split)
    memory = {method: experiment.memory.get(method) for method in options.method}
    log = report.make_log(options, split, experiment.results, memory)
    report.write_log(folder / LOG, log)
    draw(folder / CURVES, log)
    report.print_table(log, Console())
    print(f"{folder / LOG}, {folder / CURVES}, {folder / CHECKPOINT}")
    return 0


def _check_free(folder: Path, overwrite: bool) -> None:
    """Refuse to write over what somebody may still want."""
    folders.check(folder)
    if overwrite:
        return
    if (folder / CHECKPOINT).exists():
        state = checkpoint.load(folder / CHECKPOINT)
        done, turns = state["done"], state["turns"]
        if done < turns:
            raise InputError(
                f"{folder} holds a run that stopped after {done} of {turns} epochs: go on with "
                "--resume, replace it with --overwrite, or give another --out"
            )
    for name in (CHECKPOINT, LOG, CURVES):
        if (folder / name).exists():
            raise InputError(
                f"{folder} holds a finished run ({name}): replace it with --overwrite, or give "
                "another --out"
            )


def _measure_memory(experiment: Experiment, split: Split) -> None:
    """Of the methods of which it is not known yet; the checkpoint keeps what is found."""
    options = experiment.options
    # A minibatch has no more rows than there are.
    fitting = replace(options, batch=min(options.batch, len(split.train_x)))
    missing = [method for method in options.method if method not in experiment.memory]
    for method in missing:
        try:
            found = measured(fitting, method, split.features, split.classes)
        except MeasurementError as failed:  # not worth the run that is already done
            print(failed, file=sys.stderr)
        else:
            experiment.memory[method] = found
    if missing:
        experiment.save()
