"""The grouped backend with Triton's kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.autograd.graph import increment_version

from dfa_kernels.backends.contract import LayerUpdate, distinct_rows, written
from dfa_kernels.backends.grouped import backend
from dfa_kernels.backends.grouped.backend import Allocate
from dfa_kernels.backends.triton import project, rules, update
from dfa_kernels.backends.triton.launch import Launcher, Ready
from dfa_kernels.backends.triton.repeated import RepeatedStep
from dfa_kernels.feedback import Feedback


class Kernels(backend.Kernels):
    """The three functions of `contract.Backend`, and ``repeated``."""

    def __init__(self) -> None:
        self.launcher = Launcher()
        super().__init__(project, update, rules, self.launcher)

    def repeated(
        self, feedback: Feedback, rule: str, updates: Sequence[LayerUpdate]
    ) -> Callable[..., None] | None:
        if any(type(row) is Tensor for row in distinct_rows(updates)[0]):
            return None
        return RepeatedStep(self, feedback, rule, updates)

    def planned(
        self,
        feedback: Feedback,
        rule: str,
        updates: Sequence[LayerUpdate],
        allocate: Allocate,
    ) -> list[Ready] | None:
        """`step_`; and its launches, which may be started `Launcher.again`, or None where they
        are not one `update` on the parameters themselves. ``allocate``: gives it δ."""
        copied: list[tuple[Tensor, Tensor]] = []
        wanted = self._wanted(updates, copied)
        plan = self._plan(feedback, rule, wanted, allocate)
        ready = self.launcher.first(plan.launches, wanted[0].weight.parameter.device)
        for original, changed in reversed(copied):
            original.copy_(changed)
        increment_version(written(updates))
        alone = sum(launch.hyper is not None for launch in plan.launches) == 1
        return ready if alone and not copied else None
