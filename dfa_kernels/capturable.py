"""Steps that a CUDA graph replays: nothing about them is known on the host when they run.

With ``capturable=True`` every parameter has its row of hyperparameters on its device, and the
backend reads it there. Before each step, on the device too, the rows are brought up to date: a
hyperparameter that is a tensor is copied into them, as is AdamW's step count; numbers are written
where they have changed. A replay repeats the copies, and so follows the tensors; it runs no Python,
and so sees no number that has changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def capturing(device: torch.device) -> bool:
    """Whether what is started on ``device`` now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_while_capturing(parameter: Tensor, what: str) -> None:
    """For what is made once, before the first step of ``parameter``.

    Raises:
        RuntimeError: a CUDA graph is being captured, whose replays would make it again.
    """
    if capturing(parameter.device):
        raise RuntimeError(
            f"{what} of a parameter of shape {tuple(parameter.shape)} is made in its first step, "
            "which a CUDA graph would repeat: run a step before the capture"
        )


class DeviceRows:
    """The rows of the optimizer's parameters, in one table for each of its groups."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._tables: dict[int, _Table] = {}

    def of(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The parameter's row."""
        return self._table(parameter, group).rows[id(parameter)]

    def last(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The last column of it, which is the parameter's own."""
        return self._table(parameter, group).lasts[id(parameter)]

    def write(self, group: dict[str, Any], values: Sequence[float | Tensor]) -> None:
        """Bring all columns of a group's rows but the last up to date.

        Raises:
            ValueError: a tensor among ``values`` is on another device than the parameters.
        """
        self._tables[id(group)].write(values)

    def _table(self, parameter: Tensor, group: dict[str, Any]) -> _Table:
        table = self._tables.get(id(group))
        if table is None or id(parameter) not in table.rows:
            refuse_while_capturing(parameter, "the row of hyperparameters")
            table = self._tables[id(group)] = _Table(group, self._columns, parameter.device)
        return table


class _Table:
    def __init__(self, group: dict[str, Any], columns: int, device: torch.device) -> None:
        self._group = group  # whose id is the key: it must not be another's
        parameters = group["params"]
        self._table = torch.zeros(len(parameters), columns, dtype=torch.float64, device=device)
        self.rows = {id(p): row for p, row in zip(parameters, self._table, strict=True)}
        self.lasts = {key: row[-1] for key, row in self.rows.items()}
        self._written: list[float | None] = [None] * (columns - 1)

    def write(self, values: Sequence[float | Tensor]) -> None:
        device = self._table.device
        for value in values:
            if isinstance(value, Tensor) and value.device != device:
                raise ValueError(
                    f"a hyperparameter is a tensor on {value.device}, and capturable=True reads it "
                    f"on {device} at every step: make it there"
                )
        for column, value in enumerate(values):
            if isinstance(value, Tensor):
                self._table[:, column].copy_(value)
                self._written[column] = None
            elif self._written[column] != value:
                self._table[:, column].fill_(value)
                self._written[column] = value


@contextmanager
def as_torch_steps(optimizer: torch.optim.Optimizer, counted: bool) -> Iterator[None]:
    """Within, the groups ask for what torch.optim's own step can do: on a CPU there are no graphs
    and it refuses capturable=True; on a GPU its SGD reads a tensor lr in its fused form alone, and
    its fused AdamW no step counts on the host, which those of fused layers are, ``counted`` if some
    of them are to be stepped."""
    before = []
    for group in optimizer.param_groups:
        changed: dict[str, Any] = {}
        devices = {p.device.type for p in group["params"]}
        if group.get("capturable") and devices == {"cpu"}:
            changed["capturable"] = False
        elif counted and group.get("fused") and not group.get("capturable"):
            changed["fused"] = False
        if isinstance(optimizer, torch.optim.SGD) and isinstance(group["lr"], Tensor):
            changed |= {"fused": "cpu" not in devices, "foreach": False}
        before.append((group, {key: group[key] for key in changed}))
        group.update(changed)
    try:
        yield
    finally:
        for group, values in before:
            group.update(values)
