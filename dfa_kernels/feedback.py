"""What the feedback matrix B is: a seed, a distribution and a scale (Launay et al. 2020, sec. 2).

An entry of B is a pure function of (seed, stream, k, j), with k the error index (row) and j the
feature index (column), so B is the same matrix on every device, in every precision and after
every restart, and a seed is its whole description. The random words are Philox4x32-10's
(Salmon et al., SC'11): key = the low and high 32 bits of the seed, counter = (block, k, stream, 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# Entries made at once: each is 8 bytes before it is cast, so the scratch of a large B stays near
# 10 MB.
_ENTRIES_PER_CHUNK = 1 << 18


def philox(key: tuple[int, int], counter: tuple[Tensor | int, ...]) -> tuple[Tensor, ...]:
    """Four 32-bit words of Philox4x32-10 for every element of the broadcast ``counter``.

    ``key`` holds two and ``counter`` four 32-bit values; the words come back as int64 tensors,
    since torch has no arithmetic on uint32.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(
        *(torch.as_tensor(c, dtype=torch.int64) for c in counter)
    )
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 wraps at 2**64: the low 64 bits of the product, and so both its words, are exact.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD
        c2, c3 = ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _rademacher(words: Tensor) -> Tensor:
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=words.device)) & 1
    return 2 * bits - 1


def _uniform(words: Tensor) -> Tensor:
    byte = (words.unsqueeze(-1) >> torch.arange(0, 32, 8, device=words.device)) & 0xFF
    return (2 * byte - 255).double() / 256


def _normal(words: Tensor) -> Tensor:
    unit = (words.double() + 0.5) * 2.0**-32
    radius = torch.sqrt(-2 * torch.log(unit[..., 0::2]))
    angle = 2 * math.pi * unit[..., 1::2]
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)


class Distribution(NamedTuple):
    """How four Philox words become entries of B.

    ``entries``: consecutive columns that one call fills; ``variance``: of an entry; ``expand``:
    words (…, 4) → values, whose trailing dimensions flatten to those columns in order;
    ``storage``: the smallest dtype that holds every value exactly, if one is smaller than fp32.
    """

    entries: int
    variance: float
    expand: Callable[[Tensor], Tensor]
    storage: torch.dtype | None = None


#: The one list of distributions. A kernel gets each from one function of the same name.
DISTRIBUTIONS = {
    "rademacher": Distribution(128, 1.0, _rademacher, torch.int8),
    "uniform": Distribution(16, 1 / 3, _uniform, torch.bfloat16),
    "normal": Distribution(4, 1.0, _normal),
}

#: What `Feedback.distribution` says of a matrix that the user gave.
MATRIX = "matrix"


