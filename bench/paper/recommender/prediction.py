"""A click-through model on rows of fields, and its training by every method.

The frozen control is DFA with a tower that stays at its random start: its outputs are random
features, everything else (embeddings, cross and attention layers, the heads) trains as under DFA.
What DFA gains over it, the tower has learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn

import dfa_kernels as dfa
from bench.paper.recommender.fields import Data, Split
from bench.paper.recommender.models import MODELS, DeepCross, DeepFM, Model, Sizes
from bench.paper.recommender.picture import draw_calibration
from bench.paper.task import Metric, Problem, Run
from dfa_kernels.alignment import Cosine

FROZEN = "frozen"
_AT_ONCE = 8192  # rows in a forward pass without gradients
_ALIGNED = 512  # validation rows that alignment is measured on


class Training(NamedTuple):
    """``clip``: the largest norm of all gradients together, 0 for none."""

    batch: int
    epochs: float
    weight_decay: float = 0.0
    clip: float = 0.0
    distribution: str = "rademacher"


class Prediction(Problem):
    metrics = (
        Metric("AUC", higher_is_better=True, digits=4),
        Metric("log loss", higher_is_better=False, digits=4),
    )
    keep_best = True

    def __init__(
        self, model: str, sizes: Sizes, data: Data, training: Training, more: Mapping[str, Any]
    ) -> None:
        self.model, self.data = model, data.name
        self.sizes, self.rows, self.training = sizes, data, training
        epoch = max(1, len(data.splits["train"].labels) // training.batch)
        self.steps = max(1, round(training.epochs * epoch))
        self.validate_every = min(epoch, self.steps)
        self.description = {
            **asdict(sizes), **training._asdict(), **data.describe(), **more,
        }  # fmt: skip
        self.description["tower"] = list(sizes.tower)

    def run(self, method: str, rate: float, seed: int) -> Fit:
        return Fit(self, method, rate, seed)

    def draw(self, runs: Mapping[str, Run], folder: Path) -> list[Path]:
        labels = np.asarray(self.rows.splits["test"].labels)
        predicted = {
            method: run.probabilities("test")
            for method, run in runs.items()
            if isinstance(run, Fit)
        }
        title = f"{self.model} on {self.data}"
        return [draw_calibration(folder / "calibration.png", title, predicted, labels)]


class Fit(Run):
    """One model on its way."""

    def __init__(self, problem: Prediction, method: str, rate: float, seed: int) -> None:
        super().__init__(seed)
        self.splits, self.training = problem.rows.splits, problem.training
        model = MODELS[problem.model](problem.rows.sizes, problem.sizes)
        self.net = wrap(model, method, problem.training.distribution, seed)
        # Clipping wants every gradient, which the fused update never has.
        adam = torch.optim.AdamW if self.training.clip else dfa.optim.AdamW
        self.optimizer = adam(
            self.net.parameters() if self.training.clip else self.net,
            lr=rate, weight_decay=self.training.weight_decay,
        )  # fmt: skip
        if self.training.clip:
            self.optimizer.register_step_pre_hook(self._clip)

    def loss(self) -> Tensor:
        train = self.splits["train"]
        batch = torch.randint(len(train.labels), (self.training.batch,), generator=self.generator)
        ids, labels = tensors(train, batch.numpy())
        return cross_entropy(self.net(ids), labels)

    def scores(self, split: str) -> dict[str, float]:
        labels, predicted = self.splits[split].labels, self.probabilities(split)
        if not np.isfinite(predicted).all():
            return {"AUC": float("nan"), "log loss": float("nan")}
        return {
            "AUC": float(roc_auc_score(labels, predicted)),
            "log loss": float(log_loss(labels, predicted)),
        }

    @torch.no_grad()
    def probabilities(self, split: str) -> np.ndarray:
        """Of the positive class, for every row of a split."""
        self.net.eval()
        rows = self.splits[split]
        made = np.empty(len(rows.labels))
        for first in range(0, len(made), _AT_ONCE):
            ids, _ = tensors(rows, slice(first, first + _AT_ONCE))
            made[first : first + len(ids)] = self.net(ids).double().sigmoid().squeeze(1).numpy()
        return made

    def alignment(self) -> dict[str, Cosine]:
        self.net.eval()
        ids, labels = tensors(self.splits["validation"], slice(0, _ALIGNED))
        return dfa.alignment(self.net, cross_entropy, ids, labels)

    def _clip(self, *_: Any) -> None:
        nn.utils.clip_grad_norm_(self.net.parameters(), self.training.clip)


def wrap(model: Model, method: str, distribution: str, seed: int) -> dfa.DFA:
    """``model`` as ``method`` trains it; the seed is B's too."""
    if method == FROZEN:
        model.tower.requires_grad_(False)
    if isinstance(model, DeepFM):
        model.embeddings_learn_from_tower = method == "bp"
    return dfa.DFA(
        model,
        feedback=dfa.Feedback(distribution, seed=seed),
        points=model.points,
        # A linear layer that ends the model is fused as its head.
        error_at=model.head if isinstance(model, DeepCross) else None,
        batch_dims=1,  # every field of a row has feedback of its own
        method="dfa" if method == FROZEN else method,
    )


def tensors(split: Split, rows: Any) -> tuple[Tensor, Tensor]:
    """Some rows' ids, and their labels as numbers."""
    ids = torch.from_numpy(np.array(split.ids[rows]))
    return ids, torch.from_numpy(np.array(split.labels[rows])).float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), labels)
