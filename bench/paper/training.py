"""One run from its first step to its last, resumable at any of them.

A run lives in two files: a checkpoint while it trains, and a record once it is done. Both name the
run's description, and one that was made otherwise is refused, not mixed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.paper.task import Problem, Run
from dfa_kernels.training import InputError, checkpoint

_WARM_UP = 3  # steps whose times do not count
_SAVE_EVERY = 30.0  # seconds between checkpoints


class Stopped(Exception):  # noqa: N818  (nothing is wrong)
    """Somebody asked to stop; the checkpoint holds everything up to the last step."""


def train(
    problem: Problem,
    method: str,
    rate: float,
    seed: int,
    path: Path,
    watch: Callable[[int, float], None] = lambda step, loss: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], Run | None]:
    """The record of a run, and the run itself unless it was finished before.

    The record holds ``test`` (metric → score), ``validation`` (a list of [step, metric → score]),
    ``loss`` (a list of [step, mean since the last]), ``step_ms``, ``alignment`` and ``parameters``.

    Args:
        path: without a suffix; ``.ckpt`` while it trains, ``.done`` afterwards.
        watch: called after each step with the steps done and the loss.
        stop: asked after each step.

    Raises:
        Stopped: ``stop`` said so; nothing is lost.
        InputError: the files belong to another description.
    """
    going, done = path.with_name(path.name + ".ckpt"), path.with_name(path.name + ".done")
    identity = {"method": method, "rate": rate, "seed": seed, "steps": problem.steps}
    identity |= {"model": problem.model, "data": problem.data, "description": problem.description}
    if done.exists():
        state = checkpoint.load(done)
        _check(done, state["identity"], identity)
        return state["record"], None
    run = problem.run(method, rate, seed)
    record: dict[str, Any] = {"loss": [], "validation": [], "times": [], "step": 0}
    record["since"] = [0.0, 0]  # the sum of the losses since the last validation, and how many
    record["parameters"] = sum(p.numel() for p in run.net.parameters())
    best: dict[str, Any] | None = None
    if going.exists():
        state = checkpoint.load(going)
        _check(going, state["identity"], identity)
        run.restore(state["run"])
        record, best = state["record"], state["best"]
    path.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        held = {"identity": identity, "record": record, "best": best, "run": run.state()}
        checkpoint.save(going, held)

    saved = time.monotonic()
    first = record["step"]
    for step in range(first, problem.steps):
        start = time.perf_counter()
        loss = run.step()
        if step - first >= _WARM_UP:
            record["times"].append(1e3 * (time.perf_counter() - start))
        record["step"] = step + 1
        record["since"] = [record["since"][0] + loss, record["since"][1] + 1]
        if (step + 1) % problem.validate_every == 0 or step + 1 == problem.steps:
            scores = run.scores("validation")
            record["validation"].append([step + 1, scores])
            record["loss"].append([step + 1, record["since"][0] / record["since"][1]])
            record["since"] = [0.0, 0]
            metric = problem.metrics[0]
            if problem.keep_best and (
                best is None or metric.better(scores[metric.name], best["score"])
            ):
                net = {
                    k: v.clone() if hasattr(v, "clone") else v
                    for k, v in run.net.state_dict().items()
                }
                best = {"score": scores[metric.name], "step": step + 1, "net": net}
        watch(step + 1, loss)
        if stop():
            save()
            raise Stopped
        if time.monotonic() - saved > _SAVE_EVERY:
            save()
            saved = time.monotonic()
    if best is not None:
        run.net.load_state_dict(best["net"])
        record["best_step"] = best["step"]
    del record["since"]
    record["test"] = run.scores("test")
    record["selection"] = run.scores("validation")
    record["alignment"] = {name: cosine.mean for name, cosine in run.alignment().items()}
    record["step_ms"] = median(record.pop("times") or [float("nan")])
    checkpoint.save(done, {"identity": identity, "record": record, "net": run.net.state_dict()})
    going.unlink(missing_ok=True)
    return record, run


def finished(problem: Problem, method: str, rate: float, seed: int, path: Path) -> Run:
    """A finished run, from its file: for pictures."""
    run = problem.run(method, rate, seed)
    run.net.load_state_dict(checkpoint.load(path.with_name(path.name + ".done"))["net"])
    return run


def _check(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if found.get(name) == value:
            continue
        was = found.get(name)
        if isinstance(value, dict) and isinstance(was, dict):
            name = next(k for k in {**value, **was} if value.get(k) != was.get(k))
            was, value = was.get(name), value.get(name)
        raise InputError(
            f"{path} was made with {name} {was!r} and not {value!r}: name another --out, or say "
            "--overwrite"
        )
