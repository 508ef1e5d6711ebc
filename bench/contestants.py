"""Who takes part in `bench.step`, by the names of its table: the package's contestants on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dfa_kernels.throughput import by_hand, contestants, rivals
from dfa_kernels.throughput.contestants import Built, Setting
from dfa_kernels.throughput.networks import MLP, Shape, Task
from dfa_kernels.throughput.timing import Run


def _on_cpu(build: Callable[[Task, Setting], Built]) -> Callable[[Shape], Run]:
    return lambda shape: build(MLP.of(shape), Setting(torch.device("cpu"))).run


#: In the order of the table; the first is what the others are divided by.
CONTESTANTS: dict[str, Callable[[Shape], Run]] = {
    "backpropagation": _on_cpu(contestants.eager),
    "compiled backpropagation": _on_cpu(contestants.compiled),
    "hand-written backpropagation": _on_cpu(by_hand.backpropagation),
    "TinyDFA": _on_cpu(rivals.tinydfa),
    "BioTorch": _on_cpu(rivals.biotorch),
    "hand-written DFA": _on_cpu(by_hand.direct_feedback),
    "dfa_kernels, torch.optim": _on_cpu(contestants.plain_optimizer),
    'dfa_kernels, update="backward"': _on_cpu(contestants.in_backward),
    "dfa_kernels": _on_cpu(contestants.ours),
}
