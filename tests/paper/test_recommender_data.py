"""Criteo's format and plain tables: what is read, and what is refused with file and line."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.paper.recommender import criteo, fields, generated, table
from bench.paper.recommender.__main__ import main
from bench.paper.recommender.fields import MISSING, Counts, encode, split_of
from bench.paper.recommender.table import Layout
from dfa_kernels.training import InputError

BLANK = ["0", *["1"] * 13, *["0000000a"] * 26]


def tsv(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


def changed(position, value):
    row = list(BLANK)
    row[position] = value
    return row


def plain(path, min_count):
    """Criteo's reader once more, row by row in plain Python."""
    rows = [line.split("\t") for line in path.read_text().replace("\r", "").split("\n") if line]
    place = split_of(0, len(rows))

    def key(f, text):
        if not text:
            return None
        if f < criteo.INTEGERS:
            v = int(text)
            return v if v <= 2 else 2 + int(np.log(v) ** 2)
        return int(text, 16)

    keys = [[key(f, text) for f, text in enumerate(row[1:])] for row in rows]
    vocabularies = []
    for f in range(len(criteo.FIELDS)):
        seen = Counter(row[f] for row, p in zip(keys, place, strict=True) if p == 0)
        vocabularies.append(sorted(k for k, n in seen.items() if k is not None and n >= min_count))
    ids = [
        [
            0 if k is None else 2 + v.index(k) if k in v else 1
            for k, v in zip(row, vocabularies, strict=True)
        ]
        for row in keys
    ]
    labels = [int(row[0]) for row in rows]
    return [
        (
            [i for i, p in zip(ids, place, strict=True) if p == number],
            [y for y, p in zip(labels, place, strict=True) if p == number],
        )
        for number in range(3)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("generated") / "rows.tsv"
    assert main(["generate", str(path), "--rows", "1501"]) == 0
    return path


@pytest.mark.parametrize("size", [1 << 25, 9000, 311])
def test_a_file_is_read_as_plain_python_reads_it(written, tmp_path, monkeypatch, size):
    monkeypatch.setattr(criteo.blocks, "__defaults__", (size,))  # 311: a line a block or two
    monkeypatch.setattr(criteo, "_ROWS", max(7, size // 100))
    text = written.read_bytes()
    rows = 1501 if size > 1000 else 60
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"\n".join(text.split(b"\n")[:rows]))  # without a newline at the end
    data = criteo.load(path, tmp_path / "cache", 3)
    for split, (ids, labels) in zip(data.splits.values(), plain(path, 3), strict=True):
        assert split.ids.tolist() == ids
        assert split.labels.tolist() == labels
    assert data.fields[:1] + data.fields[-1:] == ("I1", "C26")
    assert all(
        max(s.ids[:, f].max() for s in data.splits.values()) < n for f, n in enumerate(data.sizes)
    )


def test_windows_line_ends_change_nothing(written, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(written.read_bytes().replace(b"\n", b"\r\n"))
    one, other = (criteo.load(p, tmp_path / "cache", 3) for p in (written, path))
    for name, split in one.splits.items():
        assert np.array_equal(split.ids, other.splits[name].ids)
        assert np.array_equal(split.labels, other.splits[name].labels)


def test_what_was_read_is_read_from_the_cache(written, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = criteo.load(written, cache, 3)
    monkeypatch.setattr(criteo, "parse", lambda *_: pytest.fail("read again"))
    again = criteo.load(written, cache, 3)
    assert np.array_equal(first.splits["test"].ids, again.splits["test"].ids)
    assert isinstance(again.splits["train"].ids, np.memmap)
    with pytest.raises(pytest.fail.Exception):
        criteo.load(written, cache, 4)
    assert [p.name for p in cache.iterdir() if p.name.endswith("partial")] == []
    assert sorted(p.name for p in next(cache.iterdir()).iterdir()) == sorted(
        ["cache.json", *(f"{s}.{k}" for s in fields.SPLITS for k in ("ids", "labels"))]
    )


REFUSED = [
    (BLANK[:-1], r"line 8: 39 tab-separated fields, but a row has 40"),
    ([*BLANK, ""], r"line 8: 41 tab-separated fields"),
    ([""], r"line 8: 1 tab-separated fields"),
    (changed(0, "2"), r"line 8: the label must be 0 or 1, got '2'"),
    (changed(0, "-1"), r"line 8: the label must be 0 or 1, got '-1'"),
    (changed(0, "1.0"), r"line 8: the label must be 0 or 1, got '1.0'"),
    (changed(0, ""), r"line 8: the label must be 0 or 1, got ''"),
    (changed(3, "1.5"), r"line 8: I3 must be an integer or empty, got '1.5'"),
    (changed(13, " 7"), r"line 8: I13 must be an integer or empty, got ' 7'"),
    (changed(14, "xyzxyzxy"), r"line 8: C1 must be 8 hexadecimal digits or empty, got 'xyz"),
    (changed(39, "abc"), r"line 8: C26 must be 8 hexadecimal digits or empty, got 'abc'"),
    (changed(20, "+000000a"), r"line 8: C7 must be 8 hexadecimal digits or empty"),
    (changed(20, "NA"), r"line 8: C7 must be 8 hexadecimal digits or empty, got 'NA'"),
]


@pytest.mark.parametrize("size", [1 << 25, 600, 1])  # bytes: all, two lines or one a block
@pytest.mark.parametrize("row, said", REFUSED, ids=[said[8:40] for _, said in REFUSED])
def test_a_line_that_is_none_is_named(tmp_path, monkeypatch, row, said, size):
    monkeypatch.setattr(criteo.blocks, "__defaults__", (size,))
    path = tsv(tmp_path / "day.tsv", [*[BLANK] * 7, row, *[BLANK] * 3])
    with pytest.raises(InputError, match=r"day\.tsv, " + said):
        criteo.load(path, tmp_path / "cache", 1)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(criteo, "_LINE", 1000)
    monkeypatch.setattr(criteo.blocks, "__defaults__", (600,))
    path = tsv(tmp_path / "day.tsv", [BLANK, BLANK])
    path.write_bytes(path.read_bytes() + b"x" * 5000)
    with pytest.raises(InputError, match=r"day\.tsv, line 3: no end in 1000 bytes"):
        criteo.load(path, tmp_path / "cache", 1)


def test_a_vocabulary_without_values_is_refused(tmp_path):
    rows = [changed(16, f"{n:08x}") for n in range(50)]
    training = int((split_of(0, 50) == 0).sum())
    path = tsv(tmp_path / "day.tsv", rows)
    with pytest.raises(
        InputError, match=rf"day\.tsv: field C3 has no value that its {training} training rows"
    ):
        criteo.load(path, tmp_path / "cache", 2)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_empty_or_missing_file_is_refused(tmp_path):
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(InputError, match=r"empty\.tsv is empty"):
        criteo.load(tmp_path / "empty.tsv", tmp_path / "cache", 1)
    with pytest.raises(InputError, match=r"none\.tsv cannot be read: No such file"):
        criteo.load(tmp_path / "none.tsv", tmp_path / "cache", 1)
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        criteo.load(tmp_path, tmp_path / "cache", 1)
    (tmp_path / "file").write_text("")
    tsv(tmp_path / "day.tsv", [BLANK])
    with pytest.raises(InputError, match=r"cache .* cannot be written"):
        criteo.load(tmp_path / "day.tsv", tmp_path / "file", 1)


def test_bins_grow_with_the_square_of_the_logarithm():
    assert [criteo.bin_of(str(v)) for v in (-3, 0, 1, 2, 3, 4, 5, 100, 10**6)] == [
        -3, 0, 1, 2, 3, 3, 4, 23, 192,
    ]  # fmt: skip
    assert criteo.bin_of("-" + "9" * 30) != MISSING


# Vocabularies and splits ------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(-5, 5) | st.just(MISSING), max_size=12), max_size=8),
    st.integers(1, 4),
)
def test_counts_merge_to_what_a_counter_counts(batches, min_count):
    counts, seen = Counts(), Counter()
    for batch in batches:
        keys = np.array(batch, np.int64)
        counts.add(keys, np.ones(len(keys), np.int64))  # a key may stand there more than once
        seen.update(batch)
    expected = sorted(k for k, n in seen.items() if n >= min_count and k != MISSING)
    assert counts.vocabulary(min_count).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(-9, 9), min_size=1), st.lists(st.integers(-12, 12) | st.just(MISSING)))
def test_values_are_numbered_after_the_two_reserved(known, keys):
    vocabulary = np.array(sorted(known), np.int64)
    ids = encode(np.array(keys, np.int64), vocabulary)
    for key, i in zip(keys, ids, strict=True):
        assert i == (
            0 if key == MISSING else 1 if key not in known else 2 + sorted(known).index(key)
        )


def test_a_rows_split_is_a_function_of_its_number():
    whole = split_of(0, 100_000)
    assert np.array_equal(whole[777:1234], split_of(777, 457))
    shares = np.bincount(whole) / len(whole)
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.005)


