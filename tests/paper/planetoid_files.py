"""Small data sets in Planetoid's files, as Python 2 pickled them."""

import struct

import numpy as np
from scipy.sparse import csr_matrix


def pickled(value):
    """The bytes that Python 2's protocol 2 makes of an array, a csr_matrix or a dict of lists."""
    return b"\x80\x02" + _body(value) + b"."


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def _body(value):
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if value is None:
        return b"N"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, (str, bytes)):
        data = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(data)) + data
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_body, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_body, value)) + b"e"
    if isinstance(value, dict):
        made = named("collections", "defaultdict") + named("__builtin__", "list") + b"\x85R"
        return made + b"(" + b"".join(_body(k) + _body(v) for k, v in value.items()) + b"u"
    if isinstance(value, np.ndarray):
        code = value.dtype.str[1:]
        dtype = named("numpy", "dtype") + _body((code, 0, 1)) + b"R"
        dtype += _body((3, value.dtype.str[0], None, None, None, -1, -1, 0)) + b"b"
        made = named("numpy.core.multiarray", "_reconstruct")
        made += b"(" + named("numpy", "ndarray") + _body((0,)) + _body("b") + b"tR"
        by_columns = value.flags.fnc
        state = _body(1) + _body(value.shape) + dtype + _body(by_columns)
        data = value.tobytes("F" if by_columns else "C")
        return made + b"(" + state + _body(data) + b"tb"
    assert isinstance(value, csr_matrix)
    state = {"format": "csr", "_shape": value.shape, "indptr": value.indptr.astype("<i4")}
    state |= {"maxprint": 50, "indices": value.indices.astype("<i4"), "data": value.data}
    pairs = b"".join(_body(k) + _body(v) for k, v in state.items())
    return named("scipy.sparse.csr", "csr_matrix") + b")\x81}(" + pairs + b"ub"


class Planetoid:
    """The parts of a data set, to be spoilt and written.

    ``train``: documents in x. ``test``: the nodes of tx, in its order; numbers between them that
    are missing are gaps.
    """

    def __init__(self, train=8, features=30, classes=3, test=(511, 513, 509, 516), seed=0):
        random = np.random.default_rng(seed)
        known = train + 501
        assert min(test) >= known
        nodes = max(test) + 1

        def documents(rows):
            return csr_matrix(random.integers(0, 4, (rows, features)) == 3, dtype=np.float32)

        def classes_of(rows):
            drawn = np.resize(np.arange(classes), rows)
            return np.eye(classes, dtype=np.int32)[random.permutation(drawn)]

        allx, ally = documents(known), classes_of(known)
        graph = {node: [(node * 7 + 1) % nodes, (node + 1) % nodes] for node in range(nodes)}
        for gap in set(range(known, nodes)) - set(test):
            graph[gap] = []
        graph = {
            node: [other for other in others if graph[other]] for node, others in graph.items()
        }
        self.parts = {
            "x": allx[:train], "y": ally[:train], "allx": allx, "ally": ally,
            "tx": documents(len(test)), "ty": classes_of(len(test)), "graph": graph,
        }  # fmt: skip
        self.test = list(test)

    def write(self, root, name="citeseer"):
        for part, value in self.parts.items():
            data = value if isinstance(value, bytes) else pickled(value)
            (root / f"ind.{name}.{part}").write_bytes(data)
        lines = "".join(f"{node}\n" for node in self.test)
        (root / f"ind.{name}.test.index").write_text(lines)
        return root
