"""Texts and their encoding: words are counted right, and what is no text is refused."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="needs the extra: dfa_kernels[paper]")

from bench.paper.language import corpus, tokens
from bench.paper.language.corpus import Corpus, Text
from bench.paper.language.tokens import SMALLEST, Vocabulary
from dfa_kernels.training import InputError

REAL = Path(__file__).parents[3] / "shared" / "data" / "wikitext-2"
LINES = [
    " = A title = \n",
    " \n",
    " The <unk> of the @-@ river , 1 @,@ 000 m long , isn 't Ωδός . \n",
    "\ttwo\x1cwords and\xa0three\u2003more\r\n",
    "the river , the river , the river",
]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train(LINES * 3, 300)


def wikitext(folder, names=("train.txt", "valid.txt", "test.txt"), text=None):
    for name in names:
        (folder / name).write_bytes(("".join(LINES) * 3 if text is None else text).encode())
    return folder


# Tokens -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=8))
def test_words_are_counted_whatever_the_text(vocabulary, lines):
    encoded = vocabulary.encode(lines)
    assert encoded[0] == vocabulary.eos and (encoded < vocabulary.size).all()
    assert vocabulary.words(encoded) == sum(len(line.split()) + 1 for line in lines)
    ends = np.flatnonzero(encoded == vocabulary.eos)
    assert len(ends) == len(lines) + 1
    for line, start, end in zip(lines, ends, ends[1:], strict=False):
        told = vocabulary.bpe.decode(encoded[start + 1 : end].tolist(), skip_special_tokens=False)
        written = "".join(vocabulary.bpe.id_to_token(int(n)) for n in encoded[start + 1 : end])
        as_bytes = bytes(_BYTES[character] for character in written)
        assert as_bytes.decode().split() == line.split(), told


def _byte_table():
    """How byte-level encoding writes bytes: those that print as themselves, others from 256 on."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printed]
    return {chr(b): b for b in printed} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTES = _byte_table()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab \n", max_size=9), min_size=1, max_size=9), st.integers(1, 40))
def test_a_beginning_is_whole_lines_with_enough_words(vocabulary, lines, words):
    lines = [line.replace("\n", " ") for line in lines]
    encoded = vocabulary.encode(lines)
    part = vocabulary.beginning(encoded, words)
    counts = np.cumsum([len(line.split()) + 1 for line in lines])
    wanted = next((i + 1 for i, count in enumerate(counts) if count >= words), len(lines))
    np.testing.assert_array_equal(part, vocabulary.encode(lines[:wanted]))


def test_training_is_deterministic_and_keeps_to_the_size(vocabulary):
    again = Vocabulary.train(LINES * 3, 300)
    assert again.bpe.to_str() == vocabulary.bpe.to_str()
    assert vocabulary.size == 300 and vocabulary.eos == 299
    assert Vocabulary.train(["ab ab"], 5000).size == 259  # two merges, and no more pairs


def test_frequent_words_are_one_piece(vocabulary):
    assert len(vocabulary.encode(["the river"])) == 1 + 2 + 1


def test_tokens_are_cached_by_the_texts_content(tmp_path, monkeypatch):
    texts = corpus.load("wikitext-2", wikitext(tmp_path))
    words = sum(len(line.split()) + 1 for line in ("".join(LINES) * 3).split("\n"))
    _, first = tokens.prepare(texts, 300, tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(Vocabulary, "train", lambda *_: pytest.fail("trained again"))
        patched.setattr(Vocabulary, "encode", lambda *_: pytest.fail("encoded again"))
        vocabulary, again = tokens.prepare(texts, 300, tmp_path / "cache")
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(first[split], again[split])
        assert vocabulary.words(again[split]) == words
    (tmp_path / "test.txt").write_text("another text\n")
    _, other = tokens.prepare(texts, 300, tmp_path / "cache")
    assert len(other["test"]) < len(first["test"])
    assert tokens.prepare(texts, 270, tmp_path / "cache")[0].size == 270


@pytest.mark.parametrize("name", ["bpe.json", "test.npy"])
def test_a_damaged_cache_is_named(tmp_path, name):
    texts = corpus.load("wikitext-2", wikitext(tmp_path))
    tokens.prepare(texts, 300, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=rf"{name} is damaged .*: delete it"):
        tokens.prepare(texts, 300, tmp_path / "cache")


# Texts ------------------------------------------------------------------------------------------


def test_both_names_of_wikitexts_files_are_found(tmp_path):
    names = ("wiki.train.tokens", "valid.txt", "wiki.test.tokens")
    texts = corpus.load("wikitext-103", wikitext(tmp_path, names))
    assert [text.files[0].name for text in texts] == list(names)
    lines = list(texts.test.lines())
    assert "".join(lines) == "".join(LINES) * 3 and all("\n" not in line[:-1] for line in lines)


@pytest.mark.parametrize(
    "missing, why",
    [
        ("train.txt", "holds neither train.txt nor wiki.train.tokens"),
        ("test.txt", "holds neither test.txt nor wiki.test.tokens"),
    ],
)
def test_a_missing_file_is_named(tmp_path, missing, why):
    (wikitext(tmp_path) / missing).unlink()
    with pytest.raises(InputError, match=why):
        corpus.load("wikitext-2", tmp_path)


def test_a_root_is_needed_by_files_alone(tmp_path):
    with pytest.raises(InputError, match="--data wikitext-2 needs --root DIR"):
        corpus.load("wikitext-2", None)
    with pytest.raises(InputError, match="--data python needs no --root"):
        corpus.load("python", tmp_path)


@pytest.mark.parametrize("name", ["train.txt", "valid.txt", "test.txt"])
def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path, name):
    (wikitext(tmp_path) / name).write_bytes(b"fine\n\nalso \xc3\xa9 fine\nnot \xff fine\n")
    texts = corpus.load("wikitext-2", tmp_path)
    with pytest.raises(InputError, match=rf"{name}, line 4: byte 0xff in column 5 is not UTF-8"):
        tokens.prepare(texts, 300, tmp_path / "cache")


