"""Jobs in a process of their own: a contestant that ends that process ends its own row alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dfa_kernels.throughput.job import Job
from dfa_kernels.throughput.turns import Event

#: Seconds that a process is given to say what it has, once it was asked to stop.
PATIENCE = 20.0


class Interrupted(Exception):  # noqa: N818  (nothing is wrong)
    """Somebody asked to stop; what was measured until then was yielded."""


def events(jobs: Sequence[Job], module: str = "dfa_kernels.throughput.turns") -> Iterator[Event]:
    """What `turns` says of the jobs, in one process. After a contestant that ends it, another goes
    on at the same job without that one, from its beginning: the samples of two contestants must be
    of the same rounds.

    Raises:
        Interrupted: after Ctrl-C, when everything that was measured has been yielded.
    """
    left = list(enumerate(jobs))
    while left:
        with tempfile.TemporaryDirectory() as folder:
            marker = Path(folder) / "whose turn"
            ended: list[int] = []
            dead: set[str] = set()
            kept: list[Event] = []
            place = 0
            for event in _process([job for _, job in left], module, marker, ended):
                if event["event"] == "begun":
                    yield from kept
                    dead, kept, place = set(), [], event["job"]
                    yield {"event": "begun", "job": left[place][0]}
                elif event["event"] == "measured":
                    kept.append(event)  # until the job's process is known to have lived
                else:
                    if event["event"] == "died":
                        dead.add(event["contestant"])
                    yield event
            (status,) = ended
            if status in (0, 130):
                yield from kept
                if status == 130:
                    raise Interrupted
                return
            whose = marker.read_text() if marker.exists() else ""
        index, job = left[place]
        culprits = {whose} if whose in job.contestants else set(job.contestants)
        for name in sorted(culprits - dead):
            yield {"event": "died", "contestant": name, "why": _how(status)}
        rest = tuple(n for n in job.contestants if n not in dead | culprits)
        left = (
            left[place + 1 :]
            if not rest
            else [(index, replace(job, contestants=rest)), *left[place + 1 :]]
        )


def _process(jobs: Sequence[Job], module: str, marker: Path, ended: list[int]) -> Iterator[Event]:
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(marker)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C reaches it through us alone
    )
    assert process.stdin is not None and process.stdout is not None
    asked = False
    try:
        with contextlib.suppress(BrokenPipeError):  # it ended already: its status says how
            process.stdin.write(json.dumps([asdict(job) for job in jobs]))
            process.stdin.close()
        while True:
            try:
                line = process.stdout.readline()
            except KeyboardInterrupt:
                if asked:
                    raise
                asked = True
                process.send_signal(signal.SIGINT)
                continue
            if not line:
                break
            yield json.loads(line)
        status = process.wait(PATIENCE)
        ended.append(130 if asked else status)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def _how(status: int) -> str:
    """How a process ended, as a sentence for the row of whoever ended it."""
    if status >= 0:
        return f"it ended the process with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"it ended the process by {name}"
