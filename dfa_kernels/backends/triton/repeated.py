"""A step that repeats the last one, without its plan: see `repeated` of `contract.Backend`.

A training loop's tensors lie where those of the step before lay, for the allocator gives the same
memory out again. Where all of them do, the launches are the same but for the hyperparameters, which
are parameters of the kernel.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from dfa_kernels.backends.contract import HEAD, LayerUpdate, Repeated, written
from dfa_kernels.backends.grouped.hyper import columns
from dfa_kernels.backends.grouped.layout import aligned, as_rows, padded
from dfa_kernels.backends.tf32 import tf32_allowed
from dfa_kernels.backends.triton import rules, tuning
from dfa_kernels.backends.triton.launch import Ready
from dfa_kernels.capturable import capturing
from dfa_kernels.feedback import Feedback

if TYPE_CHECKING:
    from dfa_kernels.backends.triton.kernels import Kernels

Row = tuple[float, ...]


class Planned(NamedTuple):
    """A step's launches by the address of the memory for the δ that they store, whose bytes are
    ``size``; by 0 where they store none."""

    size: int
    ready: OrderedDict[int, list[Ready]]


class Arena:
    """Memory for all δ of a step, one after the other: the allocator is asked once, and where it
    gives the same address, all δ lie where they lay. ``buffer``: what it gave, if it was asked.

    ``like``: what δ is stored for. Of more than `LARGEST` bytes each has memory of its own.
    """

    APART = 256  # bytes that δ begins at multiples of
    LARGEST = 1 << 26  # where the host's time matters there is less

    def __init__(self, like: Sequence[Tensor], buffer: Tensor | None) -> None:
        self._like, self.buffer, self._at = like, buffer, 0
        self.holds_all = True

    def __call__(self, like: Tensor, shape: tuple[int, int]) -> Tensor:
        if self.buffer is None and self.holds_all:
            most = sum(self._size(h, (h.shape[0], padded(h.shape[1], h.dtype))) for h in self._like)
            if most <= self.LARGEST:
                self.buffer = like.new_empty(most, dtype=torch.uint8)
        start = self._at
        self._at += self._size(like, shape)
        if self.buffer is None or self._at > len(self.buffer):
            self.holds_all = False
            return like.new_empty(shape)
        made = self.buffer[start : start + shape[0] * shape[1] * like.itemsize]
        return made.view(like.dtype).view(shape)

    def _size(self, like: Tensor, shape: tuple[int, int]) -> int:
        return -(-shape[0] * shape[1] * like.itemsize // self.APART) * self.APART


class RepeatedStep:
    """`Kernels.step_` of updates of one segment each, planned once for every set of addresses."""

    #: Of which so many are kept, and so many addresses of δ for each: a loop has one or two, and a
    #: last batch another.
    LIMIT = 8

    def __init__(
        self, kernels: Kernels, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]
    ) -> None:
        self._kernels, self._feedback, self._rule = kernels, feedback, rule
        self._known = Repeated.of(updates)
        applied = [u for weight, bias, _ in updates for u in (weight, bias) if u is not None]
        self._own = [u.parameter for u in applied]
        self._written = written(updates)
        self._beside = [t for u in applied for t in (*u.states, u.copy) if t is not None]
        self._planned: OrderedDict[tuple, Planned] = OrderedDict()

    def __call__(
        self, error: Tensor, inputs: Sequence[Tensor], saved: Sequence[Tensor], rows: Sequence[Row]
    ) -> None:
        device = error.device
        if tuning.ENABLED or capturing(device):
            whole = self._known.whole(error, inputs, saved, rows)
            self._kernels.step_(self._feedback, self._rule, whole)
            return
        made = [columns(self._rule, tuple(row)) for row in rows]
        key = self._key(error, inputs, saved, made)
        planned, buffer = self._planned.get(key), None
        if planned is not None:
            if planned.size:
                buffer = error.new_empty(planned.size, dtype=torch.uint8)
            ready = planned.ready.get(_address(buffer))
            if ready is not None:
                hyper = tuple(chain.from_iterable(dict.fromkeys(made)))
                self._kernels.launcher.again(ready, hyper, device)
                increment_version(self._written)
                return
        arena = Arena(self._stored(error, saved), buffer)
        whole = self._known.whole(error, inputs, saved, rows)
        ready = self._kernels.planned(self._feedback, self._rule, whole, arena)
        if ready is None or not arena.holds_all or not self._stays((error, *inputs, *saved)):
            return
        if planned is None:
            size = 0 if arena.buffer is None else len(arena.buffer)
            planned = self._planned[key] = Planned(size, OrderedDict())
        planned.ready[_address(arena.buffer)] = ready
        for kept in (self._planned, planned.ready):
            if len(kept) > self.LIMIT:
                kept.popitem(last=False)

    def _key(
        self,
        error: Tensor,
        inputs: Sequence[Tensor],
        saved: Sequence[Tensor],
        made: list[Row],
    ) -> tuple:
        """All that the launches are made of, but the hyperparameters; and which of those are one
        row, for a launch has each once."""
        device, stream = error.device, 0
        if device.type == "cuda":
            stream = torch._C._cuda_getCurrentRawStream(device.index)
        key: list = [
            stream, rules.variable.held(), tf32_allowed(),
            *map(made.index, made),
        ]  # fmt: skip
        for t in chain((error,), inputs, saved):
            key += (t.data_ptr(), t.shape, t.stride())
        for t in self._own:
            key += (t.data_ptr(), t.stride())
        key += [t.data_ptr() for t in self._beside]
        return tuple(key)

    def _stored(self, error: Tensor, saved: Sequence[Tensor]) -> list[Tensor]:
        """Beside which δ is stored where it is: not where it is the error, as it lies there."""
        itself = aligned(error)
        stored = []
        for h, (_, _, (segment,)) in zip(saved, self._known.updates, strict=True):
            head = segment.layer.stream == HEAD and segment.layer.activation == "identity"
            if not (head and itself):
                stored.append(h)
        return stored

    def _stays(self, given: Sequence[Tensor]) -> bool:
        """Whether the launches read these, not what was made of them for one step."""
        if self._feedback.values is not None or len({t.dtype for t in given}) > 1:
            return False
        return all(as_rows(t) is t for t in given)


def _address(buffer: Tensor | None) -> int:
    return 0 if buffer is None else buffer.data_ptr()
