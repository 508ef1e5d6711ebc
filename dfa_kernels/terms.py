"""What a weight's records sum to: by one grouped call, or else as the gradient that it would be."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dfa_kernels import ops
from dfa_kernels.feedback import Feedback
from dfa_kernels.pending import PendingGradient, Recorded

#: A fused layer's part in one record: the record's number in the ledger, its B, and the layer.
Term = tuple[int, Feedback, Recorded]


def expressible(terms: list[Term], feedback: Feedback) -> bool:
    """Whether the grouped call can sum them: one bias and one B throughout, and nothing dropped
    or added by hand since the records were made."""
    number, first, (_, weight, bias, _) = terms[0]
    for p in (weight, bias):
        if p is not None:
            pending = p.grad
            if type(pending) is not PendingGradient:
                return False
            if number < pending.start or pending.dense is not None:
                return False
    if len(terms) == 1 and first is feedback:
        return True
    identity = feedback.identity()
    return all(b.identity() == identity and entry.bias is bias for _, b, entry in terms)


def _counts(parameter: Tensor | None, number: int) -> bool:
    """Whether the parameter's gradient counts the ledger's record ``number``."""
    pending = None if parameter is None else parameter.grad
    return type(pending) is PendingGradient and pending.start <= number


def materialize(terms: list[Term]) -> None:
    """Make the gradients that the terms sum to, for torch.optim to apply."""
    totals: dict[Tensor, Tensor] = {}
    for number, feedback, (_, weight, bias, (error, scale, layer)) in terms:
        if not (_counts(weight, number) or _counts(bias, number)):
            continue
        pair = ops.gradients(error, feedback, scale, [layer], weight.dtype)[0]
        for p, gradient in zip((weight, bias), pair, strict=True):
            if p is None or not _counts(p, number):
                continue
            pending: Any = p.grad
            before = totals.get(p, pending.dense)
            gradient = gradient.to(p.dtype)
            totals[p] = gradient if before is None else before + gradient
    for p, total in totals.items():
        p.grad = total
