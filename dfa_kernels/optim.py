"""SGD and AdamW whose update is fused with the fused layers' gradients, which are never kept.

    opt = dfa.optim.AdamW(net, lr=1e-3)
    loss.backward()      # leaves (error, inputs, outputs) of every fused layer behind
    opt.step()           # one grouped call: project, multiply, step weights and state in place

The numbers are `torch.optim`'s, and so are the arguments, the groups, the state and its keys; what
is not a fused layer is stepped by `torch.optim` itself. In place of a fused layer's gradient stands
a `PendingGradient`, which refuses to be looked at.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dfa_kernels.capturable import refuse_while_capturing
from dfa_kernels.counts import Counts
from dfa_kernels.fused_update import FusedUpdate
from dfa_kernels.master import MASTER
from dfa_kernels.module import DFA

#: When the update is applied: see `SGD`.
UPDATES = ("step", "backward")


class SGD(FusedUpdate, torch.optim.SGD):
    """`torch.optim.SGD` with the fused update.

    Args:
        params: a `DFA` module, or parameter groups, of which at least one names it:
            ``[{"params": no_decay, "weight_decay": 0}, {"params": net}]``; there ``net`` stands
            for all its parameters that no other group lists.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch.
        foreach, fused: as in torch, of the step of what is not a fused layer.
        update: ``"step"``; or ``"backward"``, which applies the update inside ``backward()``:
            activations are freed at once and the whole step compiles, at the price of one
            forward pass a step, and of fused parameters that nothing else gives a gradient to.
        master_weights: step an fp32 master of every bf16 and fp16 parameter, with fp32 states, and
            write the parameter as its rounded copy, in the same pass where it is a fused layer's.
            The master is ``state[p]["master"]``. A parameter that was written to since the last
            step takes its master with it. What torch does not count as written is not seen and
            lost: through ``p.data``, or by a CUDA graph's replay; and what is written between a
            compiled backward pass and ``step()``.
        capturable: let a CUDA graph hold the step: its replays go on counting, and read ``lr``
            where it is a tensor, which must be on the parameters' device. A number that changes
            between replays, as a scheduler changes it, is not seen by them: give a tensor, which
            the scheduler fills. The first step must be run before the capture.

    The fused layers of a net belong to the optimizer that was constructed last: an earlier one's
    `step` finds nothing of theirs to do.

    Raises:
        TypeError: no DFA module is named, or a parameter is sharded (a DTensor, as FSDP2 has).
        ValueError: an unknown ``update``, or torch's own reasons.
    """

    rule = "sgd"
    _plain_step = inspect.unwrap(torch.optim.SGD.step)

    def __init__(
        self,
        params: DFA | Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        update: str = "step",
        master_weights: bool = False,
        capturable: bool = False,
    ) -> None:
        groups, nets = _groups(params, update)
        super().__init__(
            groups,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
        )
        self._claim(nets, update, master_weights, capturable)

    def _states(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        if not group["momentum"]:
            return (parameter.new_empty(0),)
        state = self.state[parameter]
        buffer = state.get("momentum_buffer")
        if buffer is None:
            refuse_while_capturing(parameter, "the momentum")
            like = state.get(MASTER, parameter)
            buffer = state["momentum_buffer"] = torch.zeros_like(like)
            self._fresh.add(id(parameter))
        return (buffer,)

    def _row(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
        )

    def _lasts(self, parameters: list[Tensor], counts: list[Tensor]) -> list[float]:
        if not self._fresh:
            return [0.0] * len(parameters)
        return [float(id(p) in self._fresh) for p in parameters]

    def _write_last(self, parameters: list[Tensor], cells: list[Tensor]) -> None:
        self._check_captured(parameters)
        for p, cell in zip(parameters, cells, strict=True):
            if id(p) in self._fresh:
                cell.fill_(1.0)

    def _check_captured(self, parameters: list[Tensor]) -> None:
        for p in parameters:
            if id(p) in self._fresh:
                refuse_while_capturing(p, "the momentum")

    def _advance(self, parameters: list[Tensor], counts: list[Tensor]) -> None:
        if self._fresh:
            if self._rows is not None:
                for p in parameters:
                    if id(p) in self._fresh:
                        self._rows.last(p, self._groups[id(p)]).zero_()
            self._fresh.difference_update(map(id, parameters))


class AdamW(FusedUpdate, torch.optim.AdamW):
    """`torch.optim.AdamW` with the fused update.

    ``params``, ``update``, ``master_weights`` and ``capturable`` as in `SGD`, and so is whose the
    fused layers are.

    Args:
        lr, betas, eps, weight_decay, maximize: as in torch. ``amsgrad`` is refused.
        foreach, fused: as in torch, of the step of what is not a fused layer.

    Raises:
        TypeError: no DFA module is named, or a parameter is sharded (a DTensor, as FSDP2 has).
        ValueError: an unknown ``update``, ``amsgrad``, or torch's own reasons.
    """

    rule = "adamw"
    _plain_step = inspect.unwrap(torch.optim.AdamW.step)

    def __init__(
        self,
        params: DFA | Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        update: str = "step",
        master_weights: bool = False,
    ) -> None:
        if amsgrad:
            raise ValueError("dfa_kernels.optim.AdamW has no amsgrad: use torch.optim.AdamW")
        groups, nets = _groups(params, update)
        super().__init__(
            groups, lr, betas, eps, weight_decay, maximize=maximize, foreach=foreach,
            fused=fused, capturable=capturable,
        )  # fmt: skip
        self._counts = Counts()
        self._claim(nets, update, master_weights, capturable)

    def _states(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        state = self.state[parameter]
        if "step" not in state:
            refuse_while_capturing(parameter, "the state")
            like = state.get(MASTER, parameter)
            if self.capturable:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            else:
                state["step"] = self._counts.start(len(self._fused))
            state["exp_avg"] = torch.zeros_like(like)
            state["exp_avg_sq"] = torch.zeros_like(like)
        return (state["exp_avg"], state["exp_avg_sq"])

    def _row(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["maximize"],
        )

    def _counts_of(self, parameters: list[Tensor]) -> list[Tensor]:
        states = self.state
        return [states[p]["step"] for p in parameters]

    def _lasts(self, parameters: list[Tensor], counts: list[Tensor]) -> list[float]:
        return [count + 1 for count in self._counts.read(counts)]

    def _write_last(self, parameters: list[Tensor], cells: list[Tensor]) -> None:
        torch._foreach_copy_(cells, self._counts_of(parameters))
        torch._foreach_add_(cells, 1)

    def _check_captured(self, parameters: list[Tensor]) -> None:
        raise RuntimeError(
            "a CUDA graph of this AdamW.step would repeat its step count: construct the optimizer "
            "with capturable=True"
        )

    def _advance(self, parameters: list[Tensor], counts: list[Tensor]) -> None:
        if counts:
            self._counts.add(counts)

    def _follow_counts(self) -> None:
        fused = []
        for group in self.param_groups:
            for p in group["params"]:
                count = self.state.get(p, {}).get("step")
                if not isinstance(count, Tensor):
                    continue
                if self.capturable:
                    self.state[p]["step"] = count.to(p.device)
                elif p in self._fused:
                    fused.append(p)
                elif not group.get("fused"):
                    self.state[p]["step"] = count.cpu()
        if not self.capturable:
            self._counts = Counts([float(self.state[p]["step"]) for p in fused])
            for p, count in zip(fused, self._counts.each, strict=True):
                self.state[p]["step"] = count


def _groups(params: Any, update: str) -> tuple[list[dict[str, Any]], tuple[DFA, ...]]:
    """Parameter groups as torch.optim takes them, and the DFA modules that they name."""
    if update not in UPDATES:
        raise ValueError(f"unknown update {update!r}: known are {', '.join(UPDATES)}")
    given = [{"params": params}] if isinstance(params, DFA) else list(params)
    groups = [dict(g) if isinstance(g, dict) else {"params": g} for g in given]
    nets = tuple(g["params"] for g in groups if isinstance(g["params"], DFA))
    if not nets:
        raise TypeError(
            "none of the parameter groups names a DFA module: give the module itself, or a group "
            '{"params": net} for those of its parameters that no other group lists'
        )
    listed: set[int] = set()
    for group in groups:
        inside = group["params"]
        if not isinstance(inside, DFA):
            if isinstance(inside, nn.Module):
                inside = inside.parameters()
            group["params"] = [inside] if isinstance(inside, Tensor) else list(inside)
            listed.update(id(p[1] if isinstance(p, tuple) else p) for p in group["params"])
    for group in groups:
        net = group["params"]
        if isinstance(net, DFA):
            group["params"] = [p for p in net.parameters() if id(p) not in listed]
            listed.update(map(id, group["params"]))
    for group in groups:
        for p in group["params"]:
            _check_whole(p[1] if isinstance(p, tuple) else p)
    return groups, nets


def _check_whole(parameter: Tensor) -> None:
    if hasattr(parameter, "placements"):
        raise TypeError(
            f"a parameter of shape {tuple(parameter.shape)} is sharded (DTensor), and a fused "
            "update works on whole ones: use torch.optim with FSDP"
        )
