"""The gradient that a fused update never makes: what `.grad` holds until the optimizer steps.

With an optimizer of `dfa_kernels.optim`, the error node hands each fused parameter a
`PendingGradient`: a tensor of the parameter's shape without storage that knows the records (error,
inputs, outputs) from which `step()` updates the parameter directly. Autograd accumulates it as it
would any gradient, and `zero_grad` drops it, so every rule of `.grad` holds; but its elements do
not exist, and whatever asks for them is refused in one sentence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfa_kernels import ops
from dfa_kernels.backends.contract import Segment
from dfa_kernels.feedback import Feedback

_aten = torch.ops.aten


class Record:
    """One fused layer in one backward pass. Its weight's and its bias's gradient know the same."""

    __slots__ = ("feedback", "name", "segment")

    def __init__(self, name: str, feedback: Feedback, segment: Segment) -> None:
        self.name = name
        self.feedback = feedback
        self.segment = segment


class PendingGradient(torch.Tensor):
    """A parameter's gradient, as the sum of ``records`` and, where autograd added one, ``dense``."""

    records: tuple[Record, ...]
    dense: Tensor | None
    is_bias: bool

    @staticmethod
    def __new__(
        cls, parameter: Tensor, records: tuple[Record, ...], dense: Tensor | None = None
    ) -> PendingGradient:
        pending = torch.Tensor._make_wrapper_subclass(
            cls, parameter.shape, dtype=parameter.dtype, device=parameter.device
        )
        pending.records = records
        pending.dense = dense
        return pending

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        names = ", ".join(dict.fromkeys(r.name for r in self.records))
        return f"PendingGradient(shape={tuple(self.shape)}, of {names}: never made, see dfa_kernels.optim)"

    def materialize(self) -> Tensor:
        """The gradient after all: for a sum that fused updates cannot express."""
        total = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        if self.dense is not None:
            total += self.dense
        for record in self.records:
            error, scale, layer = record.segment
            pair = ops.gradients(error, record.feedback, scale, [layer], self.dtype)[0]
            total += pair[0 if self.dim() == 2 else 1]
        return total

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        this = args[0] if args else None
        if func in _SAME:
            return this
        if func is _aten.clone.default:
            return cls(this, this.records, this.dense)
        if func in (_aten.add.Tensor, _aten.add_.Tensor) and not kwargs:
            return _add(this, args[1], in_place=func is _aten.add_.Tensor)
        if func is _aten.zero_.default:
            this.records, this.dense = (), None
            return this
        names = [r.name for a in args if isinstance(a, cls) for r in a.records]
        names += [
            r.name
            for a in args
            if isinstance(a, (list, tuple))
            for b in a
            if isinstance(b, cls)
            for r in b.records
        ]
        which = ", ".join(repr(n) for n in dict.fromkeys(names)) or "a fused layer"
        raise RuntimeError(
            f"{func.name()} asked for the gradient of {which}, which a fused update never makes: "
            "leave clipping, scaling, averaging and logging of gradients to a torch.optim "
            "optimizer, or keep this layer's parameters out of the dfa_kernels.optim one"
        )


_SAME = frozenset({_aten.detach.default, _aten.alias.default})


def _add(left: Tensor, right: Tensor, *, in_place: bool) -> Tensor:
    """What autograd's accumulation asks for: records join records, and a dense gradient (a tied
    weight's other use, another method's backward) is kept beside them."""
    if not isinstance(left, PendingGradient):
        total = right.materialize()
        return left.add_(total) if in_place else total.add_(left)
    if isinstance(right, PendingGradient):
        records, dense = left.records + right.records, _sum(left.dense, right.dense)
    else:
        records, dense = left.records, _sum(left.dense, right)
    if not in_place:
        return PendingGradient(left, records, dense)
    left.records, left.dense = records, dense
    return left


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b.clone()
    return a + b