# Generated rows ---------------------------------------------------------------------------------


def test_a_generated_row_does_not_depend_on_how_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "_CHUNK", 100)
    many = generated.write(tmp_path / "many", 250)
    few = generated.write(tmp_path / "few", 130)
    assert np.array_equal(many[:130], few)
    assert (tmp_path / "many").read_text().startswith((tmp_path / "few").read_text())
    assert len(set((tmp_path / "many").read_text().splitlines())) == 250
    generated.write(tmp_path / "other", 10, seed=1)
    assert not (tmp_path / "few").read_text().startswith((tmp_path / "other").read_text())


def test_generated_labels_are_coins_of_the_true_probabilities():
    rows = next(generated.Truth(3).rows(50_000))
    order = np.argsort(rows.probabilities)
    for tenth in np.array_split(order, 10):
        said, seen = rows.probabilities[tenth].mean(), rows.labels[tenth].mean()
        assert abs(seen - said) < 5 * (said * (1 - said) / len(tenth)) ** 0.5
    assert 0.15 < rows.labels.mean() < 0.35


def test_generated_text_holds_the_rows():
    rows = next(generated.Truth(0).rows(40))
    lines = [line.split("\t") for line in generated.as_text(rows).decode().splitlines()]
    for n, line in enumerate(lines):
        assert line[0] == str(rows.labels[n])
        wanted = ["" if v < 0 else str(v) for v in rows.integers[n]]
        assert line[1:14] == wanted
        assert [text == "" for text in line[14:]] == (rows.categories[n] < 0).tolist()


