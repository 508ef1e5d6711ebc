"""Gradients that a fused update never makes, and what stands in their place.

With an optimizer of `dfa_kernels.optim`, a backward pass leaves one `Record` for the whole network
in the gradient of the optimizer's *ledger*, a scalar leaf that exists for nothing else: autograd
accumulates, drops and keeps records apart by its own rules for gradients. The `.grad` of each
fused parameter is a `PendingGradient`: its elements do not exist, and whatever asks for them is
refused in one sentence, so that nothing (clipping, scaling, averaging) passes over them silently.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfa_kernels.backends.contract import Layer
from dfa_kernels.feedback import Feedback

_aten = torch.ops.aten


class Recorded(NamedTuple):
    """One fused layer in one backward pass."""

    name: str
    weight: Tensor
    bias: Tensor | None
    layer: Layer


class Record(NamedTuple):
    """One backward pass: the error (N, E), the scale of its projection, and the fused layers."""

    feedback: Feedback
    error: Tensor
    scale: float
    layers: list[Recorded]


class _Unmade(torch.Tensor):
    """A tensor of a leaf's shape, without storage."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def like(cls, leaf: Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, leaf.shape, dtype=leaf.dtype, device=leaf.device
        )


class Records(_Unmade):
    """The ledger's gradient: the records since it was last dropped."""

    records: tuple[Record, ...]

    @classmethod
    def of(cls, ledger: Tensor, records: tuple[Record, ...]) -> Records:
        made = cls.like(ledger)
        made.records = records
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Records({len(self.records)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        left = args[0]
        if func is _aten.detach.default:
            return left
        if func is _aten.add_.Tensor:
            left.records += args[1].records
            return left
        if func is _aten.add.Tensor:
            return cls.of(left, left.records + args[1].records)
        if func is _aten.clone.default:
            return cls.of(left, left.records)
        raise RuntimeError(f"{func.name()} was asked of a ledger's records, which are no numbers")


class PendingGradient(_Unmade):
    """A fused parameter's `.grad`: what the ledger's records since ``start`` sum to, and the
    ``dense`` gradient beside them where autograd brought one (another use of a tied weight,
    another method's backward)."""

    layer: str
    start: int
    dense: Tensor | None

    @classmethod
    def of(cls, parameter: Tensor, layer: str) -> PendingGradient:
        made = cls.like(parameter)
        made.layer, made.start, made.dense = layer, 0, None
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return (
            f"PendingGradient({self.layer!r}, shape={tuple(self.shape)}: never made, the update is "
            "fused)"
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        left = args[0]
        if func is _aten.add_.Tensor and type(left) is cls and not isinstance(args[1], _Unmade):
            left.dense = args[1].clone() if left.dense is None else left.dense + args[1]
            return left
        flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        names = dict.fromkeys(repr(a.layer) for a in flat if isinstance(a, cls))
        raise RuntimeError(
            f"{func.name()} asked for the gradient of {', '.join(names)}, which a fused update "
            "never makes: leave clipping, scaling, averaging and logging of gradients to a "
            "torch.optim optimizer, or keep these parameters out of the dfa_kernels.optim one"
        )
