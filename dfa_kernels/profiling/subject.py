"""What is profiled: a network, its loss and optimizer, on one batch.

A user's own comes from a factory, ``package.module:factory``, called without arguments. It returns
the network, or the network and a loss of its output:

    factory() -> nn.Module                      factory() -> (nn.Module, loss)

The network is a `DFA`, whose method is then set to each that is profiled; or any other module,
which is fused and wrapped for dfa and shallow, and stays as it is for bp. It is called with one
tensor for each shape of ``--batch``. ``loss(output)`` returns a scalar; without one it is the
cross-entropy of random classes, the mean square where the output's last dimension is 1. Each
method calls the factory anew, after the same `torch.manual_seed`.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfa_kernels import optim
from dfa_kernels.feedback import Feedback
from dfa_kernels.linear import fuse
from dfa_kernels.module import DFA
from dfa_kernels.profiling.options import Options
from dfa_kernels.throughput.contestants import PRECISIONS
from dfa_kernels.throughput.networks import INPUTS
from dfa_kernels.training import InputError
from dfa_kernels.training.model import MOMENTUM
from dfa_kernels.training.options import LEARNING_RATES

#: Of the usual learning rate: random data are not to be learnt until numbers vanish or explode.
_CALM = 1e-3

Loss = Callable[[Any], Tensor]
Factory = Callable[[], Any]


class Subject:
    """A network that makes training steps by ``method``.

    Raises:
        InputError: the factory fails, or the first step does.
    """

    def __init__(self, options: Options, method: str, factory: Factory) -> None:
        self._options = options
        self._where = options.module or "the built-in network"
        torch.manual_seed(options.seed)
        made = self._tried(factory, "could not be made")
        plain, loss = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(plain, nn.Module) or not (loss is None or callable(loss)):
            kinds = [type(m).__name__ for m in (made if isinstance(made, tuple) else (made,))]
            raise InputError(
                f"--module {options.module} returned {' and '.join(kinds)}: it must return an "
                "nn.Module, or an nn.Module and a loss of its output"
            )
        plain = plain.to(options.device, PRECISIONS[options.dtype]).train()
        self.net: nn.Module = plain
        if isinstance(plain, DFA):
            plain.method = method
        elif method != "bp":
            feedback = Feedback(seed=options.seed)
            self.net = self._tried(
                lambda: DFA(fuse(plain), feedback, method=method), "cannot be wrapped"
            )
        if not any(p.requires_grad for p in self.net.parameters()):
            raise InputError(f"{self._where} has no parameters to train")
        self.method = method
        self.inputs = self._inputs()
        self._target: Tensor | None = None
        self._loss: Loss = loss or self._default_loss
        self.optimizer = self._optimizer()
        self._tried(self.step, f"refused its first step by {method}")

    # A step, in parts that may be named from outside ------------------------------------------

    def step(self) -> Tensor:
        """Forward pass, loss, backward pass and optimizer; the loss."""
        self.clear()
        loss = self.error(self.forward())
        self.backward(loss)
        self.apply()
        return loss

    def clear(self) -> None:
        self.optimizer.zero_grad()

    def forward(self) -> Any:
        autocast = self._options.dtype == "autocast"
        with torch.autocast(self.inputs[0].device.type, torch.bfloat16, enabled=autocast):
            return self.net(*self.inputs)

    def error(self, output: Any) -> Tensor:
        """The loss."""
        return self._loss(output)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def apply(self) -> None:
        self.optimizer.step()

    # What it is made of -----------------------------------------------------------------------

    @property
    def fused(self) -> bool:
        """Whether the optimizer's step is part of the update."""
        return isinstance(self.optimizer, (optim.SGD, optim.AdamW))

    def model(self) -> nn.Module:
        """The network without its wrapper."""
        return self.net.module if isinstance(self.net, DFA) else self.net

    def _inputs(self) -> list[Tensor]:
        options, generator = self._options, torch.Generator().manual_seed(self._options.seed)
        if options.module is None:
            x = torch.randn(options.shape.batch, INPUTS, generator=generator)
            return [x.to(options.device, PRECISIONS[options.dtype])]
        made = []
        for shape, below in options.batch:
            if below is None:
                x = torch.randn(shape, generator=generator).to(PRECISIONS[options.dtype])
            else:
                x = torch.randint(below, shape, generator=generator)
            made.append(x.to(options.device))
        return made

    def _default_loss(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.dim() == 0:
            kind = "a scalar" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise InputError(
                f"{self._where} returned {kind}: without a loss of its own (the factory returns "
                "the network and the loss) it must return one tensor of features or logits"
            )
        rows = output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
        rows = rows.reshape(-1, rows.shape[-1])
        if self._target is None:
            generator = torch.Generator().manual_seed(1)
            shape, classes = rows.shape
            if classes == 1:
                made = torch.randn(shape, 1, generator=generator).to(rows.dtype)
            else:
                made = torch.randint(classes, (shape,), generator=generator)
            self._target = made.to(rows.device)
        if rows.shape[1] == 1:
            return F.mse_loss(rows, self._target)
        return F.cross_entropy(rows, self._target)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Ours where there is something to fuse it with; else torch.optim with the fused step that
        torch has: backpropagation is compared at its best."""
        options, lr = self._options, LEARNING_RATES[self._options.optimizer] * _CALM
        adamw = options.optimizer == "adamw"
        net = self.net
        if options.fused and isinstance(net, DFA) and net.method == "dfa" and net.fused_layers():
            return optim.AdamW(net, lr) if adamw else optim.SGD(net, lr, MOMENTUM)
        fused = torch.device(options.device).type in ("cpu", "cuda") or None
        parameters = [p for p in net.parameters() if p.requires_grad]
        if adamw:
            return torch.optim.AdamW(parameters, lr, fused=fused)
        return torch.optim.SGD(parameters, lr, MOMENTUM, fused=fused)

    def _tried(self, run: Callable[[], Any], what: str) -> Any:
        try:
            return run()
        except InputError:
            raise
        except Exception as failed:
            raise InputError(f"{self._where} {what}: {sentence(failed)}") from failed


def sentence(failed: BaseException) -> str:
    """An exception in one sentence: its type, its first line, and the line of code outside of
    torch where it came from."""
    lines = str(failed).strip().splitlines() or [""]
    said = f"{type(failed).__name__}: {lines[0]}" if lines[0] else type(failed).__name__
    inside = str(Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_tb(failed.__traceback__)):
        if not frame.filename.startswith((inside, "<")):
            return f"{said} ({Path(frame.filename).name}, line {frame.lineno})"
    return said


# Factories --------------------------------------------------------------------------------------


def factory_of(options: Options) -> Factory:
    """The factory that ``--module`` names, or the built-in network's.

    Raises:
        InputError: no such module or function, or what importing it raised.
    """
    if options.module is None:
        return lambda: _mlp(options)
    name, _, attribute = options.module.partition(":")
    if not name or not attribute:
        raise InputError(
            f"--module {options.module!r} is not PACKAGE.MODULE:FACTORY, such as mine.models:make"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it: the folder where it was called
    try:
        found: Any = importlib.import_module(name)
    except Exception as failed:
        if isinstance(failed, ModuleNotFoundError) and failed.name == name:
            raise InputError(f"--module {options.module}: there is no module {name!r}") from None
        raise InputError(
            f"--module {options.module}: importing {name} raised {sentence(failed)}"
        ) from failed
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InputError(
            f"--module {options.module}: {name} has no function or class {attribute!r}"
        )
    return found


def _mlp(options: Options) -> nn.Module:
    shape = options.shape
    sizes = [INPUTS, *[shape.width] * shape.depth]
    layers: dict[str, nn.Module] = {}
    for i, (below, above) in enumerate(itertools.pairwise(sizes), 1):
        layers[f"hidden{i}"] = nn.Linear(below, above)
        layers[f"activation{i}"] = nn.Tanh()
    layers["output"] = nn.Linear(sizes[-1], shape.outputs)
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net
