"""What one forward pass was planned to be, for the next to follow where it is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dfa_kernels.autocast import lowered
from dfa_kernels.autograd import Plan
from dfa_kernels.backends.contract import HEAD

if TYPE_CHECKING:
    from dfa_kernels.recording import Fused, Recording


class Planned(NamedTuple):
    """What a forward pass of nothing but fused layers was planned to be: most are followed by one
    that is the same but for its tensors and N. ``dtypes``: each layer's, of what it is given and
    of what its f′ is read from."""

    plan: Plan
    parameters: list[Tensor]
    dtypes: list[tuple[torch.dtype, torch.dtype]]

    def lowered(self, dtype: torch.dtype) -> dict[int, Tensor]:
        """Each parameter in ``dtype``, by its id."""
        with torch.no_grad():
            made = lowered(self.parameters, dtype)
        return dict(zip(map(id, self.parameters), made, strict=True))

    def follow(
        self, recording: Recording, head: Fused | None, batch: torch.Size, width: int
    ) -> list[Tensor] | None:
        """The chain of such a one; None where it is another."""
        plan, parameters = self.plan, self.parameters
        owner, layers = recording.owner, recording.layers
        if recording.points or recording.idle or plan.error_width != width:
            return None
        if head is not None:
            layers = [*layers, head]
        if len(layers) != len(plan.layers):
            return None
        chain: list[Tensor] = []
        widest = 1
        for known, fused, dtypes in zip(plan.layers, layers, self.dtypes, strict=True):
            name, x, own, saved, activation, weight, bias, versions = fused
            rows, stream = own.shape[:-1], known.stream
            if (name, activation) != (known.name, known.activation) or known.rows != 1:
                return None
            if rows != batch or (stream == HEAD) != (fused is head):
                return None
            if (x.dtype, saved.dtype) != dtypes:
                return None
            if weight is not parameters[known.weight]:
                return None
            if bias is not (parameters[known.bias] if known.bias >= 0 else None):
                return None
            if versions != (x._version, saved._version if activation else 0):
                return None
            if known.inputs == len(chain):
                chain.append(x)
            elif chain[known.inputs] is not x:
                return None
            if known.saved == len(chain):
                chain.append(saved)
            if stream != HEAD:
                widest = max(widest, own.shape[-1])
        return chain if owner.feedback.scale_for(widest) == plan.scale else None
