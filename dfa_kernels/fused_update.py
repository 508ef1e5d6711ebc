"""What `dfa_kernels.optim`'s optimizers share: a step over records instead of gradients.

A backward pass leaves a `Record` in the optimizer's ledger (see `pending`); `step()` gathers the
records of each weight into one grouped call of the backend and hands the rest to torch.optim.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import profiler
from torch.optim import optimizer as _torch

from dfa_kernels import ops
from dfa_kernels.backends.contract import RULES, LayerUpdate, Update
from dfa_kernels.capturable import DeviceRows, as_torch_steps, capturing
from dfa_kernels.feedback import Feedback
from dfa_kernels.in_backward import Applied, UpdatesInBackward
from dfa_kernels.master import MASTER, Masters
from dfa_kernels.module import DFA
from dfa_kernels.pending import Ledger, PendingGradient, Receiver, Record, hooked
from dfa_kernels.repeat import Repeat, kind, repeatable
from dfa_kernels.terms import Term, expressible, materialize


class FusedUpdate(UpdatesInBackward):
    """What SGD and AdamW share: claiming a DFA module's fused layers, and stepping them."""

    rule: str
    _plain_step: Callable[..., Any]

    def _claim(
        self, nets: tuple[DFA, ...], update: str, master_weights: bool, capturable: bool
    ) -> None:
        self.update = update
        self.capturable = capturable
        self._rows = DeviceRows(len(RULES[self.rule].hyper)) if capturable else None
        self._masters = Masters() if master_weights else None
        self._fresh: set[int] = set()
        #: The fused parameters, each with the name of its layer.
        self._fused = {
            p: name
            for net in nets
            for name, layer in net.fused_layers().items()
            for p in layer.parameters()
        }
        self._shared = _shared_biases(nets)
        self.ledger = Ledger()
        #: Where the records of backward passes go.
        self.receiver: Receiver = self.ledger if update == "step" else Applied(self)
        self._start_turns()
        # Else torch.amp.GradScaler leaves it to a fused step of torch's to unscale the gradients.
        self._step_supports_amp_scaling = False
        self._prepare()
        for net in nets:
            net.claim(self)

    def _prepare(self) -> None:
        """What a forward pass asks: which parameters are ours; and with update="backward" what the
        node needs of each, made beforehand so that a traced forward pass only reads it."""
        self._repeat: Repeat | None = None
        # Of the last step that was not repeated: its layers, and `kind`.
        self._before: tuple[Any, list] | None = None
        self._groups = {id(p): group for group in self.param_groups for p in group["params"]}
        self._known = [(group, list(group["params"])) for group in self.param_groups]
        for group in self.param_groups:
            if "capturable" in group:  # a checkpoint's is not how this one runs
                group["capturable"] = self.capturable
        self._prepare_slots()

    def state_dict(self) -> dict[str, Any]:
        """As in torch: a momentum that the first step will start is not in it."""
        made = super().state_dict()
        every = [p for group in self.param_groups for p in group["params"]]
        unbegun = self._fresh.difference(map(id, self._turn.applied))
        for i, p in enumerate(every):
            if id(p) in unbegun and i in made["state"]:
                own = made["state"].pop(i)
                rest = {name: own[name] for name in own if name not in RULES[self.rule].states}
                made["state"].update({i: rest} if rest else {})
        return made

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; a state_dict of the torch.optim optimizer fits too, as does one with or
        without masters."""
        if self._masters is None:
            super().load_state_dict(state_dict)
            for state in self.state.values():
                state.pop(MASTER, None)
        else:
            with self._masters.loaded(self):
                super().load_state_dict(state_dict)
        self._fresh.clear()
        self._follow_counts()
        self._prepare()

    def _follow_counts(self) -> None:
        """Put step counts that were loaded where they are looked for."""

    def _follow_groups(self, closely: bool = True) -> bool:
        """Notice groups that were exchanged or grew without `add_param_group`, as torch does; and
        ``closely``, that their parameters were exchanged. Whether they were."""
        groups = self.param_groups
        if len(groups) == len(self._known):
            for group, (known, before) in zip(groups, self._known):  # noqa: B905 (a step's time)
                own = group["params"]
                if group is not known or len(own) != len(before):
                    break
                if closely and not all(map(is_, own, before)):
                    break
            else:
                return False
        self._prepare()
        return True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.

        Raises:
            TypeError: the group names a DFA module.
        """
        if isinstance(param_group.get("params"), DFA):
            raise TypeError(
                "a DFA module is named when the optimizer is constructed: give add_param_group "
                "parameters, or construct the optimizer with all of its modules"
            )
        super().add_param_group(param_group)
        if hasattr(self, "update"):  # torch adds the first groups while it is constructed
            self._prepare()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"a {type(self).__name__} belongs to its DFA module and cannot be copied or pickled: "
            "save its state_dict()"
        )

    # What a rule defines -------------------------------------------------------------------

    def _states(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        """The rule's states of ``parameter``, made where they are missing."""
        raise NotImplementedError

    def _master(self, parameter: Tensor) -> Tensor | None:
        """The fp32 master of ``parameter``, where it has one."""
        if self._masters is None:
            return None
        return self._masters.of(parameter, self.state[parameter])

    def _row(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """The rule's hyperparameters of a group, numbers and tensors: all but the last, which is
        the parameter's."""
        raise NotImplementedError

    def _counts_of(self, parameters: list[Tensor]) -> list[Tensor]:
        """The step count of each, where the rule counts."""
        return []

    def _lasts(self, parameters: list[Tensor], counts: list[Tensor]) -> list[float]:
        """The rule's last hyperparameter for the next step of each, whose counts these are."""
        raise NotImplementedError

    def _write_last(self, parameters: list[Tensor], cells: list[Tensor]) -> None:
        """Write it where they have it on their device."""
        raise NotImplementedError

    def _check_captured(self, parameters: list[Tensor]) -> None:
        """Refuse what a replay of this step without rows on the device would get wrong."""
        raise NotImplementedError

    def _hypers(self, parameters: list[Tensor], groups: list[dict[str, Any]]) -> list[Any]:
        """The rule's whole row of each: one object for all that share it."""
        if self._rows is not None:
            return [self._rows.of(p, g) for p, g in zip(parameters, groups, strict=True)]
        lasts = self._lasts(parameters, self._counts_of(parameters))
        rows: dict[tuple[int, float], tuple[float, ...]] = {}
        made = []
        for group, last in zip(groups, lasts, strict=True):
            row = rows.get((id(group), last))
            if row is None:
                row = rows[id(group), last] = tuple(map(float, (*self._row(group), last)))
            made.append(row)
        return made

    def _write_rows(self, parameters: list[Tensor]) -> None:
        """Bring rows on the device up to date for a step of these."""
        if self._rows is None:
            if capturing(parameters[0].device):
                self._check_captured(parameters)
            return
        groups = [self._groups[id(p)] for p in parameters]
        for group in {id(g): g for g in groups}.values():
            self._rows.write(group, self._row(group))
        cells = [self._rows.last(p, g) for p, g in zip(parameters, groups, strict=True)]
        self._write_last(parameters, cells)

    def _advance(self, parameters: list[Tensor], counts: list[Tensor]) -> None:
        """Count a step of each, whose counts these are."""
        raise NotImplementedError

    # step ----------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimization step over everything that ``backward()`` left since `zero_grad`.

        Raises:
            RuntimeError: a parameter has moved to another device than its optimizer state.
        """
        if torch.compiler.is_compiling():
            return _uncompiled_step(self, closure)
        step = self._watched_step if _watched(self) else self._step
        return step() if closure is None else step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # else torch wraps it as `_watched_step` is

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        recording = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # torch.no_grad(), for a sixth of its time
        try:
            stepped = self._step_records() if self.update == "step" else self._end_turn()
            if stepped < sum([len(group["params"]) for group in self.param_groups]):
                self._step_dense()
            if self.update == "backward":
                self._follow_states()
        finally:
            torch._C._set_grad_enabled(recording)
        return loss

    _watched_step = torch.optim.Optimizer.profile_hook_step(_step)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch; the records of the fused layers are freed either way."""
        self.ledger.records.clear()
        if self.update == "backward":
            self._leave_turn()
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or type(p.grad) is PendingGradient:
                    p.grad = None
        if not set_to_none:
            super().zero_grad(set_to_none)

    def _step_records(self) -> int:
        """Step by the ledger's records: how many parameters."""
        records = self.ledger.records
        if not records:
            return 0
        stepped = self._take(records)
        self._advance(stepped, self._counts_of(stepped))
        if self._masters is not None:
            self._masters.wrote(stepped)
        return len(stepped)

    def _take(self, records: list[Record]) -> list[Tensor]:
        """One grouped call for all of these; the sums that it cannot express become gradients after
        all. The parameters that it stepped."""
        self._follow_groups()
        if self._repeat is not None and len(records) == 1:
            rows = self._repeat.rows(records[0], self)
            if rows is not None:
                self._repeat.step_(records[0], rows)
                return self._repeat.parameters
        for record in records:
            record.check()
        gathered: dict[int, list[Term]] = {}
        for number, record in enumerate(records):
            for entry in record.layers:
                gathered.setdefault(id(entry[1]), []).append((number, record.feedback, entry))
        feedback = records[0].feedback
        stepped: list[Tensor] = []
        chosen, others = [], []
        for terms in gathered.values():
            _, _, (_, weight, bias, _) = terms[0]
            left = id(weight) not in self._groups  # its group was taken away meanwhile
            if left or not self._summable(terms, feedback):
                others += terms
                continue
            chosen.append((bias, [entry[3] for _, _, entry in terms]))
            stepped += (weight,) if bias is None else (weight, bias)
        made = iter(self._updates(stepped))
        updates = [
            LayerUpdate(next(made), None if bias is None else next(made), segments)
            for bias, segments in chosen
        ]
        if stepped and (self._rows is not None or stepped[0].is_cuda):
            self._write_rows(stepped)
        if others:  # only now: whatever is refused has been refused above
            materialize(others)
        if updates:
            ops.step_(feedback, self.rule, updates, self.capturable)
        self._remember(records, stepped, updates)
        return stepped

    def _summable(self, terms: list[Term], feedback: Feedback) -> bool:
        """Whether the grouped call can sum a weight's terms. Of what is stepped in the backward
        pass, `check_plan` has seen to it."""
        if self.update == "backward":
            return True
        bias = terms[0][2].bias
        return id(bias) not in self._shared and expressible(terms, feedback)

    def _remember(
        self, records: list[Record], stepped: list[Tensor], updates: list[LayerUpdate]
    ) -> None:
        """Keep what a step has found where two on end were of one kind."""
        before, self._before, self._repeat = self._before, None, None
        if repeatable(records, stepped, updates) and self._rows is None:
            record = records[0]
            self._before = record.plans, kind(updates)
            if before is not None and before[0] is record.plans and before == self._before:
                self._repeat = Repeat(self, record, updates)

    def _updates(self, parameters: list[Tensor]) -> list[Update]:
        """Of each, its states made where they are missing.

        Raises:
            RuntimeError: a parameter has moved to another device than its optimizer state.
        """
        groups = [self._groups[id(p)] for p in parameters]
        kept = []
        for p, group in zip(parameters, groups, strict=True):
            master = None if self._masters is None else self._master(p)
            states, device = self._states(p, group), p.device
            for state in states if master is None else (*states, master):
                if state.device != device:
                    raise RuntimeError(
                        f"a parameter of shape {tuple(p.shape)} is on {device}, but its optimizer "
                        f"state is on {state.device}: move the model before the first step"
                    )
            kept.append((master, states))
        made = []
        hypers = self._hypers(parameters, groups)
        for p, (master, states), hyper in zip(parameters, kept, hypers, strict=True):
            if self._masters is None or master is None:
                made.append(Update(p, states, hyper))
            else:
                self._masters.follow(p, master)
                made.append(Update(master, states, hyper, p))
        return made

    def _step_dense(self) -> None:
        """torch.optim's own step for what has a gradient."""
        dense: list[list[Tensor]] = []
        counted = False
        for group in self.param_groups:
            own: list[Tensor] = []
            for p in group["params"]:
                gradient = p.grad
                if gradient is None:
                    continue
                if type(gradient) is PendingGradient:
                    if gradient.ledger() is not self.ledger:
                        raise RuntimeError(
                            f"the gradient of {gradient.layer!r} is pending for another optimizer "
                            f"than this {type(self).__name__}, of the same DFA module: the one "
                            "that was constructed last steps it, after zero_grad()"
                        )
                    if gradient.dense is None:
                        continue
                    p.grad = gradient.dense
                own.append(p)
                counted = counted or p in self._fused
                if id(p) in self._fresh:
                    self._leave_to_torch(p)
            dense.append(own)
        if any(dense):
            masters = nullcontext() if self._masters is None else self._masters.stepped(self)
            groups = as_torch_steps(self, counted) if self.capturable or counted else nullcontext()
            with Only(self.param_groups, dense), masters, groups:
                type(self)._plain_step(self)

    def _leave_to_torch(self, parameter: Tensor) -> None:
        """Its first step is torch.optim's, which starts a momentum that is not there."""
        self._fresh.discard(id(parameter))
        for name in RULES[self.rule].states:
            self.state[parameter].pop(name, None)

    # The forward pass asks ------------------------------------------------------------------

    def claims(self, parameters: list[Tensor]) -> bool:
        """Whether all of a forward pass's fused parameters are this optimizer's to update."""
        if not torch.compiler.is_compiling():
            return self.claims_eager(parameters)
        for p in parameters:
            if id(p) not in self._groups:
                return False
        return len(parameters) > 0  # dynamo of torch 2.11 knows no bool of a list

    def claims_eager(self, parameters: list[Tensor]) -> bool:
        """The same, where nothing is being compiled; and that nobody wants to see a gradient."""
        self._follow_groups(closely=False)
        groups = self._groups
        for p in parameters:
            if id(p) not in groups:
                return False
        return bool(parameters) and not hooked(parameters)

    def check_alone(self) -> None:
        """Other replicas' gradients cannot be averaged where there are none."""
        if _Parallel._get_active_ddp_module() is not None:
            raise RuntimeError(
                "DistributedDataParallel averages gradients, and dfa_kernels.optim."
                f"{type(self).__name__} makes none for the fused layers: use torch.optim under DDP"
            )


class Only:
    """Within, each of an optimizer's groups has no parameters but ``chosen``."""

    def __init__(self, groups: list[dict[str, Any]], chosen: list[list[Tensor]]) -> None:
        self._groups, self._chosen = groups, chosen
        self._before = [group["params"] for group in groups]

    def __enter__(self) -> None:
        for group, parameters in zip(self._groups, self._chosen, strict=True):
            group["params"] = parameters

    def __exit__(self, *_: object) -> None:
        for group, parameters in zip(self._groups, self._before, strict=True):
            group["params"] = parameters


@_disable_dynamo  # torch.compiler.disable, which imports the compiler only when it is called
def _uncompiled_step(optimizer: FusedUpdate, closure: Callable[[], Any] | None) -> Any:
    """Where the user's function is compiled, the step is what comes between two graphs: what it
    counts and keeps is no matter of theirs, and dynamo has lost some of it."""
    return optimizer.step(closure)


_Parallel = torch.nn.parallel.DistributedDataParallel


def _shared_biases(nets: tuple[DFA, ...]) -> set[int]:
    """The ids of biases that fused layers of different weights share: the grouped call, which has
    one bias for one weight, would step them twice."""
    partners: dict[int, set[int]] = {}
    for net in nets:
        for layer in net.fused_layers().values():
            own = layer._parameters  # what is computed by a parametrization is nobody else's
            if own.get("bias") is not None:
                partners.setdefault(id(own["bias"]), set()).add(id(own.get("weight", layer)))
    return {bias for bias, weights in partners.items() if len(weights) > 1}


def _watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether anybody hears of a step: a hook, or the profiler. To tell them costs more than the
    rest of a small network's `step`."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _torch._global_optimizer_pre_hooks
        or _torch._global_optimizer_post_hooks
        or profiler._is_profiler_enabled
    )
