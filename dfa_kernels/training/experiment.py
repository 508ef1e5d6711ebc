"""The loop: every method in turn for an epoch, on the same minibatches, resumable at any step.

Methods alternate epoch by epoch, the first of them changing, so that whatever else the machine
does meets all of them alike, and their step times can be divided by each other. The initial
weights, the split and the order of the data are functions of (seed, epoch) alone: a checkpoint
needs no generator's state to go on with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dfa_kernels import backends
from dfa_kernels.alignment import alignment
from dfa_kernels.backends.reference import Reference
from dfa_kernels.training import checkpoint
from dfa_kernels.training.datasets import Split
from dfa_kernels.training.memory import Memory
from dfa_kernels.training.model import Learner
from dfa_kernels.training.options import DTYPES, Options

_ALIGNMENT_ROWS = 256  # of the test set, after each epoch
_WARM_UP = 5  # steps not counted among the first epoch's times


class Turn(NamedTuple):
    """One epoch of one method, for one seed."""

    seed: int
    epoch: int
    method: str


class Interrupted(Exception):  # noqa: N818  (nothing is wrong)
    """Somebody asked to stop; the checkpoint holds everything up to this turn's last step."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(turn)
        self.turn = turn


def new_curves() -> dict[str, Any]:
    """What one method with one seed leaves behind: an entry for each epoch in every list.

    ``step_ms``: the median of its steps. ``alignment``: by layer, (mean, std) of the cosine.
    """
    return {
        "train_loss": [],
        "test_loss": [],
        "test_accuracy": [],
        "step_ms": [],
        "alignment": {},
    }


class _Progress:
    """How far a learner is inside its epoch."""

    def __init__(self) -> None:
        self.loss: Tensor | float = 0.0  # summed over rows
        self.times: list[float] = []  # of each step, in milliseconds


class Experiment:
    """``results[method][seed]`` grows to what `new_curves` describes. ``memory[method]``: what was
    measured when all was trained.

    Args:
        load: the data of a seed, on the CPU.
        path: of the checkpoint.
    """

    def __init__(self, options: Options, load: Callable[[int], Split], path: Path) -> None:
        self.options = options
        self.results: dict[str, dict[int, dict[str, Any]]] = {m: {} for m in options.method}
        self.memory: dict[str, Memory] = {}
        self.learners: dict[str, Learner] = {}
        self.turns = options.seeds * options.epochs * len(options.method)
        self.done = 0
        self._load, self._path = load, path
        self._seed: int | None = None
        self._split: Split
        self._progress: dict[str, _Progress] = {}

    @property
    def finished(self) -> bool:
        return self.done == self.turns

    def turn(self, index: int) -> Turn:
        methods = self.options.method
        epochs, slot = divmod(index, len(methods))
        seed, epoch = divmod(epochs, self.options.epochs)
        return Turn(self.options.seed + seed, epoch, methods[(slot + epoch) % len(methods)])

    def run(
        self,
        watch: Callable[[Turn, float], None] = lambda turn, share: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train until the end, from wherever this is.

        Args:
            watch: called after each step with the turn and the share of it that is done.
            stop: asked after each step.

        Raises:
            Interrupted: ``stop`` said so; the checkpoint is written.
        """
        for index in range(self.done, self.turns):
            turn = self.turn(index)
            if turn.seed != self._seed:
                self._begin(turn.seed)
            self._train(turn, watch, stop)
            self._end(turn)
            self.done = index + 1
            if self.done % len(self.options.method) == 0:
                self.save()

    def _begin(self, seed: int) -> None:
        cast(Reference, backends.get("reference")).matrices.clear()
        options = self.options
        self._split = self._load(seed).to(options.device, DTYPES[options.dtype])
        sizes = self._split.features, self._split.classes
        self.learners = {m: Learner(options, m, seed, *sizes) for m in options.method}
        self._progress = {m: _Progress() for m in options.method}
        for curves in self.results.values():
            curves.setdefault(seed, new_curves())
        self._seed = seed

    def _train(
        self, turn: Turn, watch: Callable[[Turn, float], None], stop: Callable[[], bool]
    ) -> None:
        learner, progress = self.learners[turn.method], self._progress[turn.method]
        x, y = self._split.train_x, self._split.train_y
        batches = order(turn.seed, turn.epoch, len(x)).to(x.device).split(self.options.batch)
        for batch in batches[len(progress.times) :]:
            rows, labels = x[batch], y[batch]
            start = self._clock()
            done = (turn.epoch + len(progress.times) / len(batches)) / self.options.epochs
            loss = learner.step(rows, labels, done)
            progress.times.append(1e3 * (self._clock() - start))
            progress.loss += loss * len(batch)
            watch(turn, len(progress.times) / len(batches))
            if stop():
                self.save()
                raise Interrupted(turn)

    def _clock(self) -> float:
        """Seconds, when everything asked of the device so far is done."""
        if self._split.train_x.is_cuda:
            torch.cuda.synchronize(self._split.train_x.device)
        return time.perf_counter()

    def _end(self, turn: Turn) -> None:
        learner, progress = self.learners[turn.method], self._progress[turn.method]
        curves = self.results[turn.method][turn.seed]
        split, times = self._split, progress.times
        loss, accuracy = learner.evaluate(split.test_x, split.test_y)
        warm = times[_WARM_UP:] if turn.epoch == 0 else times
        curves["train_loss"].append(float(progress.loss) / len(split.train_x))
        curves["test_loss"].append(loss)
        curves["test_accuracy"].append(accuracy)
        curves["step_ms"].append(median(warm or times))
        if turn.method == "dfa":
            rows = split.test_x[:_ALIGNMENT_ROWS], split.test_y[:_ALIGNMENT_ROWS]
            for layer, cosine in alignment(learner.net, F.cross_entropy, *rows).items():
                curves["alignment"].setdefault(layer, []).append(tuple(cosine))
        self._progress[turn.method] = _Progress()

    # Checkpoints ----------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint."""
        learners = {
            method: {
                "net": learner.net.state_dict(),
                "optimizer": learner.optimizer.state_dict(),
                "loss": float(self._progress[method].loss),
                "times": self._progress[method].times,
            }
            for method, learner in self.learners.items()
        }
        state = {
            "options": self.options.as_dict(),
            "results": self.results,
            "memory": {method: tuple(found) for method, found in self.memory.items()},
            "turns": self.turns,
            "done": self.done,
            "seed": self._seed,
            "learners": learners,
        }
        checkpoint.save(self._path, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go where the experiment was whose checkpoint holds ``state``, made with our options."""
        self.results, self.done = state["results"], state["done"]
        kept_memory = state.get("memory", {})  # earlier versions measured it anew
        self.memory = {method: Memory(*found) for method, found in kept_memory.items()}
        self._begin(state["seed"])
        for method, kept in state["learners"].items():
            self.learners[method].net.load_state_dict(kept["net"])
            self.learners[method].optimizer.load_state_dict(kept["optimizer"])
            self._progress[method].loss = kept["loss"]
            self._progress[method].times = kept["times"]


def order(seed: int, epoch: int, rows: int) -> Tensor:
    """The rows of the training set in the order in which every method sees them."""
    mixed = (seed * 1_000_003 + epoch) % 2**63
    return torch.randperm(rows, generator=torch.Generator().manual_seed(mixed))
