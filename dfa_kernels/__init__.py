"""Direct feedback alignment, fast: fused kernels behind a thin PyTorch module."""

from dfa_kernels import backends, optim
from dfa_kernels.feedback import Feedback
from dfa_kernels.module import DFA, Linear, fuse
from dfa_kernels.version import __version__


__all__ = ["DFA", "Feedback", "Linear", "__version__", "backends", "fuse", "optim"]
