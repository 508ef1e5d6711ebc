"""A CUDA graph on a CPU: what a block of code started, to be started again on the same tensors."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# What reads an element on the host, or brings one from there.
WAITS = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default,
    aten.is_nonzero.default, aten.lift_fresh.default,
}  # fmt: skip


class Graph(TorchDispatchMode):
    """Within, every operation is noted with its tensors and its numbers; `replay` repeats them all
    and writes what they make to where it was: no Python of the block runs again."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and _storage(old) != _storage(new):
                    old.copy_(new)

    def waits(self):
        """The operations that no CUDA graph can hold, or that would stop the host."""
        return [func for func, *_ in self.calls if func in WAITS]


def _storage(tensor):
    return tensor.untyped_storage().data_ptr()