def test_different_values_of_a_field_have_different_digits():
    values = 20_000
    empty = np.full((values, 13), -1)
    categories = np.repeat(np.arange(values)[:, None], 26, 1)
    rows = generated.Rows(empty, categories, np.zeros(values, np.uint8), np.zeros(values))
    column = [line.split("\t")[20] for line in generated.as_text(rows).decode().splitlines()]
    assert len(set(column)) == values and all(len(text) == 8 for text in column)


# Tables -----------------------------------------------------------------------------------------


def csv(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path.parent


def table_lines(rows=400):
    draw = np.random.default_rng(0)
    lines = ["age,job,y"]
    for _ in range(rows):
        age, job = draw.integers(18, 90), draw.choice(["cook", "clerk", "?", '"smith, black"'])
        lines.append(f"{age}, {job},{draw.choice(['yes', 'no'])}")
    return lines


def test_a_table_is_read_with_bins_missing_values_and_quotes(tmp_path):
    lines = table_lines()
    root = csv(tmp_path / "t.csv", [*lines, ""])
    data = table.load(root, Layout("t.csv", "y"), 1, "t")
    assert data.fields == ("age", "job")
    assert data.sizes[1] == 2 + 3 and 20 < data.sizes[0] <= 2 + 33
    place = split_of(0, 400)
    train = [line for line, p in zip(lines[1:], place, strict=True) if p == 0]
    split = data.splits["train"]
    assert split.labels.tolist() == [int(line.endswith("yes")) for line in train]
    assert (split.ids[:, 1] == 0).tolist() == ["?" in line for line in train]
    ages = np.array([int(line.split(",")[0]) for line in train])
    order = np.argsort(ages, kind="stable")
    assert (np.diff(split.ids[order, 0]) >= 0).all()  # bins keep the order of the numbers
    sizes = np.bincount(split.ids[:, 0])[2:]
    assert sizes.max() < 4 * sizes.min() + 15


def test_few_numbers_have_a_bin_each_and_dropped_columns_are_gone(tmp_path):
    lines = ["a,b,y", *[f"{n % 3},{n},{n % 2}" for n in range(100)]]
    data = table.load(csv(tmp_path / "t.csv", lines), Layout("t.csv", "y", drop=("b",)), 1, "t")
    assert data.fields == ("a",) and data.sizes == (5,)
    numbers = np.arange(100)[split_of(0, 100) == 0]
    assert data.splits["train"].ids[:, 0].tolist() == (2 + numbers % 3).tolist()


def test_a_table_without_header_and_with_another_delimiter(tmp_path):
    root = csv(tmp_path / "t.data", [f"{n % 5};{'b' if n % 3 else 'a'}" for n in range(60)])
    data = table.load(root, Layout("t.data", "y", columns=("x", "y"), delimiter=";"), 1, "t")
    assert data.fields == ("x",)
    assert sum(len(s.labels) for s in data.splits.values()) == 60


@pytest.mark.parametrize(
    "lines, said",
    [
        (["a,y", "1,no", "2"], r"t\.csv, line 3: 1 fields, but 2 columns"),
        (["a,y", "1,no", "2,yes,3"], r"t\.csv, line 3: 3 fields, but 2 columns"),
        (["a,y", *["1,no"] * 9], r"t\.csv, lines 2 to 10: the label 'y' is 'no' in all 9 rows"),
        (["a,y", "1,no", "1,yes", "1,perhaps"], r"line 4: 'perhaps' is a third value of the lab"),
        (["a,y", "1,no", "1,"], r"t\.csv, line 3: the label is missing"),
        (["a,z", "1,no"], r"line 1: no column is named 'y', as --label asks: there are a, z"),
        (["a,a,y", "1,1,no"], r"line 1: two columns are named 'a'"),
        (["y", "no", "yes"], r"no field is left beside the label"),
        (["a,y"], r"t\.csv has no rows"),
        ([""], r"t\.csv has no rows"),
        (["a,y", *["?,no", "?,yes"] * 9], r"field a has no value .* leaves its vocabulary empty"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, lines, said):
    root = csv(tmp_path / "t.csv", lines)
    with pytest.raises(InputError, match=said):
        table.load(root, Layout("t.csv", "y"), 1, "t")


def test_a_column_to_drop_must_be_there(tmp_path):
    root = csv(tmp_path / "t.csv", table_lines(10))
    with pytest.raises(InputError, match="no column is named 'duration', as --drop asks"):
        table.load(root, Layout("t.csv", "y", drop=("duration",)), 1, "t")


def test_what_cannot_be_opened_or_decoded_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv cannot be read: No such file"):
        table.load(tmp_path, Layout("none.csv", "y"), 1, "t")
    (tmp_path / "t.csv").write_bytes(b"a,y\n\xff\xfe,no\n")
    with pytest.raises(InputError, match=r"t\.csv is not UTF-8"):
        table.load(tmp_path, Layout("t.csv", "y"), 1, "t")


def test_rare_words_share_a_place(tmp_path):
    lines = ["job,y", *[f"{'cook' if n % 7 else f'rare{n}'},{n % 2}" for n in range(100)]]
    data = table.load(csv(tmp_path / "t.csv", lines), Layout("t.csv", "y"), 5, "t")
    assert data.sizes == (3,)
    numbers = np.arange(100)[split_of(0, 100) == 2]
    assert data.splits["test"].ids[:, 0].tolist() == [2 if n % 7 else 1 for n in numbers]
