"""Planetoid's files, and the embedded graph: what is read, and what is refused in a sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planetoid_files import Planetoid, named, pickled
from scipy.sparse import csr_matrix

from bench.paper.__main__ import main
from bench.paper.graph import blocks, data, planetoid
from bench.paper.graph.classification import Classification
from bench.paper.graph.problem import Setting
from dfa_kernels.training import InputError

REAL = Path(__file__).parents[3] / "shared" / "data" / "planetoid"


# What is read -----------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    order=st.permutations(range(6)),
    gaps=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    train=st.integers(1, 9),
    classes=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_every_document_lands_on_its_node(tmp_path_factory, order, gaps, train, classes, seed):
    ascending = train + 501 + np.arange(6) + np.cumsum(gaps)
    test = [int(ascending[i]) for i in order]
    made = Planetoid(train=train, classes=classes, test=test, seed=seed)
    graph = planetoid.load(made.write(tmp_path_factory.mktemp("raw")), "citeseer")
    parts, nodes = made.parts, max(test) + 1
    assert graph.x.shape == (nodes, 30) and len(graph.y) == nodes
    known = train + 501
    assert np.array_equal(graph.x[:known].numpy(), parts["allx"].toarray())
    assert np.array_equal(graph.y[:known].numpy(), parts["ally"].argmax(1))
    for row, node in enumerate(test):
        assert np.array_equal(graph.x[node].numpy(), parts["tx"][row].toarray()[0])
        assert graph.y[node] == parts["ty"][row].argmax()
    isolated = sorted(set(range(known, nodes)) - set(test))
    assert (graph.x[isolated] == 0).all() and (graph.y[isolated] == -1).all()
    assert graph.train.tolist() == list(range(train))
    assert graph.validation.tolist() == list(range(train, train + 500))
    assert graph.test.tolist() == sorted(test)
    wanted = {(a, b) for a, others in parts["graph"].items() for b in others if a != b}
    assert {tuple(e) for e in graph.edges.T.tolist()} == wanted | {(b, a) for a, b in wanted}
    assert len({tuple(e) for e in graph.edges.T.tolist()}) == graph.edges.shape[1]


@pytest.mark.parametrize("model", ["gcn", "cheb", "spline", "gat", "dna-small"])
def test_a_graph_with_isolated_nodes_can_be_trained_on(tmp_path, model):
    graph = planetoid.load(Planetoid(test=(511, 513, 509, 516, 530)).write(tmp_path), "citeseer")
    run = Classification(graph, Setting(model, "strong", "rademacher", 2)).run("dfa", 0.01, 0)
    for _ in range(2):
        assert np.isfinite(run.step())
    assert run.outputs().isfinite().all()
    assert all(p.grad.isfinite().all() for p in run.net.parameters())


def test_arrays_by_columns_and_of_eight_bytes_are_read_alike(tmp_path):
    made = Planetoid()
    made.parts["ally"] = np.asfortranarray(made.parts["ally"].astype(">i8"))
    made.parts["allx"] = made.parts["allx"].astype(np.float64)
    graph = planetoid.load(made.write(tmp_path), "citeseer")
    assert np.array_equal(graph.y[:509].numpy(), made.parts["ally"].argmax(1))
    assert graph.x.dtype == torch.float32


@pytest.mark.skipif(not REAL.is_dir(), reason="no Planetoid files beside the checkout")
@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [
        ("cora", (2708, 5278, 1433, 140), [351, 217, 418, 818, 426, 298, 180]),
        ("pubmed", (19717, 44324, 500, 60), [4103, 7739, 7875]),
    ],
)
def test_the_real_files_have_their_published_counts(name, sizes, classes):
    graph = planetoid.load(REAL, name)
    has = graph.describe()
    assert tuple(has[key] for key in ("nodes", "edges", "features", "train")) == sizes
    assert torch.bincount(graph.y).tolist() == classes
    assert torch.bincount(graph.y[graph.train]).tolist() == [20] * len(classes)
    assert has["validation"] == 500 and has["test"] == 1000


# What is refused --------------------------------------------------------------------------------


def spoilt(change):
    made = Planetoid()
    change(made.parts, made)
    return made


def rows(matrix, kept):
    return matrix[:kept]


def put(part, value):
    return lambda parts, made: parts.update({part: value(parts[part])})


def not_finite(matrix):
    matrix = matrix.copy()
    matrix.data[matrix.indptr[17]] = np.nan
    return matrix


def out_of_range(matrix):
    return pickled(matrix).replace(
        matrix.indices.astype("<i4").tobytes(),
        np.full(len(matrix.indices), 30, "<i4").tobytes(),
    )


def at(where, value):
    def change(hot):
        hot = hot.copy()
        hot[where] = value
        return hot

    return change


def graph_with(node, *others):
    return lambda graph: graph | {node: list(others)}


def indices(*nodes):
    return lambda parts, made: setattr(made, "test", list(nodes))


REFUSED = {
    "x": (put("x", lambda m: rows(m, 7)), r"citeseer\.x has 7 rows, but ind.citeseer.y has 8"),
    "ally": (put("ally", lambda m: rows(m, 508)),
             "allx has 509 rows, but ind.citeseer.ally has 508"),
    "tx": (put("tx", lambda m: rows(m, 3)), "tx has 3 rows, but ind.citeseer.ty has 4"),
    "test.index": (indices(511, 513, 509), "tx has 4 rows, but ind.citeseer.test.index has 3"),
    "columns": (put("tx", lambda m: m[:, :29]), "tx has 29 columns, but ind.citeseer.allx has 30"),
    "classes": (put("ty", lambda m: np.eye(4, dtype=np.int32)),
                "ty has 4 columns, but ind.citeseer.ally has 3"),
    "not the same": (put("x", lambda m: m[::-1]),
                     r"citeseer\.x: row \d differs from row \d of ind.citeseer.allx"),
    "two classes": (put("ty", at(2, 1)), r"ty: row 2 is \[1, 1, 1\], not a single 1"),
    "no class": (put("ally", at(300, 0)), r"ally: row 300 is \[0, 0, 0\], not a single 1"),
    "class 7": (put("y", at((5, 1), 7)), r"citeseer\.y: row 5 is \["),
    "no validation": (lambda p, m: p.update(allx=p["allx"][:507], ally=p["ally"][:507]),
                      "allx has 507 rows, but 8 to train on and 500 to validate on need 508"),
    "NaN": (put("allx", not_finite), "allx: row 17 holds a number that is not finite"),
    "column 30": (put("tx", out_of_range), "tx holds a broken csr_matrix: .*30"),
    "neighbour": (put("graph", graph_with(5, 3, 517)),
                  "graph: node 5 has the neighbour 517, but there are only 0 to 516"),
    "negative": (put("graph", graph_with(5, -1)), "graph: node 5 has the neighbour -1"),
    "node": (put("graph", graph_with(600, 3)), "graph: there is no node 600, only 0 to 516"),
    "no number": (put("graph", graph_with(5, "a")), "the list of 5 holds 'a', which is no number"),
    "no list": (put("graph", lambda g: g | {4: 7}), "graph: entry 4 is no list"),
    "known": (indices(511, 513, 508, 516), "line 3: node 508 is a row of allx already"),
    "twice": (indices(511, 513, 511, 516), "test.index, line 3: node 511 is on line 1 too"),
    "far away": (indices(511, 513, 509, 5000000),
                 "test.index, line 4: node 5000000 is not in ind.citeseer.graph"),
    "a word": (indices(511, "abc", 509, 516), "test.index, line 2: 'abc' is no node number"),
    "an array": (put("graph", lambda g: np.eye(3, dtype=np.int32)),
                 "graph holds no dictionary but a numpy array"),
    "a dictionary": (put("tx", lambda m: {0: [1]}), "tx holds no scipy csr_matrix but a default"),
    "a matrix": (put("ty", lambda m: csr_matrix(m)), "ty holds no numpy array but a csr_matrix"),
    "one dimension": (put("ty", lambda m: m[0]), "ty holds an array of 1 dimensions, not 2"),
    "a page": (put("y", lambda m: b"<html>"), r"citeseer\.y is no pickle of Planetoid's"),
    "empty": (put("y", lambda m: b""), r"citeseer\.y is truncated"),
    "short": (put("y", lambda m: pickled(m).replace(b"J\x08\0\0\0J\x03", b"J\x09\0\0\0J\x03")),
              r"citeseer\.y: an array of shape \(9, 3\) has 96 bytes"),
    "complex": (put("y", lambda m: pickled(m).replace(b"i4", b"c8")),
                r"citeseer\.y holds numbers of type '<''c8'"),
    "elsewhere": (put("y", lambda m: b"\x80\x02Pthere\n."),
                  "refers to an object 'there' outside it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named(tmp_path, name):
    change, sentence = REFUSED[name]
    root = spoilt(change).write(tmp_path)
    with pytest.raises(InputError, match=sentence) as refused:
        planetoid.load(root, "citeseer")
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("part", ["x", "ty", "graph", "test.index"])
def test_a_missing_file_is_named(tmp_path, part):
    root = Planetoid().write(tmp_path)
    (root / f"ind.citeseer.{part}").unlink()
    with pytest.raises(InputError, match=f"ind.citeseer.{part} does not exist"):
        planetoid.load(root, "citeseer")


@settings(max_examples=30, deadline=None)
@given(part=st.sampled_from(["tx", "ty", "graph"]), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(tmp_path_factory, part, share):
    made = Planetoid()
    whole = pickled(made.parts[part])
    made.parts[part] = whole[: int(share * len(whole))]
    with pytest.raises(InputError, match=f"ind.citeseer.{part} is truncated"):
        planetoid.load(made.write(tmp_path_factory.mktemp("raw")), "citeseer")


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("__builtin__", "eval"),
     ("numpy", "load"), ("scipy.sparse.csr", "spmatrix"), ("collections", "OrderedDict")],
)  # fmt: skip
def test_a_pickle_that_names_anything_else_runs_nothing(tmp_path, module, name):
    marker = tmp_path / "marker"
    command = f"touch {marker}" if name == "system" else f"open({str(marker)!r}, 'w')"
    made = Planetoid()
    argument = b"U" + bytes([len(command)]) + command.encode()
    made.parts["ty"] = b"\x80\x02" + named(module, name) + argument + b"\x85R."
    with pytest.raises(InputError, match=rf"ind.citeseer.ty names {module}.{name}, which no"):
        planetoid.load(made.write(tmp_path), "citeseer")
    assert not marker.exists()


def test_the_command_line_says_it_before_training(tmp_path, capsys):
    root = spoilt(put("graph", graph_with(5, 9999))).write(tmp_path)
    asked = ["graph", "--data", "planetoid", "--dataset", "citeseer", "--root", str(root)]
    assert main([*asked, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "node 5 has the neighbour 9999" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["--data", "planetoid"], "--data planetoid needs --root DIR, the folder of ind.cora.x"),
        (["--dataset", "cora"], "--dataset is for --data planetoid"),
        (["--root", "."], "--root is for --data planetoid"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
    ],
)
def test_options_that_do_not_fit_are_named(capsys, asked, sentence):
    assert main(["graph", *asked]) == 2
    assert sentence in capsys.readouterr().err


# What networks are given ------------------------------------------------------------------------


def test_the_embedded_graph_is_the_same_every_time_and_leaves_the_random_state():
    state = torch.get_rng_state()
    first, second = blocks.load(), blocks.load()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first[1:], second[1:], strict=True))
    assert torch.bincount(first.y[first.train]).tolist() == [20] * 5
    parts = torch.cat([first.train, first.validation, first.test])
    assert parts.sort().values.tolist() == list(range(len(first.y)))
    own = first.y[first.edges[0]] == first.y[first.edges[1]]
    assert 0.6 < own.float().mean() < 0.75


def test_features_sum_to_one_where_there_are_any_and_positions_are_degrees():
    x = torch.tensor([[3.0, 1.0], [0.0, 0.0], [0.0, 2.0]])
    edges = torch.tensor([[0, 1, 0, 2], [1, 0, 2, 0]])
    graph = data.Graph("three", x, edges, torch.zeros(3, dtype=torch.int64), *[edges[0]] * 3)
    given_ = data.inputs(graph, normalised=True)
    assert given_.x.tolist() == [[0.75, 0.25], [0, 0], [0, 1]]
    assert given_.position.flatten().tolist() == [0.5, 1, 0.5, 1]
    assert torch.equal(data.inputs(graph, normalised=False).x, x)


def test_dropping_sparse_features_is_dropout():
    x = torch.zeros(200, 300)
    x[:, ::30] = torch.rand(200, 10) + 1
    sparse = x.to_sparse().coalesce()
    assert torch.equal(data.drop(sparse, 0.6, False).to_dense(), x)
    dropped = data.drop(sparse, 0.6, True).to_dense()
    kept = dropped != 0
    assert torch.allclose(dropped[kept], x[kept] / 0.4)
    assert 0.35 < kept.sum() / (x != 0).sum() < 0.45
    assert torch.equal(sparse.to_dense(), x)