@pytest.mark.parametrize("name", ["train.txt", "valid.txt", "test.txt"])
@pytest.mark.parametrize("text", [b"", b" \n\n"])
def test_a_text_without_words_is_named(tmp_path, name, text):
    (wikitext(tmp_path) / name).write_bytes(text)
    texts = corpus.load("wikitext-2", tmp_path)
    with pytest.raises(InputError, match=rf"{name} holds no words"):
        tokens.prepare(texts, 300, tmp_path / "cache")


def test_the_library_is_split_by_name_alone(tmp_path):
    for i in range(64):
        path = tmp_path / ("pkg" if i % 2 else "") / f"module{i}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"x = {i}\n")
    for left_out in ("test/test_a.py", "site-packages/b.py", "pkg/tests/c.py"):
        (tmp_path / left_out).parent.mkdir(exist_ok=True)
        (tmp_path / left_out).write_text("left = out\n")
    texts = corpus.library(tmp_path)
    files = [path for text in texts for path in text.files]
    assert len(files) == len(set(files)) == 64
    assert "left" not in "".join("".join(text.lines()) for text in texts)
    before, digest = {text.name: set(text.files) for text in texts}, texts.digest()
    (tmp_path / "module2.py").write_text("changed = True\n")
    (tmp_path / "added.py").write_text("added = True\n")
    after = corpus.library(tmp_path)
    assert after.digest() != digest
    for text in after:
        assert set(text.files) - {tmp_path / "added.py"} == before[text.name]


def test_this_pythons_own_library_will_do(tmp_path):
    texts = corpus.load("python", None, limit=300_000)
    size = sum(path.stat().st_size for text in texts for path in text.files)
    assert 200_000 < size <= 300_000 + 100_000
    vocabulary, made = tokens.prepare(texts, SMALLEST, tmp_path)
    assert all(vocabulary.words(part) > 100 for part in made.values())
    whole = corpus.load("python", None)
    stdlib = Path(sysconfig.get_path("stdlib"))
    assert all(stdlib in path.parents for text in whole for path in text.files)
    assert len(whole.train.files) > 8 * len(whole.test.files) > 0


def test_a_python_without_source_says_so(tmp_path):
    (tmp_path / "one.py").write_text("pass\n")
    with pytest.raises(InputError, match="has no source for the .* split under"):
        corpus.library(tmp_path)


def test_the_digest_tells_texts_and_splits_apart(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("one"), b.write_text("two")
    made = [
        Corpus(*(Text(n, files) for n, files in zip(("t", "v", "w"), splits, strict=True))).digest()
        for splits in ([(a,), (a,), (b,)], [(a,), (b,), (a,)], [(a, a), (b,), ()])
    ]
    assert len(set(made)) == 3


@pytest.mark.skipif(not REAL.is_dir(), reason="WikiText-2 is not there")
def test_wikitext_2_has_the_published_number_of_words():
    texts = corpus.load("wikitext-2", REAL)
    vocabulary = Vocabulary.train(list(texts.validation.lines())[:300], 400)
    assert vocabulary.words(vocabulary.encode(texts.validation.lines())) == 217_646