@dataclass(frozen=True)
class Feedback:
    """What B is.

    Args:
        distribution: ``"rademacher"`` (±1), ``"uniform"`` (256 levels in (−1, 1)) or ``"normal"``.
        seed: 0 ≤ seed < 2⁶³.
        scale: factor on e·B. None: 1 / √(3·variance·D_max), the spread of the paper's
            uniform[−1, 1) / √D_max; 1 for a matrix from :meth:`from_matrix`.
        shared: True (the paper's choice): every point takes the first columns of one matrix
            E × D_max, stream 0. False: point i has its own, stream i.
        values: the matrix that :meth:`from_matrix` was given, which is the way to set it; None
            for every other distribution.

    Raises:
        ValueError: an unknown distribution, ``values`` without :meth:`from_matrix`, a seed that is
            not an int or out of range, a scale that is not finite.
    """

    distribution: str = "rademacher"
    seed: int = 0
    scale: float | None = None
    shared: bool = True
    values: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.distribution == MATRIX) != (self.values is not None) or (
            self.values is None and self.distribution not in DISTRIBUTIONS
        ):
            known = ", ".join(DISTRIBUTIONS)
            raise ValueError(
                f"unknown feedback distribution {self.distribution!r}: known are {known}, "
                "and Feedback.from_matrix takes a matrix of your own"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"the feedback seed must be an int, got {self.seed!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"the feedback seed must be in [0, 2**63), got {self.seed}")
        if self.scale is not None and not isinstance(self.scale, (int, float)):
            raise ValueError(f"the feedback scale must be a number, got {self.scale!r}")
        if self.scale is not None and not math.isfinite(self.scale):
            raise ValueError(f"the feedback scale must be finite, got {self.scale}")

    @classmethod
    def from_matrix(cls, matrix: Tensor, *, scale: float | None = None) -> Feedback:
        """Feedback through a matrix (E, D_max) of your own, taken as it is; all points share it.

        It is not copied: ``values`` shares its memory, and B changes where the matrix is written.

        Raises:
            ValueError: not two-dimensional, or not of a real floating dtype.
            TypeError: no tensor.
        """
        if not isinstance(matrix, Tensor):
            raise TypeError(f"a feedback matrix must be a tensor, got a {type(matrix).__name__}")
        if matrix.dim() != 2 or not matrix.is_floating_point():
            raise ValueError(
                "a feedback matrix must be a real floating tensor (E, D_max), "
                f"got {matrix.dtype} of shape {tuple(matrix.shape)}"
            )
        return cls(distribution=MATRIX, scale=scale, values=matrix.detach())

    def scale_for(self, widest: int) -> float:
        """The factor on e·B where the widest point has ``widest`` features (D_max)."""
        if self.scale is not None:
            return float(self.scale)
        if self.values is not None:
            return 1.0
        return 1 / math.sqrt(3 * DISTRIBUTIONS[self.distribution].variance * max(widest, 1))

    def stream(self, point: int) -> int:
        """The stream that the ``point``-th point reads."""
        return 0 if self.shared else point

    def matrix(
        self,
        error_width: int,
        width: int,
        stream: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """B, materialised and unscaled: (error_width, width) in ``dtype`` on ``device``. Of a
        user's matrix in that dtype on that device it is a view.

        Raises:
            ValueError: a user's matrix has another height or fewer columns.
        """
        if self.values is not None:
            self.check_shape(error_width, width, "a point")
            return self.values[:, :width].to(device=device, dtype=dtype)
        entries, _, expand, _ = DISTRIBUTIONS[self.distribution]
        key = (self.seed & _WORD, self.seed >> 32)
        blocks = torch.arange(-(-width // entries), device=device)
        matrix = torch.empty(error_width, width, dtype=dtype, device=device)
        rows = max(1, _ENTRIES_PER_CHUNK // max(1, entries * len(blocks)))
        for start in range(0, error_width, rows):
            k = torch.arange(start, min(start + rows, error_width), device=device)
            words = torch.stack(philox(key, (blocks, k[:, None], stream, 0)), dim=-1)
            matrix[start : start + rows] = expand(words).reshape(len(k), -1)[:, :width]
        return matrix

    def check_shape(self, error_width: int, width: int, name: str) -> None:
        """Refuse, before anything is changed, widths that a user's matrix cannot serve.

        Raises:
            ValueError: it has another number of rows, or fewer columns; ``name`` is whose.
        """
        if self.values is None:
            return
        rows, columns = self.values.shape
        if rows != error_width:
            raise ValueError(
                f"the feedback matrix has {rows} rows, but the error has width {error_width}"
            )
        if width > columns:
            raise ValueError(
                f"the feedback matrix has {columns} columns, but {name} has {width} features"
            )

    def identity(self) -> tuple[object, ...]:
        """Equal for two of the same B, whatever their scale."""
        if self.values is None:
            return (self.distribution, self.seed)
        return (self.distribution, self.values.data_ptr(), self.values.shape)

    def describe(self) -> dict[str, object]:
        """What a checkpoint keeps; together with a user's matrix it determines B."""
        return {
            "distribution": self.distribution,
            "seed": self.seed,
            "scale": self.scale,
            "shared": self.shared,
        }
