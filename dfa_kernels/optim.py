"""SGD and AdamW whose update is fused with the fused layers' gradients, which then never exist.

    opt = dfa.optim.AdamW(net, lr=1e-3)
    loss.backward()      # leaves (error, inputs, outputs) of every fused layer behind
    opt.step()           # one grouped call: project, multiply, step weights and state in place

The numbers are `torch.optim`'s, and so are the arguments, the groups, the state and its keys; what
is not a fused layer is stepped by `torch.optim` itself. In place of a fused layer's gradient stands
a `PendingGradient`, which refuses to be looked at.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dfa_kernels import ops
from dfa_kernels.autograd import Plan
from dfa_kernels.backends.contract import LayerUpdate, Update
from dfa_kernels.feedback import Feedback
from dfa_kernels.module import DFA
from dfa_kernels.pending import PendingGradient

UPDATES = ("step", "backward")


class FusedUpdate(torch.optim.Optimizer):
    """What SGD and AdamW share: claiming a DFA module's fused layers, and stepping them."""

    rule: str
    _plain_step: Callable[..., Any]

    def _claim(self, nets: tuple[DFA, ...], update: str) -> None:
        self.update = update
        self._claimed = {id(p) for group in self.param_groups for p in group["params"]}
        self._fresh: set[int] = set()
        # With update="backward": what the node needs of each fused parameter, made beforehand
        # so that a traced forward pass only reads it; and where in the step we are.
        self._slots: list[tuple[Tensor, dict[str, Any], tuple[Tensor, ...]]] = []
        self._awaiting = False
        self._applied: list[Tensor] = []
        self._handle = ops.provide_hyper(self)
        for net in nets:
            net.claim(self)
        if update == "backward":
            fused = {id(p) for net in nets for p in net.fused_parameters()}
            for group in self.param_groups:
                for p in group["params"]:
                    if id(p) in fused:
                        self._slots.append((p, group, self._states(p, group)))

    # What a rule defines -------------------------------------------------------------------

    def _states(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        """The rule's states of ``parameter``, made where they are missing."""
        raise NotImplementedError

    def _hyper(self, parameter: Tensor, group: dict[str, Any]) -> list[float]:
        """The rule's row of hyperparameters for the next step of ``parameter``."""
        raise NotImplementedError

    def _advance(self, parameter: Tensor) -> None:
        """Count a step of ``parameter``."""
        raise NotImplementedError

    # step ----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimization step over everything that ``backward()`` left since `zero_grad`.

        Raises:
            RuntimeError: a parameter has moved to another device than its optimizer state.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pending = self._pending()
        if pending:
            self._step_fused(pending)
        for p in self._applied:
            self._advance(p)
        self._awaiting, self._applied = False, []
        self._step_plain(pending)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch; the records that pending gradients hold are freed either way."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or type(p.grad) is PendingGradient:
                    p.grad = None
        if not set_to_none:
            super().zero_grad(set_to_none)

    def _pending(self) -> dict[Tensor, dict[str, Any]]:
        """The parameters that step without a gradient, with their groups. A sum that the grouped
        call cannot express becomes a gradient after all."""
        pending: dict[Tensor, dict[str, Any]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                gradient = p.grad
                if type(gradient) is not PendingGradient:
                    continue
                if gradient.dense is None and gradient.records:
                    pending[p] = group
                else:
                    p.grad = gradient.materialize()
        return pending

    def _step_fused(self, pending: dict[Tensor, dict[str, Any]]) -> None:
        """One grouped call: each weight with the bias of the same records, and their segments."""
        biases = {p.grad.records: p for p in pending if p.dim() == 1}
        calls: dict[tuple[Any, ...], tuple[Feedback, list[LayerUpdate]]] = {}
        paired = set()
        for weight in pending:
            if weight.dim() == 1:
                continue
            records = weight.grad.records
            feedback = records[0].feedback
            identity = feedback.identity()
            if any(r.feedback.identity() != identity for r in records[1:]):
                weight.grad = weight.grad.materialize()
                continue
            bias = biases.get(records)
            updates = calls.setdefault(identity, (feedback, []))[1]
            updates.append(
                LayerUpdate(
                    self._update(weight, pending[weight]),
                    None if bias is None else self._update(bias, pending[bias]),
                    [r.segment for r in records],
                )
            )
            paired.add(bias)
        for bias in biases.values():
            if bias not in paired:  # its weight is shared with a layer of another bias
                bias.grad = bias.grad.materialize()
        for feedback, updates in calls.values():
            ops.step_(feedback, self.rule, updates)
            for weight, bias, _ in updates:
                self._advance(weight.parameter)
                if bias is not None:
                    self._advance(bias.parameter)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Update:
        states = self._states(parameter, group)
        for state in states:
            if state.device != parameter.device:
                raise RuntimeError(
                    f"a parameter of shape {tuple(parameter.shape)} is on {parameter.device}, but "
                    f"its optimizer state is on {state.device}: move the model before the first "
                    "step"
                )
        return Update(parameter, states, self._hyper(parameter, group))

    def _step_plain(self, hidden: Iterable[Tensor]) -> None:
        """torch.optim's own step for what has a gradient."""
        kept = [(p, p.grad) for p in hidden if type(p.grad) is PendingGradient]
        if len(kept) == sum(len(g["params"]) for g in self.param_groups):
            return
        for p, _ in kept:
            p.grad = None
        try:
            type(self)._plain_step(self)
        finally:
            for p, gradient in kept:
                p.grad = gradient

    # The forward pass asks ------------------------------------------------------------------

    def plan(self, plan: Plan, parameters: list[Tensor]) -> tuple[Plan, list[Tensor]]:
        """How the node of one forward pass delivers the gradients of ``parameters``."""
        _check_alone(type(self).__name__)
        for p in parameters:
            if id(p) not in self._claimed:
                return plan, []
        if self.update == "step":
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    f"dfa_kernels.optim.{type(self).__name__} leaves records behind, which a "
                    'compiled backward cannot: construct it with update="backward", or use '
                    "torch.optim"
                )
            return plan._replace(update="step"), []
        if self._awaiting:
            raise RuntimeError(
                'update="backward" allows one forward pass a step, and this is the second since '
                f"{type(self).__name__}.step(): evaluate under torch.no_grad(), or use "
                'update="step"'
            )
        self._awaiting = True
        slots, rest = [], []
        for p in parameters:
            slot = self._slot(p)
            slots.append(slot)
            rest.append(p.detach())
            rest.extend(self._slots[slot][2])
        plan = plan._replace(
            update="backward", rule=self.rule, handle=self._handle, slots=tuple(slots)
        )
        return plan, rest

    def _slot(self, parameter: Tensor) -> int:
        for i, (p, _, _) in enumerate(self._slots):
            if p is parameter:
                return i
        raise RuntimeError(
            f"a fused parameter of shape {tuple(parameter.shape)} is none of those that "
            f"{type(self).__name__} was constructed with"
        )

    def hyper(self, slots: list[int]) -> list[list[float]]:
        """The rule's table for a backward pass that steps these parameters now.

        Raises:
            RuntimeError: a second backward since the last `step`.
        """
        if self._applied:
            raise RuntimeError(
                'update="backward" applies one backward pass a step, and this is the second '
                f"since {type(self).__name__}.step()"
            )
        chosen = [self._slots[i] for i in slots]
        self._applied = [p for p, _, _ in chosen]
        return [self._hyper(p, group) for p, group, _ in chosen]


class SGD(FusedUpdate, torch.optim.SGD):
    """`torch.optim.SGD` with the fused update.

    Args:
        params: a `DFA` module, or parameter groups, of which at least one names it:
            ``[{"params": no_decay, "weight_decay": 0}, {"params": net}]``; there ``net`` stands
            for all its parameters that no other group lists.
        lr, momentum, dampening, weight_decay, nesterov, maximize, foreach: as in torch.
        update: ``"step"``; or ``"backward"``, which applies the update inside ``backward()``:
            activations are freed at once and the whole step compiles, at the price of one
            forward pass a step.

    Raises:
        TypeError, ValueError: no DFA module is named, or torch's own reasons.
    """

    rule = "sgd"
    _plain_step = inspect.unwrap(torch.optim.SGD.step)

    def __init__(
        self,
        params: DFA | Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        update: str = "step",
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
        )
        self._claim(nets, update)

    def _states(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        if not group["momentum"]:
            return (parameter.new_empty(0),)
        state = self.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
            self._fresh.add(id(parameter))
        return (state["momentum_buffer"],)

    def _hyper(self, parameter: Tensor, group: dict[str, Any]) -> list[float]:
        return [
            float(group["lr"]),
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            float(group["nesterov"]),
            float(group["maximize"]),
            float(id(parameter) in self._fresh),
        ]

    def _advance(self, parameter: Tensor) -> None:
        self._fresh.discard(id(parameter))


class AdamW(FusedUpdate, torch.optim.AdamW):
    """`torch.optim.AdamW` with the fused update. ``params`` and ``update`` as in `SGD`.

    Args:
        lr, betas, eps, weight_decay, maximize, foreach: as in torch. ``amsgrad`` is refused.

    Raises:
        TypeError, ValueError: no DFA module is named, amsgrad, or torch's own reasons.
    """

    rule = "adamw"
    _plain_step = inspect.unwrap(torch.optim.AdamW.step)

    def __init__(
        self,
        params: DFA | Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        update: str = "step",
    ) -> None:
        if amsgrad:
            raise ValueError("dfa_kernels.optim.AdamW has no amsgrad: use torch.optim.AdamW")
        groups, nets = _groups(params, update)
        super().__init__(groups, lr, betas, eps, weight_decay, maximize=maximize, foreach=foreach)
        self._claim(nets, update)

    def _states(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0, dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return (state["exp_avg"], state["exp_avg_sq"])

    def _hyper(self, parameter: Tensor, group: dict[str, Any]) -> list[float]:
        state = self.state[parameter]
        beta1, beta2 = group["betas"]
        return [
            float(group["lr"]),
            float(beta1),
            float(beta2),
            group["eps"],
            group["weight_decay"],
            float(group["maximize"]),
            float(state["step"]) + 1,
        ]

    def _advance(self, parameter: Tensor) -> None:
        self.state[parameter]["step"] += 1


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


def _check_alone(name: str) -> None:
    """Other replicas' gradients cannot be averaged where there are none."""
    ddp = torch.nn.parallel.DistributedDataParallel
    if not torch.compiler.is_compiling() and ddp._get_active_ddp_module() is not None:
        raise RuntimeError(
            f"DistributedDataParallel averages gradients, and dfa_kernels.optim.{name} makes none "
            "for the fused layers: use torch.optim under DDP"
        )
