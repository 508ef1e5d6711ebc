"""Which learning rates, and which variants of a problem, a method is tried with.

Every method gets the same grid, rates × variants. Where the best of it has the first or the last
rate, there may be a better beyond: the grid goes on in that direction, for that method and variant,
until a rate is no better than the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

_MOST = 6  # rates beyond those that all methods get


class Choice(NamedTuple):
    """A point of the grid."""

    rate: float
    variant: str = ""

    @property
    def label(self) -> str:
        return f"{self.rate:g} {self.variant}".rstrip()

    @classmethod
    def of(cls, label: str) -> Choice:
        """The one with that label."""
        rate, _, variant = label.partition(" ")
        return cls(float(rate), variant)


def explored(
    choices: Iterable[Choice],
    score: Callable[[Choice], float],
    better: Callable[[float, float], bool],
    goes_on: bool = True,
) -> tuple[Choice, dict[Choice, float]]:
    """The best of ``choices`` and of what lies beyond them, and the score of each that was tried.

    Args:
        better: whether its first score beats its second.
        goes_on: else ``choices`` are all that is tried.
    """
    scores: dict[Choice, float] = {}
    best: Choice | None = None

    def attempt(choice: Choice) -> Choice:
        scores[choice] = score(choice)
        return choice if best is None or better(scores[choice], scores[best]) else best

    for choice in choices:
        best = attempt(choice)
    assert best is not None
    for _ in range(_MOST if goes_on else 0):
        further = beyond(scores, best)
        if further is None:
            break
        best = attempt(further)
    return best, scores


def is_outermost(choice: Choice, tried: Iterable[Choice]) -> bool:
    """Whether its rate is the first or the last of several that its variant was tried with."""
    rates = {other.rate for other in tried if other.variant == choice.variant}
    return len(rates) > 1 and choice.rate in (min(rates), max(rates))


def beyond(scores: Mapping[Choice, float], best: Choice) -> Choice | None:
    """The choice on ``best``'s outer side; None where it has neighbours on both, no others at all,
    or NaN for a score, as when every run diverged."""
    if math.isnan(scores[best]) or not is_outermost(best, scores):
        return None
    rates = sorted(choice.rate for choice in scores if choice.variant == best.variant)
    if best.rate == rates[0]:
        rates.reverse()
    return Choice(_next(rates), best.variant)


def _next(rates: list[float]) -> float:
    """The series goes on with the ratios it has: 1, 3, 10 with 30, then 100; 1, 2 with 4."""
    *_, before, last = rates
    ratio = last / before if len(rates) == 2 else before / rates[-3]
    return float(f"{last * ratio:.3g}")
