"""The Transformer on one corpus, and its runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dfa_kernels as dfa
from bench.paper.language import corpus, curves, perplexity, schedules, tokens
from bench.paper.language.model import ERROR_AT, POINTS, Size, Transformer
from bench.paper.task import Metric, Problem, Run
from dfa_kernels.alignment import Cosine
from dfa_kernels.training import InputError, checkpoint


class LanguageModelling(Problem):
    """``options`` as `task.Language` completed them: nothing in them is None.

    Raises:
        InputError: a text is missing, empty, not UTF-8, or shorter than the context.
    """

    metrics = (
        Metric("perplexity", higher_is_better=False, digits=1),
        Metric("log perplexity", higher_is_better=False, digits=3),
    )
    keep_best = True

    def __init__(self, size: Size, options: argparse.Namespace, limit: int | None = None) -> None:
        self.size, self.options = size, options
        self.data = options.data
        variants = [options.attention] * (options.attention != "standard")
        variants += ["after"] * (options.error_at == "after")
        self.model = "-".join([options.model, *variants])
        self.steps = options.steps
        self.validate_every = max(1, options.steps // options.validations)
        texts = corpus.load(options.data, options.root, limit)
        self.vocabulary, self.tokens = tokens.prepare(
            texts, options.vocabulary, options.out / "tokens"
        )
        there = len(self.tokens["train"]) - 1
        if there < size.context:
            raise InputError(
                f"{texts.train.describe()} holds {there} tokens, fewer than the --context of "
                f"{size.context}"
            )
        for split, words in (
            ("validation", options.validation_words),
            ("test", options.test_words),
        ):
            if words:
                self.tokens[split] = self.vocabulary.beginning(self.tokens[split], words)
        words = {split: self.vocabulary.words(t) for split, t in self.tokens.items()}
        self.words = words
        decides = (
            "attention", "granularity", "error_at", "optimizer", "schedule", "warm_up", "beta2",
            "batch", "stride", "distribution", "autocast", "compile", "device",
        )  # fmt: skip
        self.description = {
            **asdict(size),
            "vocabulary": self.vocabulary.size,
            **{name: getattr(options, name) for name in decides},
            "words": words,
            "tokens": {split: len(t) - 1 for split, t in self.tokens.items()},
            "corpus": texts.digest(),
        }

    def run(self, method: str, rate: float, seed: int) -> Run:
        return LanguageRun(self, method, rate, seed)

    def draw(self, runs: Mapping[str, Run], folder: Path) -> list[Path]:
        records = {}
        for method, run in runs.items():
            assert isinstance(run, LanguageRun)
            seeds = sorted(folder.glob(f"{method}-{run.rate:g}-*.done"))
            records[method] = [checkpoint.load(path)["record"] for path in seeds]
        granularity = self.options.granularity
        names = {"dfa": f"dfa ({granularity})", "micro": "dfa (micro)"}
        path = folder / "curves.png"
        title = f"{self.model} on {self.data}"
        curves.draw(path, title, {m: names.get(m, m) for m in records}, records)
        return [path]


class LanguageRun(Run):
    """One Transformer. Minibatches are windows at places that the seed draws."""

    def __init__(self, problem: LanguageModelling, method: str, rate: float, seed: int) -> None:
        super().__init__(seed)
        self.problem, self.method, self.rate = problem, method, rate
        options = problem.options
        self.device = torch.device(options.device)
        model = Transformer(problem.size, problem.vocabulary.size, options.attention)
        self.net = dfa.DFA(
            model.to(self.device),
            feedback=dfa.Feedback(options.distribution, seed=seed),
            points=POINTS["micro" if method == "micro" else options.granularity],
            error_at=ERROR_AT[options.error_at],
            method="dfa" if method == "micro" else method,
        )
        if options.compile:
            self.net.compile(fullgraph=True, dynamic=False)
        self.optimizer = schedules.optimizer(
            options.optimizer, self.net.parameters(), rate, options.beta2
        )
        self.scheduler = schedules.schedule(
            options.schedule, self.optimizer, options.steps, options.warm_up
        )

    def loss(self) -> Tensor:
        context, train = self.problem.size.context, self.problem.tokens["train"]
        places = torch.randint(
            len(train) - context, (self.problem.options.batch,), generator=self.generator
        )
        x, y = perplexity.gather(train, places.numpy(), context, self.device)
        with self._precision():
            return _cross_entropy(self.net(x), y)

    def scores(self, split: str) -> dict[str, float]:
        problem, options = self.problem, self.problem.options
        text, context = problem.tokens[split], problem.size.context
        self.net.eval()
        with self._precision():
            nats = perplexity.negative_log_likelihood(
                self.net.module, text, context, options.stride, options.batch, self.device
            )
        scores = perplexity.scores(nats, problem.words[split])
        if split == "validation" and isinstance(self.scheduler, schedules.Plateau):
            self.scheduler.watch(scores["log perplexity"])
        return scores

    def alignment(self) -> dict[str, Cosine]:
        """On the beginning of the validation text."""
        if self.net.method != "dfa":
            return {}
        problem = self.problem
        text, context = problem.tokens["validation"], problem.size.context
        places = perplexity.windows(len(text) - 1, context, context)[0]
        x, y = perplexity.gather(
            text, places[: problem.options.batch], min(context, len(text) - 1), self.device
        )
        self.net.eval()
        with self._precision():
            return dfa.alignment(self.net, _cross_entropy, x, y)

    def state(self) -> dict[str, Any]:
        state = super().state()
        if self.device.type == "cuda":
            state["device_random"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_random"], self.device)

    def _precision(self) -> torch.autocast:
        autocast = self.problem.options.autocast
        return torch.autocast(self.device.type, torch.bfloat16, enabled=autocast)


def _cross_entropy(logits: Tensor, following: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), following.flatten())
