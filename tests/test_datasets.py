"""The data sets: what is read is what was written, and what is broken is named."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="needs the extra: dfa_kernels[train]")

import numpy as np

from dfa_kernels.training import InputError, datasets

NAMES = [name for pair in datasets._FILES for name in pair]
REAL = Path(__file__).parents[2] / "shared" / "data" / "fashion-mnist"


def idx(array: np.ndarray, magic: int) -> bytes:
    return struct.pack(f">i{array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def write(folder: Path, train: int = 30, test: int = 7, pixels: tuple[int, int] = (3, 2)) -> Path:
    """A Fashion-MNIST of a few rows; every second pixel of the first image is its position."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for rows, (images, labels) in zip((train, test), datasets._FILES, strict=True):
        x = generator.integers(0, 256, (rows, *pixels))
        y = np.arange(rows) % 10
        (folder / images).write_bytes(gzip.compress(idx(x, 2051)))
        (folder / labels).write_bytes(gzip.compress(idx(y, 2049)))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "data")


def fashion(root: Path) -> datasets.Split:
    return datasets.load("fashion-mnist", str(root), 0)


def test_idx_is_read_row_by_row(tmp_path: Path) -> None:
    array = np.arange(24).reshape(4, 3, 2)
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(array, 2051)))
    assert (datasets.read_idx(tmp_path / "a.gz", 2051) == array).all()


def test_inputs_are_normalised_by_the_training_set(root: Path) -> None:
    split = fashion(root)
    assert split.train_x.shape == (30, 6) and split.test_x.shape == (7, 6)
    assert split.features == 6 and split.classes == 10
    assert split.train_y.tolist() == [i % 10 for i in range(30)]
    assert split.train_x.mean().abs() < 1e-5 and abs(split.train_x.std() - 1) < 1e-5
    pixels = datasets.read_idx(root / NAMES[0], 2051).reshape(30, 6)
    test = datasets.read_idx(root / NAMES[2], 2051).reshape(7, 6)
    wanted = (test - pixels.mean()) / pixels.std(ddof=1)
    assert np.abs(split.test_x.numpy() - wanted).max() < 1e-5


def test_images_of_one_grey_stay_finite(root: Path) -> None:
    (root / NAMES[0]).write_bytes(gzip.compress(idx(np.full((30, 3, 2), 9), 2051)))
    assert fashion(root).train_x.isfinite().all()


def test_digits_are_split_by_seed_with_every_class_in_proportion() -> None:
    one, again, other = (datasets.load("digits", None, seed) for seed in (1, 1, 2))
    assert (one.train_x.shape, one.test_x.shape) == ((1437, 64), (360, 64))
    assert all(
        torch.equal(a, b) for a, b in zip(one[:4], again[:4], strict=True)
    ) and not torch.equal(one.test_y, other.test_y)
    assert one.test_y.bincount(minlength=10).min() >= 34
    assert len(datasets.load("digits", None, 2**40).train_x) == 1437


def test_it_needs_a_root() -> None:
    with pytest.raises(InputError, match="needs --root"):
        datasets.load("fashion-mnist", None, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(InputError, match=f"{name} does not exist"):
        fashion(root)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        fashion(tmp_path / "nowhere")


def _cut_gzip(content: bytes) -> bytes:
    return content[:-20]


def _cut_content(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:-1])


def _cut_header(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:6])


def _longer(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content) + b"\0\0")


def _flipped(content: bytes) -> bytes:
    """Another check sum than the content's."""
    return content[:-8] + bytes(255 - b for b in content[-8:-4]) + content[-4:]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cut_gzip, r"is truncated: its \d+ bytes end inside"),
        (_cut_content, r"is truncated: its header announces .* = (\d+) bytes, and \d+ follow"),
        (_cut_header, r"is truncated: 6 bytes of a header of (8|16)"),
        (_longer, "is too long"),
        (_flipped, "is not a sound gzip file: CRC"),
        (lambda content: b"", "is truncated: 0 bytes"),
        (lambda content: gzip.decompress(content), "is not a sound gzip file"),
        (lambda content: gzip.compress(struct.pack(">i", 7) + bytes(40)), "magic number 7, not 20"),
    ],
    ids=["gzip cut", "content cut", "header cut", "longer", "crc", "empty", "plain", "magic"],
)
def test_a_broken_file_is_named_with_its_numbers(root, name, change, message) -> None:
    path = root / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        fashion(root)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_do_not_belong_together(root: Path) -> None:
    labels = root / NAMES[1]
    labels.write_bytes(gzip.compress(idx(np.zeros(29), 2049)))
    with pytest.raises(InputError, match=r"30 images, but .* 29 labels"):
        fashion(root)
    labels.write_bytes(gzip.compress(idx(np.full(30, 10), 2049)))
    with pytest.raises(InputError, match="the label 10, but the classes are 0 to 9"):
        fashion(root)
    write(root)
    (root / NAMES[2]).write_bytes(gzip.compress(idx(np.zeros((7, 2, 2)), 2051)))
    with pytest.raises(InputError, match="3x2 pixels and test images of 2x2"):
        fashion(root)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not here")
def test_the_real_labels() -> None:
    labels = datasets.read_idx(REAL / NAMES[3], 2049)
    assert np.bincount(labels).tolist() == [1000] * 10
