"""Perplexity per word: exp(total negative log-likelihood / words), over windows of a text.

A word is a white-space token, and the end of a line is one more. Dividing by words and not by the
tokenizer's pieces makes models with different vocabularies comparable (Mielke 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def windows(inputs: int, context: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Where windows of min(context, inputs) tokens begin, and how many of each one's last targets
    are counted, so that each of the ``inputs`` targets counts once.

    A window begins ``stride`` after the one before; the last one ends with the text.
    """
    length = min(context, inputs)
    starts = np.arange(0, inputs - length + 1, stride)
    if starts[-1] + length < inputs:
        starts = np.append(starts, inputs - length)
    fresh = np.diff(starts, prepend=-length)
    fresh[0] = length
    return starts, fresh


@torch.no_grad()
def negative_log_likelihood(
    model: Callable[[Tensor], Tensor],
    tokens: np.ndarray,
    context: int,
    stride: int,
    batch: int,
    device: torch.device | str = "cpu",
) -> float:
    """The sum in nats over all tokens but the first, which is only looked at."""
    starts, fresh = windows(len(tokens) - 1, context, stride)
    length = min(context, len(tokens) - 1)
    total = 0.0
    for at in range(0, len(starts), batch):
        part = slice(at, at + batch)
        x, y = gather(tokens, starts[part], length, device)
        losses = F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten(), reduction="none")
        counted = np.arange(length) >= length - fresh[part, None]
        total += (losses.double() * torch.from_numpy(counted.ravel()).to(device)).sum().item()
    return total


def gather(
    tokens: np.ndarray, starts: np.ndarray, length: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Windows, and the token after each of theirs: (N, length) both."""
    rows = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    pieces = torch.from_numpy(rows).to(device)
    return pieces[:, :-1], pieces[:, 1:]


def scores(nats: float, words: int) -> dict[str, float]:
    each = nats / words
    return {"perplexity": math.exp(each) if each < 700 else each * math.inf, "log perplexity": each}
