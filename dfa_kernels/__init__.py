"""Direct feedback alignment, fast: fused kernels behind a thin PyTorch module."""

from dfa_kernels import backends, optim, testing
from dfa_kernels.alignment import alignment
from dfa_kernels.feedback import Feedback
from dfa_kernels.linear import Linear, fuse
from dfa_kernels.module import DFA
from dfa_kernels.version import __version__

__all__ = [
    "DFA",
    "Feedback",
    "Linear",
    "__version__",
    "alignment",
    "backends",
    "fuse",
    "optim",
    "testing",
]
