"""What can be asked for, and how that is completed and checked.

    python -m bench.paper language
    python -m bench.paper language --data wikitext-2 --root DIR --method dfa micro bp shallow
    python -m bench.paper language --model transformer --data wikitext-103 --root DIR \
        --device cuda --autocast --compile

`transformer` is the paper's; `transformer-small` trains on two cores in minutes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import ClassVar

from bench.paper.language import attention, corpus, schedules, tokens
from bench.paper.language.model import ERROR_AT, PAPER, POINTS, QUICK, SMALL, Size
from bench.paper.language.problem import LanguageModelling
from bench.paper.task import Problem, Task
from dfa_kernels.training import InputError
from dfa_kernels.training.options import check_device


@dataclass(frozen=True)
class Recipe:
    """A size and what goes with it, where nothing else is asked for. Words: 0 are all."""

    size: Size
    vocabulary: int
    batch: int
    steps: int
    warm_up: int
    schedule: str
    rates: tuple[float, ...]
    validations: int
    validation_words: int
    test_words: int
    limit: int | None = None  # bytes of Python's library


RECIPES = {
    "transformer-small": Recipe(
        SMALL, vocabulary=1024, batch=8, steps=1500, warm_up=100, schedule="cosine",
        rates=(2.5e-3, 5e-3, 1e-2), validations=6, validation_words=20_000, test_words=0,
    ),
    "transformer": Recipe(
        PAPER, vocabulary=32_000, batch=64, steps=60_000, warm_up=4000, schedule="noam",
        rates=(5e-5, 2e-4, 7e-4), validations=60, validation_words=0, test_words=0,
    ),
}  # fmt: skip
SHORT = Recipe(
    QUICK, vocabulary=400, batch=8, steps=300, warm_up=30, schedule="cosine",
    rates=(1e-2,), validations=5, validation_words=1000, test_words=2000, limit=400_000,
)  # fmt: skip


class Language(Task):
    name = "language"
    models: ClassVar = {
        name: f"{recipe.size.blocks} × {recipe.size.width}, context {recipe.size.context}"
        for name, recipe in RECIPES.items()
    }
    data: ClassVar = corpus.DATA
    controls = ("micro",)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        def number(name: str, kind: type, text: str) -> None:
            parser.add_argument(name, type=kind, metavar="N", help=f"{text} (the model's own)")

        parser.add_argument(
            "--granularity", choices=POINTS, default="macro",
            help="of dfa: one point a block, or three; the method micro always has three (macro)",
        )  # fmt: skip
        parser.add_argument(
            "--attention", choices=attention.KINDS, default="standard", help="(standard)"
        )
        parser.add_argument(
            "--error-at", choices=ERROR_AT, default="before",
            help="the projection to the vocabulary, or after it (before)",
        )  # fmt: skip
        parser.add_argument(
            "--optimizer", choices=schedules.OPTIMIZERS, default="adam", help="(adam)"
        )
        parser.add_argument(
            "--schedule", choices=schedules.SCHEDULES, help="of the rate (the model's own)"
        )
        parser.add_argument("--beta2", type=float, default=0.98, help="of Adam (0.98)")
        number("--warm-up", int, "steps")
        number("--steps", int, "of a run")
        number("--batch", int, "windows a step")
        number("--context", int, "tokens of a window")
        parser.add_argument(
            "--stride", type=int, metavar="N",
            help="tokens from one evaluated window to the next: the fewer, the more each word sees "
            "(--context)",
        )  # fmt: skip
        number("--vocabulary", int, f"pieces, at least {tokens.SMALLEST}")
        number("--dropout", float, "share of activations")
        number("--validations", int, "of a run")
        number("--validation-words", int, "the first so many; 0: all")
        number("--test-words", int, "the first so many; 0: all")
        parser.add_argument("--autocast", action="store_true", help="in bfloat16")
        parser.add_argument("--compile", action="store_true", help="by torch.compile")
        parser.add_argument("--device", default="cpu", help="as PyTorch names it (cpu)")

    def problem(self, options: argparse.Namespace) -> Problem:
        recipe = self._recipe(options)
        asked = argparse.Namespace(**vars(options))
        for name in (
            "vocabulary", "batch", "steps", "warm_up", "schedule", "validations",
            "validation_words", "test_words",
        ):  # fmt: skip
            if getattr(asked, name) is None:
                setattr(asked, name, getattr(recipe, name))
        size = recipe.size
        given = {name: getattr(asked, name) for name in ("context", "dropout")}
        size = replace(size, **{name: value for name, value in given.items() if value is not None})
        if asked.stride is None:
            asked.stride = size.context
        _check(asked, size)
        return LanguageModelling(size, asked, recipe.limit)

    def rates(self, options: argparse.Namespace) -> tuple[float, ...]:
        return self._recipe(options).rates

    def _recipe(self, options: argparse.Namespace) -> Recipe:
        return SHORT if options.quick else RECIPES[options.model]


def _check(asked: argparse.Namespace, size: Size) -> None:
    if size.context < 1:
        raise InputError(f"--context must be at least 1, got {size.context}")
    least = {
        "steps": 1, "batch": 1, "stride": 1, "warm_up": 1, "validations": 1,
        "vocabulary": tokens.SMALLEST, "validation_words": 0, "test_words": 0,
    }  # fmt: skip
    for name, low in least.items():
        if getattr(asked, name) < low:
            option = name.replace("_", "-")
            raise InputError(f"--{option} must be at least {low}, got {getattr(asked, name)}")
    if asked.stride > size.context:
        raise InputError(
            f"--stride {asked.stride} is longer than the --context of {size.context}: tokens "
            "between windows would not count"
        )
    for name, value in (("dropout", size.dropout), ("beta2", asked.beta2)):
        if not 0 <= value < 1:
            raise InputError(f"--{name} must be in [0, 1), got {value:g}")
    check_device(asked.device)
