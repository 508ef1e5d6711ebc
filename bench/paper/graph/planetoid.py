"""Cora, CiteSeer and PubMed from Planetoid's eight raw files a data set.

    ind.NAME.x, .y            the training documents: the first rows of allx, ally
    ind.NAME.allx, .ally      all documents but the test ones: rows 0, 1, … are nodes 0, 1, …
    ind.NAME.tx, .ty          the test documents, in the order of test.index
    ind.NAME.test.index       a node number a line
    ind.NAME.graph            node → neighbours

The split is the public one (Yang et al. 2016): train on x, validate on the next 500 nodes, test on
test.index. CiteSeer's test.index has gaps: nodes without a document, which get no features and no
class and are in no split.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix, lil_matrix
from torch_geometric.utils import remove_self_loops, to_undirected

from bench.paper.graph import pickles
from bench.paper.graph.data import Graph
from dfa_kernels.training import InputError

DATASETS = ("cora", "pubmed", "citeseer")

_VALIDATION = 500


def load(root: Path, dataset: str) -> Graph:
    """The data set whose files lie in ``root``.

    Raises:
        InputError: a file is missing or damaged, or the files disagree; the sentence names the
            file and the row, node or line.
    """

    def path(part: str) -> Path:
        return root / f"ind.{dataset}.{part}"

    x, tx, allx = (pickles.rows(path(part)) for part in ("x", "tx", "allx"))
    y, ty, ally = (_classes(path(part)) for part in ("y", "ty", "ally"))
    test = _test_index(path("test.index"))
    neighbours = pickles.lists(path("graph"))
    _same_rows(path("x"), x.shape[0], path("y"), len(y[0]))
    _same_rows(path("allx"), allx.shape[0], path("ally"), len(ally[0]))
    _same_rows(path("tx"), tx.shape[0], path("ty"), len(ty[0]))
    _same_rows(path("tx"), tx.shape[0], path("test.index"), len(test))
    for part, matrix in (("x", x), ("tx", tx)):
        _same_columns(path(part), matrix.shape[1], path("allx"), allx.shape[1])
    for part, (_, width) in (("y", y), ("ty", ty)):
        _same_columns(path(part), width, path("ally"), ally[1])
    _begins(path, x, allx, y[0], ally[0])
    for line, node in enumerate(test.tolist(), 1):
        where = f"{path('test.index')}, line {line}: node {node}"
        if node < allx.shape[0]:
            raise InputError(f"{where} is a row of allx already, which has {allx.shape[0]}")
        if node not in neighbours:
            raise InputError(f"{where} is not in {path('graph').name}")
    nodes = max(int(test.max(initial=-1)) + 1, allx.shape[0])
    return Graph(
        dataset,
        torch.from_numpy(_features(allx, tx, test, nodes)),
        _edges(path("graph"), neighbours, nodes),
        torch.from_numpy(_labels(ally[0], ty[0], test, nodes)),
        torch.arange(x.shape[0]),
        torch.arange(x.shape[0], x.shape[0] + _VALIDATION),
        torch.from_numpy(np.sort(test)),
    )


# The parts --------------------------------------------------------------------------------------


def _classes(path: Path) -> tuple[np.ndarray, int]:
    """The class of each one-hot row, and how many classes there are."""
    hot = pickles.array(path)
    proper = ((hot == 0) | (hot == 1)).all(axis=1) & (hot.sum(axis=1) == 1)
    if not proper.all():
        row = int(proper.argmin())
        raise InputError(f"{path}: row {row} is {hot[row].tolist()}, not a single 1 among zeros")
    return hot.argmax(axis=1).astype(np.int64), hot.shape[1]


def _test_index(path: Path) -> np.ndarray:
    """Different node numbers, in the file's order."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as failed:
        raise InputError(f"{path} cannot be read: {failed}") from None
    seen: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip().isdecimal():
            raise InputError(f"{path}, line {number}: {line[:40]!r} is no node number")
        node = int(line)
        if node in seen:
            raise InputError(f"{path}, line {number}: node {node} is on line {seen[node]} too")
        seen[node] = number
    return np.array(list(seen), dtype=np.int64)


def _edges(path: Path, neighbours: dict[int, list[int]], nodes: int) -> torch.Tensor:
    for node, others in neighbours.items():
        if not 0 <= node < nodes:
            raise InputError(f"{path}: there is no node {node}, only 0 to {nodes - 1}")
        for other in others:
            if not 0 <= other < nodes:
                raise InputError(
                    f"{path}: node {node} has the neighbour {other}, but there are only 0 to "
                    f"{nodes - 1}"
                )
    source = [node for node, others in neighbours.items() for _ in others]
    target = [other for others in neighbours.values() for other in others]
    pairs = torch.tensor([source, target], dtype=torch.int64)
    return to_undirected(remove_self_loops(pairs)[0], num_nodes=nodes)


def _features(allx: csr_matrix, tx: csr_matrix, test: np.ndarray, nodes: int) -> np.ndarray:
    whole = lil_matrix((nodes, allx.shape[1]), dtype=np.float32)
    whole[: allx.shape[0]] = allx
    whole[test] = tx
    return whole.toarray()


def _labels(known: np.ndarray, held: np.ndarray, test: np.ndarray, nodes: int) -> np.ndarray:
    whole = np.full(nodes, -1, dtype=np.int64)
    whole[: len(known)] = known
    whole[test] = held
    return whole


# What must agree --------------------------------------------------------------------------------


def _same_rows(a: Path, rows: int, b: Path, others: int) -> None:
    if rows != others:
        raise InputError(f"{a} has {rows} rows, but {b.name} has {others}")


def _same_columns(a: Path, columns: int, b: Path, others: int) -> None:
    if columns != others:
        raise InputError(f"{a} has {columns} columns, but {b.name} has {others}")


def _begins(
    path: Callable[[str], Path], x: csr_matrix, allx: csr_matrix, y: np.ndarray, ally: np.ndarray
) -> None:
    """x and y must be the first rows of allx and ally, with a validation set behind them."""
    wanted = x.shape[0] + _VALIDATION
    if wanted > allx.shape[0]:
        raise InputError(
            f"{path('allx')} has {allx.shape[0]} rows, but {x.shape[0]} to train on and "
            f"{_VALIDATION} to validate on need {wanted}"
        )
    differs = np.asarray((x != allx[: x.shape[0]]).sum(axis=1)).ravel() > 0
    differs |= y != ally[: len(y)]
    if differs.any():
        row = int(differs.argmax())
        raise InputError(f"{path('x')}: row {row} differs from row {row} of {path('allx').name}")
