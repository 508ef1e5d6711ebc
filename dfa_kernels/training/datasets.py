"""The data sets: scikit-learn's digits, and Fashion-MNIST from its four IDX files.

Inputs are normalised by the mean and standard deviation of all pixels of the training set.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfa_kernels.training import InputError

_IMAGES, _LABELS = 2051, 2049  # the magic numbers of IDX: uint8 in 3 dimensions, and in 1
_FILES = (
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)
_CLASSES = 10
_TEST_SHARE = 0.2  # of digits: 360 of 1797


class Split(NamedTuple):
    """x: (rows, features), normalised. y: (rows,), int64 class numbers below ``classes``."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    def to(self, device: str, dtype: torch.dtype) -> Split:
        return Split(
            self.train_x.to(device, dtype),
            self.train_y.to(device),
            self.test_x.to(device, dtype),
            self.test_y.to(device),
            self.classes,
        )

    @property
    def features(self) -> int:
        return self.train_x.shape[1]


def load(name: str, root: str | None, seed: int) -> Split:
    """The data set ``name`` in float32 on the CPU; ``seed`` decides the split of `digits`.

    Raises:
        InputError: Fashion-MNIST without a ``root``, or a file there that cannot be used.
    """
    if name == "digits":
        return _digits(seed)
    if root is None:
        raise InputError(f"--data {name} needs --root DIR, the folder of {_FILES[0][0]} and others")
    return _fashion_mnist(Path(root))


def _digits(seed: int) -> Split:
    """1797 images of 8x8 pixels, split anew by each seed with every class in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    # scikit-learn takes 32 bits of seed
    parts = train_test_split(x, y, test_size=_TEST_SHARE, stratify=y, random_state=seed % 2**32)
    train_x, test_x, train_y, test_y = parts
    return _normalised(train_x, train_y, test_x, test_y)


@cache
def _fashion_mnist(root: Path) -> Split:
    """60,000 and 10,000 images of 28x28 pixels, in the split that they were published in."""
    if not root.is_dir():
        raise InputError(f"--root {root} is not a folder")
    (train_x, train_y), (test_x, test_y) = (_pair(root, *names) for names in _FILES)
    if train_x.shape[1:] != test_x.shape[1:]:
        raise InputError(
            f"{root} holds training images of {_by(train_x.shape[1:])} pixels and test images of "
            f"{_by(test_x.shape[1:])}"
        )
    return _normalised(train_x, train_y, test_x, test_y)


def _pair(root: Path, images: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
    x = read_idx(root / images, _IMAGES)
    y = read_idx(root / labels, _LABELS)
    if len(x) != len(y):
        raise InputError(f"{root / images} holds {len(x)} images, but {labels} {len(y)} labels")
    if not x.size:
        raise InputError(f"{root / images} holds no images")
    if y.max() >= _CLASSES:
        raise InputError(
            f"{root / labels} holds the label {y.max()}, but the classes are 0 to {_CLASSES - 1}"
        )
    return x, y


def read_idx(path: Path, magic: int) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: big-endian int32 magic number (whose last byte is
    the number of dimensions) and sizes, then the elements in row-major order.

    Raises:
        InputError: the file is missing, not gzip, truncated, too long, or of another magic number.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        with gzip.open(path) as file:
            content = file.read()
    except EOFError:
        raise InputError(
            f"{path} is truncated: its {path.stat().st_size} bytes end inside the gzip stream"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as broken:
        raise InputError(f"{path} is not a sound gzip file: {broken}") from None
    except OSError as refused:
        raise InputError(f"{path} cannot be read: {refused.strerror}") from None
    dimensions = magic % 256
    header = 4 * (1 + dimensions)
    if len(content) >= 4 and (found := struct.unpack(">i", content[:4])[0]) != magic:
        raise InputError(f"{path} begins with the magic number {found}, not {magic}")
    if len(content) < header:
        raise InputError(f"{path} is truncated: {len(content)} bytes of a header of {header}")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    wanted, there = int(np.prod(sizes, dtype=object)), len(content) - header
    if wanted != there:
        what = "truncated" if there < wanted else "too long"
        raise InputError(
            f"{path} is {what}: its header announces {_by(sizes)} = {wanted} bytes, and {there} "
            "follow"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


def _normalised(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray
) -> Split:
    def flat(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.reshape(len(x), -1).astype(np.float32))

    def labels(y: np.ndarray) -> Tensor:
        return torch.from_numpy(y.astype(np.int64))

    x, test = flat(train_x), flat(test_x)
    std, mean = torch.std_mean(x)
    std = std if std > 0 else torch.ones(())  # images of one grey
    return Split((x - mean) / std, labels(train_y), (test - mean) / std, labels(test_y), _CLASSES)


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
