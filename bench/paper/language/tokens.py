"""Byte-pair encoding of the words, trained on the training split and cached (Sennrich et al. 2016).

Byte-level: any UTF-8 text has an encoding and there is no unknown piece. A line is its words, each
from a piece that begins with a space on, and one <eos>: so the words of any stretch of tokens can
be counted, whatever the vocabulary. White space itself is not modelled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bench.paper.language.corpus import Corpus
from dfa_kernels.training import InputError

SMALLEST = 258  # 256 bytes, one merge, <eos>
_SPACE = "Ġ"  # how byte-level encoding writes the byte 32
_LINES = 2000  # encoded in one call
_FORMAT = 1  # of the cache


class Vocabulary:
    """``size`` pieces, the last of which is ``eos``."""

    def __init__(self, bpe: Tokenizer) -> None:
        self.bpe = bpe
        self.eos = bpe.get_vocab_size()
        self.size = self.eos + 1
        pieces = bpe.get_vocab()
        #: Whether a piece begins a word; the end of a line counts as one.
        self.begins = np.zeros(self.size, bool)
        self.begins[[n for piece, n in pieces.items() if piece.startswith(_SPACE)]] = True
        self.begins[self.eos] = True

    @classmethod
    def train(cls, lines: Iterable[str], size: int) -> Vocabulary:
        """At most ``size`` pieces, and fewer where the text has no more pairs to merge."""
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False
        )
        bpe.train_from_iterator(map(_words, lines), trainer)
        return cls(bpe)

    def encode(self, lines: Iterable[str]) -> np.ndarray:
        """One <eos>, from which the first word is predicted, then each line and its <eos>."""
        kind = np.uint16 if self.size <= 1 << 16 else np.int32
        parts = [np.array([self.eos], kind)]
        source = map(_words, lines)
        while batch := list(islice(source, _LINES)):
            encoded = self.bpe.encode_batch(batch, add_special_tokens=False)
            pieces = [piece for line in encoded for piece in (*line.ids, self.eos)]
            parts.append(np.array(pieces, kind))
        return np.concatenate(parts)

    def words(self, tokens: np.ndarray) -> int:
        """How many words the tokens after the first one are."""
        return int(self.begins[tokens[1:]].sum())

    def beginning(self, tokens: np.ndarray, words: int) -> np.ndarray:
        """The first lines of ``tokens`` that hold at least so many words, or all."""
        counted = np.cumsum(self.begins[tokens[1:]])
        enough = np.flatnonzero((counted >= words) & (tokens[1:] == self.eos))
        return tokens if not len(enough) else tokens[: enough[0] + 2]


def prepare(corpus: Corpus, size: int, folder: Path) -> tuple[Vocabulary, dict[str, np.ndarray]]:
    """The vocabulary and each split's tokens, made once and kept under ``folder``; an array there
    is mapped, not read.

    Raises:
        InputError: a text is empty, not UTF-8, or the folder cannot be used.
    """
    here = folder / f"{corpus.digest()}-{size}-{_FORMAT}-{tokenizers.__version__}"
    try:
        here.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise InputError(f"{here} cannot be made: {refused.strerror}") from None
    vocabulary = _vocabulary(corpus, size, here / "bpe.json")
    tokens = {}
    for text in corpus:
        path = here / f"{text.name}.npy"
        if not path.exists():
            made = vocabulary.encode(text.lines())
            if vocabulary.words(made) == int((made[1:] == vocabulary.eos).sum()):
                raise InputError(f"{text.describe()} holds no words")
            _whole(path, partial(_save, array=made))
        tokens[text.name] = _cached(path, lambda path: np.load(path, mmap_mode="r"))
    return vocabulary, tokens


def _vocabulary(corpus: Corpus, size: int, path: Path) -> Vocabulary:
    if not path.exists():
        made = Vocabulary.train(corpus.train.lines(), size)
        if made.size < SMALLEST:
            raise InputError(f"{corpus.train.describe()} holds no words: its vocabulary is empty")
        _whole(path, lambda beside: made.bpe.save(str(beside)))
    return Vocabulary(_cached(path, lambda path: Tokenizer.from_file(str(path))))


def _words(line: str) -> str:
    return " ".join(line.split())


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``path``, then move there."""
    beside = path.with_name(path.name + ".partial")
    try:
        write(beside)
        os.replace(beside, path)
    except OSError as failed:
        raise InputError(f"{path} cannot be written: {failed.strerror}") from None


def _cached(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except Exception as broken:  # tokenizers raises nothing narrower
        raise InputError(f"{path} is damaged ({broken}): delete it") from None
